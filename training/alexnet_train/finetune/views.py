"""Features of photos in six views each, through the engine and the very graph that serve the network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from alexnet_server.preprocess import SIDE, PhotoError, prepare
from alexnet_train.evaluate.repository import EngineInfer
from alexnet_train.finetune.photos import Photo, Warn

VIEWS = 6
"""The photo as it is served, two zooms, and the mirrors of the three."""
CLOSEST = 0.7
"""Least side of a zoom, as a share of the photo's."""
AT_ONCE = 5
"""Photos in one batch of the engine."""


def six_views(image: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.uint8]:
    """(256, 256, 3) to (6, 256, 256, 3): the photo, two random zooms, and their mirrors."""
    zooms = [_zoomed(image, draw) for _ in range(2)]
    views = np.stack([image, *zooms])
    return np.concatenate([views, views[:, :, ::-1]])


def features(
    infer: EngineInfer, photos: Sequence[Photo], seed: int, warn: Warn, what: str
) -> tuple[list[Photo], NDArray[np.float32]]:
    """The photos that can be decoded, and float32 (N, 6, hidden), fc7 of their views.

    About 100 views a second on two cores: a minute for a thousand photos, so nothing is kept to resume from.

    Args:
        infer: the network, whose features are asked for.
        photos: files.
        seed: of the zooms.
        warn: is told of every photo that is left out.
        what: for the progress bar.
    """
    kept: list[Photo] = []
    parts: list[NDArray[np.float32]] = []
    waiting: list[NDArray[np.uint8]] = []
    for number, photo in enumerate(tqdm(photos, desc=what, unit="photo", mininterval=1)):
        try:
            image = prepare(photo.path.read_bytes())
        except PhotoError as error:
            warn(f"{photo.path} is left out: {error}")
            continue
        kept.append(photo)
        waiting.append(six_views(image, np.random.default_rng([seed, number])))
        if len(waiting) == AT_ONCE:
            parts.append(infer.features(np.concatenate(waiting)))
            waiting.clear()
    if waiting:
        parts.append(infer.features(np.concatenate(waiting)))
    values = np.concatenate(parts) if parts else np.empty((0, 1), np.float32)
    return kept, values.reshape(len(kept), VIEWS, -1) if kept else values[:, None]


def _zoomed(image: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.uint8]:
    side = SIDE * draw.uniform(CLOSEST, 1)
    left, top = draw.uniform(0, SIDE - side, 2)
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box))
