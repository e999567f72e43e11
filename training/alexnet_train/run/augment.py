"""Random windows of a batch of square uint8 images, mirrored and recoloured, on the batch's own device.

Nothing here runs per image: cutting a window out of a 64-pixel source and enlarging it is two batched matrix
products, and so is a window of any other size and shape; a fixed window of a 256-pixel source is one gather.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet_server.models.export.enlarge import cubic_matrix
from alexnet_server.models.variants import variant_named
from alexnet_train.config import Config
from alexnet_train.data.dataset import DatasetError, Split, Statistics, mean_image
from alexnet_train.network.draws import Draws

SIDE = 256
"""Side in pixels of the prepared image that crops are cut from."""


@dataclass(frozen=True)
class Colour:
    """How far colours are moved: PCA noise (section 4.1 of the paper) and an overall gain.

    ``pca`` scales noise along the principal components (0.1 in the paper and the code), whose size is their
    standard deviation in the code (convdata_jpeg.py:65) and their variance on a 0-1 scale in the text.
    ``divisor`` shrinks the noisy image to the scale of test images (1.1, convdata_jpeg.py:178).
    ``gain`` is the largest relative change of brightness.
    """

    pca: float = 0.0
    gain: float = 0.0
    divisor: float = 1.0
    measure: Literal["deviation", "variance"] = "deviation"


class Augmenter:
    """Cuts windows of ``window`` pixels out of images of ``size`` pixels, seen as if enlarged to 256.

    Args:
        size: side of the source images: 64 (enlarged by 4, cubic) or 256.
        window: side of the windows.
        statistics: mean and colour covariance of the training images.
        colour: colour noise in training.
        mean_image: (size, size, 3) float32; its centre window is subtracted wherever the crop was taken
            (convdata_jpeg.py:95). Without it ``statistics.mean`` is subtracted.
        shared_crops: so many consecutive images share one crop and mirror.
        resized_area: smallest share of the image that a crop of random size covers; 0: fixed windows.
        resized_area_max: the largest.
        channel_order: of the windows that come out; images are RGB.
    """

    def __init__(
        self,
        size: int,
        window: int,
        statistics: Statistics,
        colour: Colour,
        device: torch.device,
        *,
        mean_image: NDArray[np.float32] | None = None,
        shared_crops: int = 1,
        resized_area: float = 0.0,
        resized_area_max: float = 1.0,
        channel_order: Literal["RGB", "BGR"] = "RGB",
    ) -> None:
        self.size, self.window, self.colour = size, window, colour
        self.shared_crops = shared_crops
        self.resized_area, self.resized_area_max = resized_area, resized_area_max
        self.channel_order = channel_order
        matrix = np.eye(SIDE, dtype=np.float32) if size == SIDE else cubic_matrix(SIDE, size)
        self.rows = torch.from_numpy(matrix).to(device)
        self.whole_mean = torch.tensor(statistics.mean, device=device)
        if mean_image is not None:
            self.whole_mean = torch.from_numpy(enlarged(mean_image)).to(device)
        self.mean = centre_of(self.whole_mean, window)
        values, vectors = torch.linalg.eigh(torch.tensor(statistics.covariance, dtype=torch.float64))
        sizes = values.clamp(min=0).sqrt() if colour.measure == "deviation" else values / 255
        self.components = (vectors * sizes).float().to(device)

    @classmethod
    def of(cls, config: Config, split: Split, device: torch.device) -> Self:
        """The recipe's augmentation of a training split.

        Raises:
            DatasetError: the split was prepared without statistics.
        """
        if split.statistics is None:
            raise DatasetError("the training split has no statistics; run `alexnet-train prepare` again")
        mean = None
        if config.mean == "image":
            mean = split.mean_image if split.mean_image is not None else mean_image(split.images)
        return cls(
            split.size,
            config.window,
            split.statistics,
            Colour(config.colour_pca, config.colour_gain, config.colour_divisor, config.colour_measure),
            device,
            mean_image=mean,
            shared_crops=config.shared_crops,
            resized_area=config.resized_area,
            resized_area_max=config.resized_area_max,
            channel_order=variant_named(config.variant).channel_order,
        )

    def cut(self, images: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Windows at (top, left) of uint8 (N, S, S, 3): (N, window, window, 3) float32, whole grey levels."""
        span = torch.arange(self.window, device=images.device)
        down, across = top[:, None] + span, left[:, None] + span
        if self.size == SIDE:
            image = torch.arange(len(images), device=images.device)
            return images[image[:, None, None], down[:, :, None], across[:, None, :]].float()
        return _resampled(images, self.rows[down], self.rows[across], whole_levels=True)

    def cut_resized(self, images: Tensor, draws: Draws) -> Tensor:
        """Windows of random place, area and shape (3:4 to 4:3), brought to (N, window, window, 3) float32."""
        u = draws.uniform("resized crop", 4)
        smallest, largest = self.resized_area, self.resized_area_max
        area = (smallest + (largest - smallest) * u[:, 0]) * SIDE**2
        shape = torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3))
        height = (area / shape).sqrt().clamp(max=SIDE)
        width = (area * shape).sqrt().clamp(max=SIDE)
        vertical = self._filters(u[:, 2] * (SIDE - height), height)
        horizontal = self._filters(u[:, 3] * (SIDE - width), width)
        return _resampled(images, vertical, horizontal, whole_levels=False)

    def _filters(self, first: Tensor, extent: Tensor) -> Tensor:
        """(N, window, size): antialiased linear resampling of ``extent`` pixels from ``first`` on."""
        scale = (extent / self.window)[:, None, None]
        target = torch.arange(self.window, device=first.device)[None, :, None] + 0.5
        source = torch.arange(SIDE, device=first.device)[None, None, :] + 0.5
        distance = (source - first[:, None, None] - target * scale).abs() / scale.clamp(min=1)
        weights = (1 - distance).clamp(min=0)
        weights = weights / weights.sum(2, keepdim=True)
        return weights if self.size == SIDE else weights @ self.rows

    def centre(self, images: Tensor) -> Tensor:
        """The centre windows, mean subtracted: (N, 3, window, window) float32."""
        offset = torch.full((images.shape[0],), (SIDE - self.window) // 2, device=images.device)
        return self._planes(self.cut(images, offset, offset) - self.mean)

    def ten(self, images: Tensor) -> Tensor:
        """Four corners, centre and their mirrors: (10 N, 3, window, window) float32, image-major.

        Views are cropped, mirrored, then lose the unmirrored centre of the mean (convdata_jpeg.py:226-233).
        """
        far = SIDE - self.window
        views = []
        for top, left in ((0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2)):
            offsets = torch.tensor([[top], [left]], device=images.device).expand(2, len(images))
            crop = self.cut(images, offsets[0], offsets[1])
            views += [crop - self.mean, crop.flip(2) - self.mean]
        return self._planes(torch.stack(views, 1).flatten(0, 1))

    def random(self, images: Tensor, draws: Draws, coloured: bool = True) -> Tensor:
        """Random windows, mirrors and colours, mean subtracted: (N, 3, window, window) float32.

        ``coloured`` False leaves out the colour noise and its divisor, as the end of a 2012 run does.
        """
        shared = draws.shared(self.shared_crops)
        if self.resized_area:
            x = self.cut_resized(images, shared)
        else:
            offsets = (shared.uniform("crop", 2) * (SIDE - self.window + 1)).long()
            x = self.cut(images, offsets[:, 0], offsets[:, 1])
        mirrored = shared.uniform("mirror", 1)[:, :, None, None] < 0.5
        x = torch.where(mirrored, x.flip(2), x) - self.mean
        if coloured:
            x = self._recoloured(x, draws)
        return self._planes(x)

    def _planes(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) RGB to (N, 3, H, W) in the order the network wants."""
        return (x if self.channel_order == "RGB" else x.flip(3)).permute(0, 3, 1, 2)

    def _recoloured(self, x: Tensor, draws: Draws) -> Tensor:
        colour = self.colour
        if colour.gain:
            x = x * (1 + colour.gain * (2 * draws.uniform("gain", 1) - 1))[:, :, None, None]
        if colour.pca:
            noise = colour.pca * draws.normal("colour", 3) @ self.components.T
            x = (x + noise[:, None, None, :]) / colour.divisor
        return x


def _resampled(images: Tensor, vertical: Tensor, horizontal: Tensor, whole_levels: bool) -> Tensor:
    """(N, S, S, 3) uint8 through filters (N, window, S) of rows and columns: (N, window, window, 3) float32.

    With ``whole_levels`` each pass is rounded and clamped to grey levels, as Pillow's two passes are.
    """
    count, size, window = images.shape[0], images.shape[1], vertical.shape[1]
    x = images.transpose(1, 2).reshape(count, size, size * 3).float()
    x = torch.bmm(horizontal, x)
    x = x.round_().clamp_(0, 255) if whole_levels else x
    x = x.view(count, window, size, 3).transpose(1, 2).reshape(count, size, window * 3)
    x = torch.bmm(vertical, x).view(count, window, window, 3)
    return x.round_().clamp_(0, 255) if whole_levels else x


def centre_of(mean: Tensor, window: int) -> Tensor:
    """The centre (window, window, 3) of a mean image (256, 256, 3); a mean pixel (3,) as it is."""
    first = (SIDE - window) // 2
    return mean if mean.dim() == 1 else mean[first : first + window, first : first + window]


def enlarged(mean_image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(S, S, 3) float32 mean of 64- or 256-pixel images as seen at (256, 256, 3); rounding averages out."""
    if len(mean_image) == SIDE:
        return mean_image
    matrix = cubic_matrix(SIDE, len(mean_image))
    rows = np.einsum("is,sjc->ijc", matrix, mean_image)
    result: NDArray[np.float32] = np.einsum("js,isc->ijc", matrix, rows)
    return result
