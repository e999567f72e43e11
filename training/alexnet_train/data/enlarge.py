"""The cubic enlargement of 64-pixel sources to 256 pixels, as a matrix.

Training images of at most 64 pixels are kept at 64 and enlarged in the loader; the serving graph of a model
trained on them repeats the same arithmetic. Both multiply by the matrix made here.
"""

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


def enlarge(images: NDArray[np.uint8], target: int = 256) -> NDArray[np.uint8]:
    """(N, S, S, 3) uint8 to (N, target, target, 3) uint8, Pillow's cubic enlargement to within a level."""
    count, size = images.shape[:2]
    matrix = cubic_matrix(target, size)
    across = np.einsum("ws,nhsc->nhwc", matrix, images.astype(np.float32), optimize=True)
    across = np.clip(np.rint(across), 0, 255)
    down = matrix @ across.reshape(count, size, target * 3)
    levels: NDArray[np.float32] = np.clip(np.rint(down), 0, 255)
    return levels.reshape(count, target, target, 3).astype(np.uint8)
