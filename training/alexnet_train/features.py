"""Stage two's input: pool5 of random crops of every training image, computed once and kept as uint8.

The convolutions are most of a step's arithmetic and stage one has trained them; with pool5 on disk the fully
connected layers train hundreds of times faster than with the convolutions in the loop.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from alexnet_train import checkpoint
from alexnet_train.augment import Augmenter, Colour
from alexnet_train.config import Config, config_from
from alexnet_train.dataset import DatasetError, open_split
from alexnet_train.draws import Draws
from alexnet_train.network import AlexNet
from alexnet_train.variants import VARIANTS

CHUNK = 128
SELECTION = 1500
"""Held-out images whose ten views are kept, for choosing and for temperatures: a tenth of the crops."""
LEVELS = 255


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
    """Computes pool5 as uint8 with one scale per channel, fixed by the first batch it sees."""

    def __init__(self, network: AlexNet, config: Config, scale: Tensor | None = None) -> None:
        self.network, self.config, self.scale = network, config, scale

    @torch.inference_mode()
    def __call__(self, crops: Tensor) -> NDArray[np.uint8]:
        """Crops (N, 3, 224, 224), mean subtracted, to (N, channels * 36) uint8."""
        x = (crops / self.config.input_scale).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bfloat16):
            pooled = self.network.pool5(x).float()
        if self.scale is None:
            # A unit-variance channel seldom passes 6; what lies above the batch's maximum is clipped.
            self.scale = pooled.amax(dim=(0, 2, 3)).clamp(min=1e-3) / LEVELS
        levels = (pooled / self.scale[:, None, None]).round().clamp(0, LEVELS)
        return levels.to(torch.uint8).flatten(1).numpy()


def extract(init: Path, data: Path, out: Path, crops: int) -> None:
    """Write ``out/train-K.npy`` (96,000 x 9,216 uint8) for K < crops and ``out/held_out.npy`` (ten views).

    Resumable by whole files; a file that was cut short is computed again.
    """
    split = open_split(data / "train")
    if split.statistics is None:
        raise DatasetError(f"{data}/train: no statistics; prepare it again")
    network, config = load_convolutions(init, len(split.classes))
    augmenter = Augmenter(
        split.size,
        VARIANTS[config.variant].crop,
        split.statistics,
        Colour(config.colour_pca),
        torch.device("cpu"),
    )
    out.mkdir(parents=True, exist_ok=True)
    pool5 = Pool5(network, config)
    count = len(split.labels) - config.held_out
    pool5(augmenter.centre(_rows(split.images, 0, CHUNK)))
    assert pool5.scale is not None
    for crop in range(crops):
        chunks = (_rows(split.images, i, min(i + CHUNK, count)) for i in range(0, count, CHUNK))
        drawn = (
            pool5(augmenter.random(chunk, Draws(config.seed + 1 + crop, i, torch.arange(len(chunk)))))
            for i, chunk in enumerate(chunks)
        )
        _write(out / f"train-{crop}.npy", drawn, count)
    last = count + min(SELECTION, config.held_out)
    chunks = (_rows(split.images, i, min(i + 16, last)) for i in range(count, last, 16))
    _write(out / "held_out.npy", (pool5(augmenter.ten(chunk)) for chunk in chunks), (last - count) * 10)
    meta = {"scale": pool5.scale.tolist(), "count": count, "held_out": last - count, "init": str(init)}
    (out / "meta.json").write_text(json.dumps(meta))


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
    with tqdm(total=count, desc=path.name, unit="crop", mininterval=10) as bar:
        for chunk in chunks:
            if file is None:
                shape = (count, chunk.shape[1])
                file = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            file[start : start + len(chunk)] = chunk
            start += len(chunk)
            bar.update(len(chunk))
    temporary.replace(path)
