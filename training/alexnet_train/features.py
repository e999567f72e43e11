"""Stage two's input: pool5 of random views of every training image, computed once and kept as uint8.

The convolutions are most of a step's arithmetic and stage one has trained them; with pool5 on disk the
fully connected layers train hundreds of times faster than with the convolutions in the loop. Views are of
two kinds, as the served models have two: crops of 224 pixels, and windows of 13x13 cells cut from conv5 of
the whole image, which differ from crops wherever a crop's edge was padded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from alexnet_train import checkpoint
from alexnet_train.augment import SIDE, Augmenter, Colour
from alexnet_train.config import Config, config_from
from alexnet_train.dataset import DatasetError, Split, open_split
from alexnet_train.draws import Draws
from alexnet_train.network import AlexNet
from alexnet_train.variants import VARIANTS

CHUNK = 128
SELECTION = 1500
"""Held-out images whose ten views are kept, for choosing and for temperatures: a tenth of the crops."""
LEVELS = 255
CELLS = 13
"""Side of a crop's conv5; the whole image's has 15, which leaves three offsets each way."""
OFFSETS = [(top, left) for top in range(3) for left in range(3)]
TEN_OFFSETS = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
"""The windows that stand for the paper's four corners and centre."""


def load_convolutions(path: Path, classes: int) -> tuple[AlexNet, Config]:
    """The convolutions of a stage-one checkpoint in a network at the variant's full crop, evaluation mode."""
    state = checkpoint.load(path)
    config = config_from(state["config"])
    network = AlexNet(
        VARIANTS[config.variant], classes, batch_norm=True, hidden=8, constant_lrn=config.constant_lrn
    )
    kept = {n: t for n, t in state["model"].items() if "conv" in n}
    network.load_state_dict(network.state_dict() | kept)
    return network.eval().to(memory_format=torch.channels_last), config  # type: ignore[call-overload]


class Pool5:
    """Computes pool5 as uint8 with one scale per channel, which ``fix_scale`` takes from a first batch."""

    def __init__(self, network: AlexNet, config: Config) -> None:
        self.network, self.config = network, config
        self.scale = torch.ones(network.variant.channels[-1])
        before, after = network.variant.conv1_padding
        self.margin = max(0, 3 - before - after)
        """Zeros below and right of a whole image, so that conv5 has 15 cells as in the dense graph."""

    @torch.inference_mode()
    def fix_scale(self, crops: Tensor) -> None:
        """A unit-variance channel seldom passes 6; what lies above this batch's maximum will be clipped."""
        self.scale = self._pooled(self._conv5(crops)).amax(dim=(0, 2, 3)).clamp(min=1e-3) / LEVELS

    @torch.inference_mode()
    def crops(self, crops: Tensor) -> NDArray[np.uint8]:
        """Crops (N, 3, 224, 224), mean subtracted, to (N, channels * 36) uint8."""
        return self._levels(self._pooled(self._conv5(crops)))

    @torch.inference_mode()
    def windows(self, wholes: Tensor, offsets: Tensor) -> NDArray[np.uint8]:
        """Windows of conv5 of whole images (N, 3, 256, 256), mean subtracted.

        Args:
            wholes: the images.
            offsets: (N, W) int64, each an index into ``OFFSETS``.

        Returns:
            (N * W, channels * 36) uint8, image-major.
        """
        conv5 = self._conv5(F.pad(wholes, (0, self.margin) * 2))
        places = [conv5[:, :, top : top + CELLS, left : left + CELLS] for top, left in OFFSETS]
        pooled = torch.stack([self._pooled(place) for place in places], 1)
        rows = torch.arange(len(wholes))[:, None]
        return self._levels(pooled[rows, offsets].flatten(0, 1))

    def _conv5(self, x: Tensor) -> Tensor:
        x = (x / self.config.input_scale).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bfloat16):
            return self.network.conv5_maps(x)

    def _pooled(self, conv5: Tensor) -> Tensor:
        return self.network.pooled5(conv5).float()

    def _levels(self, pooled: Tensor) -> NDArray[np.uint8]:
        levels = (pooled / self.scale[:, None, None]).round().clamp(0, LEVELS)
        return levels.to(torch.uint8).flatten(1).numpy()


