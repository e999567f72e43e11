"""Trying converted weights on three photos whose answers are known, before anything is written.

The five likeliest labels of each must name what is on it. That would not reveal swapped colour channels,
nor cat labels that are one class off, so the network must also find the right labels likelier than it does
with its channels the other way round, and than with its classes shifted by one. A wrong mean changes little
in any answer; ``check_mean`` looks at the mean itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from alexnet_server.models.export.run import runner
from alexnet_server.models.export.weights import ServingWeights, serving_model
from alexnet_server.models.public.errors import WeightsError
from alexnet_server.photos import FOLDER
from alexnet_server.preprocess import prepare

RIGHT = {
    "coffee.jpg": ("n07920052",),
    "cat.jpg": ("n02123045", "n02123159", "n02123394", "n02123597", "n02124075"),
    "rocket.jpg": ("n03773504", "n04008634", "n04266014"),
}
"""Espresso; tabby, tiger, Persian, Siamese and Egyptian cat; missile, projectile and space shuttle."""
TOP = 5
_MARGIN = np.log(2.0)
"""How much likelier, in all, the right labels must be under a fault before the fault is believed."""
_IMAGENET_MEAN = np.array([122.7, 116.7, 104.0])
_MEAN_TOLERANCE = 25.0

Probabilities = NDArray[np.float32]


def prove(weights: ServingWeights) -> list[str]:
    """Classify the photos; one line of answers for each, and what they prove.

    Args:
        weights: as they will be served, channels in RGB order.

    Raises:
        WeightsError: the answers show that something is wrong with the weights or their conversion.
        RuntimeError: no engine is installed.
    """
    images = np.stack([prepare((FOLDER / name).read_bytes()) for name in RIGHT])
    found = _classify(weights, images)
    if not np.isfinite(found).all():
        raise WeightsError(f"{weights.name}: its answers are not numbers: the file is damaged")
    lines = [f"{name}: {_told(row, weights.labels)}" for name, row in zip(RIGHT, found, strict=True)]
    right = _right(weights.labels)
    if not all(right):
        return [*lines, "not checked: the things in the photos are not among its classes"]
    _check_top(weights, found, right, lines)
    swapped = weights.tensors["conv1.weight"][:, ::-1]
    other = replace(weights, tensors={**weights.tensors, "conv1.weight": np.ascontiguousarray(swapped)})
    likelihood = _likelihood(found, right)
    if _likelihood(_classify(other, images), right) > likelihood + _MARGIN:
        raise WeightsError(
            f"{weights.name}: the photos are recognised better with red and blue exchanged: its channels are "
            "in another order than its format says"
        )
    for shift in (-1, 1):
        if _likelihood(np.roll(found, shift, axis=1), right) > likelihood + _MARGIN:
            raise WeightsError(
                f"{weights.name}: its classes are one place off; give their order with --labels"
            )
    return [*lines, "all three photos are recognised"]


def check_mean(mean: NDArray[np.float32], source: str) -> None:
    """Is it a mean of photos: RGB, in levels 0..255?

    Args:
        mean: (3,) or (3, 256, 256).
        source: where it comes from, for messages.

    Raises:
        WeightsError: it is in another unit, or red and blue are exchanged.
    """
    channels = mean.reshape(3, -1).mean(axis=1)
    if not np.isfinite(channels).all() or np.abs(channels - _IMAGENET_MEAN).max() > _MEAN_TOLERANCE:
        told = ", ".join(f"{value:.1f}" for value in channels)
        raise WeightsError(f"{source}: the mean of red, green and blue is {told}; photos have 123, 117, 104")
    if channels[0] < channels[2]:
        raise WeightsError(
            f"{source}: the mean has more blue than red: its channels are exchanged (Caffe: BGR)"
        )


def _classify(weights: ServingWeights, images: NDArray[np.uint8]) -> Probabilities:
    run = runner(serving_model(weights, "center"))
    return np.concatenate([run(["probabilities"], image[None])[0] for image in images])


def _right(labels: Sequence[tuple[str, str]]) -> list[list[int]]:
    """For each photo, the classes that name what is on it."""
    return [[i for i, (wnid, _) in enumerate(labels) if wnid in wanted] for wanted in RIGHT.values()]


def _told(row: NDArray[np.float32], labels: Sequence[tuple[str, str]]) -> str:
    best = np.argsort(-row)[:TOP]
    return "; ".join(f"{labels[i][1].split(',')[0]} {row[i]:.2f}" for i in best)


def _check_top(
    weights: ServingWeights, found: Probabilities, right: Sequence[Sequence[int]], lines: Sequence[str]
) -> None:
    """All three among the five likeliest labels; a network of fewer classes may miss one."""
    missed = [
        line
        for line, row, classes in zip(lines, found, right, strict=True)
        if not set(classes) & set(np.argsort(-row)[:TOP].tolist())
    ]
    if len(missed) > (0 if len(weights.labels) >= 1000 else 1):
        raise WeightsError(
            f"{weights.name}: it does not recognise the photos ({' | '.join(missed)}): the weights, their "
            "labels or their conversion are wrong"
        )


def _likelihood(found: Probabilities, right: Sequence[Sequence[int]]) -> float:
    """The logarithm of the right labels' probability, summed over the photos."""
    return float(
        sum(np.log(row[list(classes)].sum() + 1e-12) for row, classes in zip(found, right, strict=True))
    )
