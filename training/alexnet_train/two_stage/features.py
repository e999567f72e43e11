"""Stage two's input: pool5 of random views of every training image, computed once and kept as uint8.

The convolutions are most of a step's arithmetic and stage one has trained them; with pool5 on disk the
fully connected layers train hundreds of times faster than with the convolutions in the loop. Views are of
two kinds, as the served models have two: crops of 224 pixels, and windows of 13x13 cells cut from conv5 of
the whole image, which differ from crops wherever a crop's edge was padded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from alexnet_server.machine import configure_allocator
from alexnet_server.models.variants import VARIANTS, layers_of
from alexnet_train import checkpoint
from alexnet_train.config import RECIPES, Config, config_from
from alexnet_train.data.dataset import DatasetError, Split, first_classes, open_split
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.draws import Draws
from alexnet_train.network.fold import serving_weights
from alexnet_train.run.augment import SIDE, Augmenter, Colour
from alexnet_train.run.start import repository_weights, weight_file

CHUNK = 128
SELECTION = 1500
"""Held-out images whose ten views are kept, for choosing and for temperatures: a tenth of the crops."""
LEVELS = 255
CELLS = 13
"""Side of a crop's conv5; the whole image's has 15, which leaves three offsets each way."""
OFFSETS = [(top, left) for top in range(3) for left in range(3)]
TEN_OFFSETS = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
"""The windows that stand for the paper's four corners and centre."""


def load_convolutions(path: Path) -> tuple[AlexNet, Config]:
    """The convolutions of stage one as they will be served: on mean-subtracted grey levels.

    Batch norm is folded in, and the weights are bfloat16 where the recipe trained so; that is a third faster
    than the training network in evaluation mode. ``path`` is a checkpoint, or a model repository.
    """
    if path.is_dir():
        config = RECIPES["tiny-convolutions"]
        folded = {n: torch.from_numpy(t) for n, t in repository_weights(path).items()}
    else:
        state = checkpoint.load(path)
        config = config_from(state["config"])
        tensors = serving_weights(checkpoint.serving_state(state), config)
        folded = {n: torch.from_numpy(t) for n, t in tensors.items()}
    network = AlexNet(VARIANTS[config.variant], 1, hidden=8, constant_lrn=config.constant_lrn).eval()
    with torch.no_grad():
        for name in (name for name in layers_of(network.variant) if name.startswith("conv")):
            layer = network.layer(name)
            layer.weight.copy_(folded[f"{name}.weight"])
            assert layer.bias is not None
            layer.bias.copy_(folded[f"{name}.bias"])
    dtype = torch.bfloat16 if config.bfloat16 else torch.float32
    return network.to(dtype=dtype, memory_format=torch.channels_last), config  # type: ignore[call-overload]


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
        # (N, top, left, channels, cells, cells), a view: only wanted windows are copied and pooled.
        places = conv5.permute(0, 2, 3, 1).unfold(1, CELLS, 1).unfold(2, CELLS, 1)
        top, left = torch.tensor(OFFSETS)[offsets].unbind(-1)
        wanted = places[torch.arange(len(wholes))[:, None], top, left]
        return self._levels(self._pooled(wanted.flatten(0, 1)))

    def _conv5(self, x: Tensor) -> Tensor:
        dtype = self.network.layer("conv1").weight.dtype
        return self.network.conv5_maps(x.to(dtype=dtype, memory_format=torch.channels_last))

    def _pooled(self, conv5: Tensor) -> Tensor:
        return self.network.pooled5(conv5).float()

    def _levels(self, pooled: Tensor) -> NDArray[np.uint8]:
        levels = (pooled / self.scale[:, None, None]).round().clamp(0, LEVELS)
        return levels.to(torch.uint8).flatten(1).numpy()