def extract(init: Path, data: Path, out: Path, crops: int, windows: int) -> None:
    """Write pool5 of random views of the training images and of ten views of held-out ones.

    ``train-K.npy`` (96,000 x 9,216 uint8) for K < ``crops``; ``windows.npy`` with ``windows`` rows an image;
    ``held_out.npy`` and ``held_out_windows.npy``, ten rows an image.

    Resumable by whole files; a file that was cut short is computed again. Two processes, one with crops and
    one with windows, may share the work once the held-out files are there.

    Raises:
        DatasetError: the dataset was not prepared whole.
    """
    split = open_split(data / "train")
    if split.statistics is None:
        raise DatasetError(f"{data}/train: no statistics; prepare it again")
    network, config = load_convolutions(init, len(split.classes))
    crop, whole = (_augmenter(split, config, side) for side in (VARIANTS[config.variant].crop, SIDE))
    out.mkdir(parents=True, exist_ok=True)
    pool5 = Pool5(network, config)
    count = len(split.labels) - config.held_out
    last = count + min(SELECTION, config.held_out)
    pool5.fix_scale(crop.centre(_rows(split.images, 0, CHUNK)))
    meta = {"scale": pool5.scale.tolist(), "count": count, "held_out": last - count, "init": str(init)}
    (out / "meta.json").write_text(json.dumps(meta))
    held_out = [_rows(split.images, i, min(i + 16, last)) for i in range(count, last, 16)]
    _write(out / "held_out.npy", (pool5.crops(crop.ten(chunk)) for chunk in held_out), (last - count) * 10)
    ten = ten_windows(pool5, whole, held_out)
    _write(out / "held_out_windows.npy", ten, (last - count) * 10)
    for k in range(crops):
        drawn = (
            pool5.crops(crop.random(chunk, Draws(config.seed + 1 + k, i, torch.arange(len(chunk)))))
            for i, chunk in _chunks(split, count)
        )
        _write(out / f"train-{k}.npy", drawn, count)
    if windows:
        drawn = (
            pool5.windows(
                whole.random(chunk, draws), (draws.uniform("window", windows) * len(OFFSETS)).long()
            )
            for i, chunk in _chunks(split, count)
            for draws in [Draws(config.seed - 1, i, torch.arange(len(chunk)))]
        )
        _write(out / "windows.npy", drawn, count * windows)


def ten_windows(pool5: Pool5, whole: Augmenter, chunks: list[Tensor]) -> Iterator[NDArray[np.uint8]]:
    """Ten windows an image, in the order of ``Augmenter.ten``: a place of the photo, then of its mirror."""
    places = torch.tensor([OFFSETS.index(offset) for offset in TEN_OFFSETS])
    for chunk in chunks:
        photo = whole.centre(chunk)
        both = torch.stack([photo, photo.flip(3)], 1).flatten(0, 1)
        rows = pool5.windows(both, places.expand(len(both), -1)).reshape(len(chunk), 2, len(places), -1)
        yield np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(10 * len(chunk), -1)


def _augmenter(split: Split, config: Config, window: int) -> Augmenter:
    assert split.statistics is not None
    colour = Colour(config.colour_pca)
    return Augmenter(split.size, window, split.statistics, colour, torch.device("cpu"))


def _chunks(split: Split, count: int) -> Iterator[tuple[int, Tensor]]:
    """The first ``count`` images, a chunk at a time, with the chunk's number."""
    for number, start in enumerate(range(0, count, CHUNK)):
        yield number, _rows(split.images, start, min(start + CHUNK, count))


def _rows(images: NDArray[np.uint8], start: int, stop: int) -> Tensor:
    """A copy of images start..stop: torch does not take read-only memory."""
    return torch.from_numpy(images[start:stop].copy())


def _write(path: Path, chunks: Iterator[NDArray[np.uint8]], count: int) -> None:
    """Fill ``path`` from chunks of rows, moved into place when whole; a file already there is kept."""
    if path.exists():
        return
    temporary = path.with_suffix(".part")
    file: NDArray[np.uint8] | None = None
    start = 0
    with tqdm(total=count, desc=path.name, unit="view", mininterval=10) as bar:
        for chunk in chunks:
            if file is None:
                shape = (count, chunk.shape[1])
                file = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            file[start : start + len(chunk)] = chunk
            start += len(chunk)
            bar.update(len(chunk))
    temporary.replace(path)
