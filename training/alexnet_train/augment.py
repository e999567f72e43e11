"""Random windows of a batch of square uint8 images, mirrored and recoloured, on the batch's own device.

Nothing here runs per image: cutting a window out of a 64-pixel source and enlarging it is two batched matrix
products, cutting one out of a 256-pixel source is the same two with rows of the identity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alexnet_train.dataset import Statistics
from alexnet_train.enlarge import cubic_matrix

SIDE = 256
"""Side in pixels of the prepared image that crops are cut from."""


@dataclass(frozen=True)
class Colour:
    """How far colours are moved: PCA noise (section 4.1 of the paper) and an overall gain.

    ``pca`` scales the principal components' standard deviations (0.1 in the paper and the code); ``gain`` is
    the largest relative change of brightness.
    """

    pca: float = 0.0
    gain: float = 0.0


class Augmenter:
    """Cuts windows of ``window`` pixels out of images of ``size`` pixels, seen as if enlarged to 256.

    Args:
        size: side of the source images: 64 (enlarged by 4, cubic) or 256.
        window: side of the windows.
        statistics: mean and colour covariance of the training images.
        colour: colour noise in training.
    """

    def __init__(
        self, size: int, window: int, statistics: Statistics, colour: Colour, device: torch.device
    ) -> None:
        matrix = np.eye(SIDE, dtype=np.float32) if size == SIDE else cubic_matrix(SIDE, size)
        self.rows = torch.from_numpy(matrix).to(device)
        self.window, self.colour = window, colour
        self.mean = torch.tensor(statistics.mean, device=device)
        values, vectors = torch.linalg.eigh(torch.tensor(statistics.covariance, dtype=torch.float64))
        self.components = (vectors * values.clamp(min=0).sqrt()).float().to(device)

    def cut(self, images: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Windows at (top, left) of uint8 (N, S, S, 3): (N, window, window, 3) float32, whole grey levels."""
        count, size = images.shape[0], images.shape[1]
        span = torch.arange(self.window, device=images.device)
        vertical = self.rows[top[:, None] + span]
        horizontal = self.rows[left[:, None] + span]
        x = images.transpose(1, 2).reshape(count, size, size * 3).float()
        x = (
            torch.bmm(horizontal, x).round_().clamp_(0, 255)
        )  # Pillow rounds and clamps between its two passes
        x = x.view(count, self.window, size, 3).transpose(1, 2).reshape(count, size, self.window * 3)
        x = torch.bmm(vertical, x).view(count, self.window, self.window, 3)
        return x.round_().clamp_(0, 255)

    def centre(self, images: Tensor) -> Tensor:
        """The centre windows, mean subtracted: (N, 3, window, window) float32."""
        offset = torch.full((images.shape[0],), (SIDE - self.window) // 2, device=images.device)
        return (self.cut(images, offset, offset) - self.mean).permute(0, 3, 1, 2)

    def random(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Random windows, mirrors and colours, mean subtracted: (N, 3, window, window) float32."""
        count, device = images.shape[0], images.device
        offsets = torch.randint(0, SIDE - self.window + 1, (2, count), generator=generator, device=device)
        x = self.cut(images, offsets[0], offsets[1]) - self.mean
        mirrored = torch.rand(count, generator=generator, device=device) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(2), x)
        if self.colour.gain:
            gain = torch.rand(count, 1, 1, 1, generator=generator, device=device)
            x = x * (1 + self.colour.gain * (2 * gain - 1))
        if self.colour.pca:
            draw = torch.randn(count, 3, generator=generator, device=device) * self.colour.pca
            x = x + (draw @ self.components.T)[:, None, None, :]
        return x.permute(0, 3, 1, 2)