def extract(init: Path, data: Path, out: Path, crops: int, windows: int, *, alternate: bool = False) -> None:
    """Write pool5 of random views of the training images and of ten views of held-out ones.

    ``train-K.npy`` (96,000 x 9,216 uint8) for K < ``crops``; ``windows.npy`` with ``windows`` rows an image;
    ``held_out.npy`` and ``held_out_windows.npy``, ten rows an image. With ``alternate`` even images have
    crops alone and odd ones windows, which halves the time.

    Resumable by whole files; a file that was cut short is computed again. Two processes, one with crops and
    one with windows, may share the work once the held-out files are there.

    Raises:
        DatasetError: the dataset was not prepared whole, or ``out`` holds features of something else.
    """
    configure_allocator(keep_all=True)
    network, config = load_convolutions(init)
    split = first_classes(open_split(data / "train"), config.classes)
    if split.statistics is None:
        raise DatasetError(f"{data}/train: no statistics; prepare it again")
    crop, whole = (_augmenter(split, config, side) for side in (VARIANTS[config.variant].crop, SIDE))
    out.mkdir(parents=True, exist_ok=True)
    pool5 = Pool5(network, config)
    count = len(split.labels) - config.held_out
    last = count + min(SELECTION, config.held_out)
    pool5.fix_scale(crop.centre(_rows(split.images, 0, CHUNK)))
    facts = {
        "count": count,
        "held_out": last - count,
        "alternate": alternate,
        "classes": config.classes,
        "init_sha256": _sha256(weight_file(init) if init.is_dir() else init),
    }
    pool5.scale = _described(out, facts, pool5.scale)
    held_out = [_rows(split.images, i, min(i + 16, last)) for i in range(count, last, 16)]
    _write(out / "held_out.npy", (pool5.crops(crop.ten(chunk)) for chunk in held_out), (last - count) * 10)
    ten = ten_windows(pool5, whole, held_out)
    _write(out / "held_out_windows.npy", ten, (last - count) * 10)
    even, odd = (range(start, count, 2) if alternate else range(count) for start in (0, 1))
    for k in range(crops):
        drawn = (
            pool5.crops(crop.random(chunk, Draws(config.seed + 1 + k, i, torch.arange(len(chunk)))))
            for i, chunk in _chunks(split, even)
        )
        _write(out / f"train-{k}.npy", drawn, len(even))
    if windows:
        cut = random_windows(pool5, whole, _chunks(split, odd), windows)
        _write(out / "windows.npy", cut, len(odd) * windows)


def random_windows(
    pool5: Pool5, whole: Augmenter, chunks: Iterator[tuple[int, Tensor]], windows: int
) -> Iterator[NDArray[np.uint8]]:
    """``windows`` windows an image at random offsets; those of one image share mirror and colours."""
    for number, chunk in chunks:
        draws = Draws(pool5.config.seed - 1, number, torch.arange(len(chunk)))
        offsets = (draws.uniform("window", windows) * len(OFFSETS)).long()
        yield pool5.windows(whole.random(chunk, draws), offsets)


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


def _described(out: Path, facts: dict[str, object], scale: Tensor) -> Tensor:
    """Write ``out/meta.json``, or check the one that is there; the scale on record, which all files share."""
    path = out / "meta.json"
    if path.exists():
        known = json.loads(path.read_text())
        if differing := [name for name, value in facts.items() if known.get(name) != value]:
            raise DatasetError(
                f"{out} holds features of another run ({', '.join(differing)} differ); "
                "give another --out, or remove it"
            )
        return torch.tensor(known["scale"])
    path.write_text(json.dumps({**facts, "scale": scale.tolist()}))
    return scale


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _chunks(split: Split, images: range) -> Iterator[tuple[int, Tensor]]:
    """The images of these indices, a chunk at a time, with the chunk's number."""
    for number, start in enumerate(range(0, len(images), CHUNK)):
        part = images[start : start + CHUNK]
        yield number, _rows(split.images, part.start, part.stop, part.step)


def _rows(images: NDArray[np.uint8], start: int, stop: int, step: int = 1) -> Tensor:
    """A copy of images start..stop: torch does not take read-only memory."""
    return torch.from_numpy(images[start:stop:step].copy())


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
