"""Occlusion: which parts of a photo made a label (Zeiler and Fergus 2013, section 4.2).

A grey square covers the photo at one place after another, and what the label's score loses there is what that
place was worth. Only rows of pixels go to the engine, so every engine can do it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alexnet_server.batching.scheduler import Hold
from alexnet_server.engines import Model
from alexnet_server.engines.labels import Label
from alexnet_server.errors import InvalidRequest

SIZE = 48
"""Side of the square, pixels of the 256x256 image."""
STEP = 24
PLACES = (256 - SIZE) // STEP + 1
"""Places in a row and in a column: 9, at 0, 24, ... 192 pixels."""
ROWS = 1 + PLACES * PLACES
"""Of the engine's: the photo, and it with the square at each place."""
GREY = 128
FLAT = 0.005
"""Of the score; a label that loses and gains less than this anywhere was made by no part of the photo."""


@dataclass(frozen=True)
class Explanation:
    """What each place of a photo was worth to one label."""

    model: str
    version: str
    label: Label
    score: float
    """Of the whole photo."""
    grid: NDArray[np.float32]
    """``[9, 9]``: the photo's score less its score with the square's corner at x = 24 column, y = 24 row."""
    seconds: float
    one_colour: bool
    """The square would be the only thing on such a photo, so it is not put there and the grid is zero."""

    @property
    def note(self) -> str | None:
        """Why the map is flat; None where it is not."""
        if self.one_colour:
            return "The photo is of a single colour: no part of it speaks for the label more than another."
        if np.abs(self.grid).max() < FLAT:
            change = f"covering any of them changes its score by less than {FLAT}"
            return f"No single part of the photo made the label: {change}."
        return None


def check_explainable(model: Model, index: int | None) -> None:
    """Refuse what has no such map.

    Raises:
        InvalidRequest: The model's views are crops, which see a square in different places; or it has no
            such label.
    """
    if model.view_mode == "ten":
        raise InvalidRequest(
            "Ten crops cannot be explained, because each sees another part: use `views=center` or `dense`."
        )
    if index is not None and not 0 <= index < len(model.labels):
        raise InvalidRequest(f"`index` must be from 0 to {len(model.labels) - 1}, got {index}.")


async def explain(image: NDArray[np.uint8], room: Hold, index: int | None) -> Explanation:
    """The map of one label.

    Args:
        image: ``[256, 256, 3]`` uint8.
        room: For 82 rows: at most ``max_batch_size`` views of them are handed in at a time.
        index: The label's; the likeliest one when None.

    Raises:
        ServingError: As ``Hold.infer``.
    """
    started_at = time.monotonic()
    model = room.model
    (whole,) = await room.infer(image[None])
    chosen = int(whole.probabilities.argmax()) if index is None else index
    one_colour = bool((image == image[0, 0]).all())
    score = float(whole.probabilities[chosen])
    scores = [score] * PLACES * PLACES if one_colour else []
    while len(scores) < PLACES * PLACES:
        last = min(PLACES * PLACES, len(scores) + max(1, model.max_batch_size // model.views))
        rows = await room.infer(covered(image, len(scores), last))
        scores += [float(row.probabilities[chosen]) for row in rows]
    grid = np.float32(score) - np.array(scores, np.float32).reshape(PLACES, PLACES)
    seconds = time.monotonic() - started_at
    return Explanation(model.name, model.version, model.labels[chosen], score, grid, seconds, one_colour)


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
