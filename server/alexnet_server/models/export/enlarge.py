"""The cubic enlargement of small training images, as the matrix that loader and graph multiply by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def cubic_matrix(target: int, source: int) -> NDArray[np.float32]:
    """(target, source) float32: one axis of Pillow's ``Image.BICUBIC`` enlargement (a = -0.5).

    Row i holds the weights of the source pixels in target pixel i, centres aligned; weights that fall outside
    the image are dropped and the rest renormalised, as Pillow does. Rows sum to 1.
    """
    centres = (np.arange(target) + 0.5) * source / target - 0.5
    distance = np.abs(centres[:, None] - np.arange(source)[None, :])
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    normalised: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalised.astype(np.float32)
