"""Occlusion: which parts of a photo made a label (Zeiler and Fergus 2013, section 4.2).

A grey square covers the photo at one place after another, and what the label's score loses there is what that
place was worth. Only rows of pixels go to the engine, so every engine can do it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIZE = 48
"""Side of the square, pixels of the 256x256 image."""
STEP = 24
PLACES = (256 - SIZE) // STEP + 1
"""Places in a row and in a column: 9, at 0, 24, ... 192 pixels."""
ROWS = PLACES * PLACES
GREY = 128


@dataclass(frozen=True)
class Explanation:
    """What each place of a photo was worth to one label."""

    model: str
    version: str
    index: int
    label: str
    score: float
    """Of the whole photo."""
    grid: NDArray[np.float32]
    """``[9, 9]``: the photo's score less its score with the square's corner at x = 24 column, y = 24 row."""
    seconds: float


def covered(image: NDArray[np.uint8], first: int, last: int) -> NDArray[np.uint8]:
    """The photo with the square at places ``first`` to ``last - 1``, counted row by row.

    Args:
        image: ``[256, 256, 3]`` uint8.
        first: 0 to 80.
        last: ``first`` + 1 to 81.

    Returns:
        ``[last - first, 256, 256, 3]`` uint8.
    """
    images = np.repeat(image[None], last - first, axis=0)
    for row, place in zip(images, range(first, last), strict=True):
        top, left = place // PLACES * STEP, place % PLACES * STEP
        row[top : top + SIZE, left : left + SIZE] = GREY
    return images
