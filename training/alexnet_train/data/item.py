"""An encoded image with its label: what every source of training images yields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One encoded image, its label and a name to report it by."""

    data: bytes
    label: int
    name: str
