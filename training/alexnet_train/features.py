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
from alexnet_train.augment import SIDE, Augmenter, Colour
from alexnet_train.config import Config
from alexnet_train.dataset import DatasetError, open_split
from alexnet_train.loop import generator_at
from alexnet_train.network import AlexNet
from alexnet_train.variants import VARIANTS

CHUNK = 128
LEVELS = 255


def load_convolutions(path: Path, classes: int) -> tuple[AlexNet, Config]:
    """The convolutions of a stage-one checkpoint in a network at the variant's full crop, evaluation mode."""
    state = checkpoint.load(path)
    config = Config(**state["config"])
    network = AlexNet(
        VARIANTS[config.variant], classes, batch_norm=True, hidden=8, constant_lrn=config.constant_lrn
    )
    kept = {n: t for n, t in state["model"].items() if "conv" in n}
    network.load_state_dict(network.state_dict() | kept)
    return network.eval().to(memory_format=torch.channels_last), config  # type: ignore[call-overload]


def ten_views(augmenter: Augmenter, images: Tensor) -> Tensor:
    """Four corners, centre and their mirrors of (N, S, S, 3) uint8: (10 N, 3, w, w) float32, image-major."""
    far = SIDE - augmenter.window
    views = []
    for top, left in ((0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2)):
        offsets = torch.full((2, len(images)), 0)
        offsets[0], offsets[1] = top, left
        crop = augmenter.cut(images, offsets[0], offsets[1]) - augmenter.mean
        views += [crop, crop.flip(2)]
    return torch.stack(views, 1).flatten(0, 1).permute(0, 3, 1, 2)


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
    pool5(augmenter.centre(torch.from_numpy(split.images[:CHUNK].copy())))
    assert pool5.scale is not None
    meta = {"scale": pool5.scale.tolist(), "count": count, "held_out": config.held_out, "init": str(init)}
    (out / "meta.json").write_text(json.dumps(meta))
    held_out = torch.from_numpy(split.images[count : count + config.held_out].copy())
    views = (pool5(ten_views(augmenter, chunk)) for chunk in torch.split(held_out, CHUNK // 8))
    _write(out / "held_out.npy", views, config.held_out * 10)
    for crop in range(crops):
        generator = generator_at(config.seed + 1 + crop, 0, torch.device("cpu"))
        images = (
            torch.from_numpy(split.images[i : min(i + CHUNK, count)].copy()) for i in range(0, count, CHUNK)
        )
        _write(
            out / f"train-{crop}.npy", (pool5(augmenter.random(chunk, generator)) for chunk in images), count
        )


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
