"""Whose activation ranges int8 gets: those of the photos, or the base's where they suit the photos better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from alexnet_server.models.export.calibrate import observed_ranges
from alexnet_server.models.export.layers import Range
from alexnet_server.models.export.run import runner
from alexnet_server.preprocess import PhotoError, prepare
from alexnet_train.finetune.base import Base
from alexnet_train.finetune.photos import Photo

FEWEST = 64
"""Photos below which the base's own ranges, of hundreds of images, are the better guess."""
MOST = 300
"""Photos looked at, as for a release."""
JUDGE = 5
"""One photo in so many is not calibrated on, and judges."""

Images = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class Calibration:
    """``ranges`` that replace the base's, none where it keeps its own, and why, in a sentence."""

    ranges: Mapping[str, Range]
    told: str


def calibrate(base: Base, photos: Sequence[Photo], seed: int) -> Calibration:
    """Calibrate int8 on up to 300 photos and keep whichever ranges are nearer to fp32 on a fifth of them.

    Args:
        base: the network; without int8 graphs there is nothing to calibrate.
        photos: files; one that cannot be decoded is passed over.
        seed: of the choice among them.
    """
    if "int8" not in base.precisions:
        return Calibration({}, "")
    images, name = sample(photos, seed), base.centre.weights
    if len(images) < FEWEST:
        few = f"{len(images)} photos are too few to calibrate int8 on ({FEWEST} are needed)"
        return Calibration({}, f"{few}: the ranges of {name} stay")
    judges, learned = images[::JUDGE], [image for i, image in enumerate(images) if i % JUDGE]
    fp32 = base.model("fp32")
    exact = _features(fp32, judges)
    bar = tqdm(learned, desc="int8 ranges", unit="photo", mininterval=1)
    own = observed_ranges(fp32, base.calibration_points(), bar)
    errors = [_error(_features(base.model("int8", ranges), judges), exact) for ranges in (own, {})]
    told = (
        f"on {len(judges)} photos, int8's features differ from fp32's by {errors[0]:.1%} with ranges of the "
        f"photos, {errors[1]:.1%} with those of {name}"
    )
    if errors[0] < errors[1]:
        return Calibration(own, f"int8 has the ranges of the photos: {told}")
    return Calibration({}, f"int8 keeps the ranges of {name}: {told}")


def sample(photos: Sequence[Photo], seed: int) -> list[NDArray[np.uint8]]:
    """Up to 300 of the photos that can be decoded, as ``prepare`` makes them."""
    images: list[NDArray[np.uint8]] = []
    for index in np.random.default_rng(seed).permutation(len(photos)):
        if len(images) == MOST:
            break
        with suppress(PhotoError):  # told when its features are wanted
            images.append(prepare(photos[index].path.read_bytes()))
    return images


def _features(model: onnx.ModelProto, images: Images) -> NDArray[np.float32]:
    run = runner(model)
    return np.concatenate([run(["features"], image[None])[0] for image in images])


def _error(found: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - exact) / max(float(np.linalg.norm(exact)), 1e-12))
