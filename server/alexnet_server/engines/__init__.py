"""Engines turn uint8 images into probabilities; the batcher feeds them.

An engine serves one or more *models* (`alexnet`, `alexnet_10crop`, ...) on one device. Two kinds: one that
computes in this process and blocks (`Engine`, ONNX Runtime), and one that asks a server which batches by
itself (`RemoteEngine`, Triton).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from alexnet_server.engines.labels import Label

_WARM_VIEWS = 8

Images = NDArray[np.uint8]
"""`[N, 256, 256, 3]`, RGB, as `preprocess.prepare` makes them."""


class Outputs(NamedTuple):
    """What a model says of N images."""

    probabilities: NDArray[np.float32]
    """`[N, classes]`, rows summing to one."""
    features: NDArray[np.float32] | None
    """`[N, 4096]`, fc7 after ReLU of the centre view; None when they were not asked for."""


@dataclass(frozen=True)
class Model:
    """A loaded model, as `/models` and the Open Inference Protocol describe it."""

    name: str
    version: str
    labels: tuple[Label, ...]
    views: int
    """Views of a photo that one row costs: 1 for the centre crop, 10 for ten crops."""
    view_mode: str
    """`center`, `ten` or `dense`: what a request's `views` asks for."""
    max_batch_size: int
    """Rows, from config.pbtxt and nowhere else."""
    features: int
    """Length of a row of `features`."""
    platform: str
    """Triton's word for what runs it: `onnxruntime_onnx`."""
    device: str
    golden: tuple[int, float] | None = None
    """Index and score of the golden photo's best label, from the model card."""
    folder: Path | None = None
    """Its folder in the model repository."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """File, precision, preprocess version, accuracy, sha256, weights: shown by `/models` as they are."""
    profile: Callable[[], Mapping[str, float]] | None = field(default=None, compare=False)
    """Compiles the model once more and measures seconds by operator, in order of execution, for one image.
    It blocks, and does not disturb `infer`. None where the engine does not tell."""


def enough_views(threads: int) -> int:
    """Of an engine on the CPU: 8 views cost as little each as 32, and each thread wants a few."""
    return max(8, 4 * threads)


def few_rows(model: Model) -> int:
    """A batch of several views that warms up an engine and shows what a queue costs."""
    return max(1, min(_WARM_VIEWS // model.views, model.max_batch_size))


def timed_batches(engine: Engine, sizes: Callable[[Model], Iterable[int]]) -> dict[str, tuple[int, float]]:
    """Run batches of these rows, the last one for its time; returns as `Engine.warm_up`."""
    measured = {}
    for name, model in engine.models.items():
        for size in sizes(model):
            start = time.monotonic()
            engine.infer(name, np.zeros((size, 256, 256, 3), np.uint8), features=True)
            measured[name] = size, time.monotonic() - start
    return measured


class EngineFailed(Exception):
    """The engine is beyond repair (a lost device, a dead worker): the process must end."""


class Engine(Protocol):
    """Computes in this process. Its calls block; `concurrency` threads call `infer`."""

    models: Mapping[str, Model]
    device: str
    concurrency: int
    """Batches that it computes at a time."""
    shares_cores: bool
    """True when it computes on the cores that decode photos."""
    enough_views: int | None
    """Views beyond which a larger batch costs no less a view, but more memory and a longer wait; None where
    it always pays."""

    def infer(self, model: str, images: Images, *, features: bool, alone: bool = True) -> Outputs:
        """Run one batch, `[N, 256, 256, 3]` uint8 with N at most the model's `max_batch_size`.

        `alone` says that no other batch is in sight: this one may have all cores.

        Raises:
            EngineFailed: It cannot run again.
            Exception: This batch failed; another may not.
        """

    def warm_up(self) -> Mapping[str, tuple[int, float]]:
        """Run what would be slow the first time.

        Returns:
            Rows and seconds of a batch of several views, by model: a first guess at what a queue costs.
        """

    def close(self) -> None:
        """Free the device. Nothing is called after it."""


class RemoteEngine(Protocol):
    """Asks a server that batches by itself, over the event loop."""

    models: Mapping[str, Model]
    device: str

    async def infer(self, model: str, images: Images, *, features: bool, timeout_s: float) -> Outputs:
        """Run rows `[N, 256, 256, 3]` uint8; raises the error of the table that the server's answer means."""

    async def problem(self) -> str | None:
        """Why it cannot infer at the moment, by trying one row; None when it can."""

    async def close(self) -> None:
        """Hang up."""
