"""What the service answers, and how rows of an engine become it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alexnet_server.batching.scheduler import Row
from alexnet_server.engines import Model, Outputs


@dataclass(frozen=True, slots=True)
class Prediction:
    """One of the labels of a photo."""

    rank: int
    """From 1."""
    index: int
    """In the model's output."""
    wnid: str
    label: str
    score: float
    """Probability."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a photo's time went, in seconds."""

    decode_s: float
    queue_s: float
    """Waiting for a decoder and for the engine."""
    engine_s: float

    @property
    def stages(self) -> tuple[tuple[str, float], ...]:
        """Names and seconds, in order."""
        return (("decode", self.decode_s), ("queue", self.queue_s), ("engine", self.engine_s))


@dataclass(frozen=True, slots=True)
class Classification:
    """A photo's labels, best first."""

    model: str
    version: str
    predictions: tuple[Prediction, ...]
    timing: Timing


@dataclass(frozen=True, slots=True)
class FeatureVector:
    """A photo's features."""

    model: str
    version: str
    values: NDArray[np.float32]
    """`[4096]`, fc7 after ReLU of the centre view."""
    timing: Timing


def classification(model: Model, row: Row, timing: Timing, top_k: int) -> Classification:
    """The `top_k` likeliest labels of a row; of equal ones the first."""
    order = np.argsort(-row.probabilities, kind="stable")[:top_k]
    predictions = tuple(
        Prediction(rank, label.index, label.wnid, label.words, float(row.probabilities[label.index]))
        for rank, label in enumerate((model.labels[i] for i in order), 1)
    )
    return Classification(model.name, model.version, predictions, timing)


def stack(rows: Sequence[Row], *, features: bool) -> Outputs:
    """N rows as `probabilities` `[N, classes]` and, if asked for, `features` `[N, 4096]`."""
    hidden = [row.features for row in rows if row.features is not None]
    return Outputs(np.stack([row.probabilities for row in rows]), np.stack(hidden) if features else None)
