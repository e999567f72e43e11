"""The time of each operator of a model, as the engines' own profilers tell it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median

import numpy as np

from alexnet_server.engines import Images

_RUNS = 15


def single_images() -> Iterator[Images]:
    """`[1, 256, 256, 3]` of noise, for every run; the first is slower than others."""
    noise = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), np.uint8)
    return iter([noise] * (1 + _RUNS))


def medians(runs: Iterable[Iterable[tuple[str, float]]]) -> dict[str, float]:
    """The median seconds of each operator in their order of execution, of all runs but the first."""
    seconds: dict[str, list[float]] = {}
    for number, run in enumerate(runs):
        for name, took in run if number else ():
            seconds.setdefault(name, []).append(took)
    return {name: median(took) for name, took in seconds.items()}
