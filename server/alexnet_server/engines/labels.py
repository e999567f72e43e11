"""Class names, as every protocol shows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Label:
    """One class: a line of `labels.txt`."""

    index: int
    """In the model's output, from 0."""
    wnid: str
    """WordNet id, such as `n02123045`."""
    words: str
    """Such as `tabby, tabby cat`."""
