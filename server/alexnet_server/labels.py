"""Class names: `labels.txt`, one class a line in output order, WordNet id, tab, words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alexnet_server.errors import StartError


@dataclass(frozen=True, slots=True)
class Label:
    """One class."""

    index: int
    wnid: str
    """WordNet id, such as `n02123045`."""
    words: str
    """Such as `tabby, tabby cat`."""


def parse_labels(text: str, source: str = "labels.txt") -> tuple[Label, ...]:
    """Read labels, `wnid<TAB>words` on each line.

    Args:
        text: Contents of a `labels.txt`.
        source: How error messages name it.

    Raises:
        StartError: A line has another form, an id comes twice, or there is no line.
    """
    labels = []
    for index, line in enumerate(text.splitlines()):
        wnid, tab, words = line.partition("\t")
        if not (tab and wnid.strip() and words.strip()):
            raise StartError(
                f"{source} line {index + 1}: expected a WordNet id, a tab and words, got {line[:60]!r}"
            )
        labels.append(Label(index, wnid.strip(), words.strip()))
    if not labels:
        raise StartError(f"{source} is empty: it must name every class, one a line")
    if len({label.wnid for label in labels}) != len(labels):
        raise StartError(f"{source} names a WordNet id twice")
    return tuple(labels)


def read_labels(path: Path) -> tuple[Label, ...]:
    """Read `labels.txt`.

    Raises:
        StartError: The file is missing, unreadable or malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"cannot read {path}: {error}") from error
    return parse_labels(text, str(path))
