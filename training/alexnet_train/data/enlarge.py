"""The cubic enlargement of 64-pixel sources to 256 pixels.

Training images of at most 64 pixels are kept at 64 and enlarged in the loader; the serving graph of a model
trained on them repeats the same arithmetic: both multiply by the same matrix.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alexnet_server.models.export.enlarge import cubic_matrix


def enlarge(images: NDArray[np.uint8], target: int = 256) -> NDArray[np.uint8]:
    """(N, S, S, 3) uint8 to (N, target, target, 3) uint8, Pillow's cubic enlargement to within a level."""
    count, size = images.shape[:2]
    matrix = cubic_matrix(target, size)
    across = np.einsum("ws,nhsc->nhwc", matrix, images.astype(np.float32), optimize=True)
    across = np.clip(np.rint(across), 0, 255)
    down = matrix @ across.reshape(count, size, target * 3)
    levels: NDArray[np.float32] = np.clip(np.rint(down), 0, 255)
    return levels.reshape(count, target, target, 3).astype(np.uint8)
