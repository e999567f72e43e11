"""The last layers of a network learned on its features: fc8 alone, or fc7 with it where that is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from alexnet_server.models.export.calibrate import percentile_range
from alexnet_server.models.export.layers import Range
from alexnet_server.models.variants import LAYERS, VARIANTS, Variant
from alexnet_train.finetune.base import Base
from alexnet_train.finetune.errors import FinetuneError
from alexnet_train.finetune.learn import Array, Fit, Head, HeldOut, Indices, choose

LOOKED_AT = 300
"""Photos whose views give the ranges of what fc7 computes."""


@dataclass(frozen=True)
class Lesson:
    """What is learned from.

    ``features`` are float32 (N, views, hidden), fc7 of every photo, ``labels`` (N,) below ``classes``;
    ``learned`` are the photos that the last fit is of, ``splits`` those that are learned from, and held out.
    """

    features: Array
    labels: NDArray[np.int64]
    classes: int
    learned: Indices
    splits: Sequence[tuple[Indices, Indices]]


@dataclass(frozen=True)
class Learned:
    """New layers.

    ``held`` are held-out photos as layers see them that did not learn from them; ``before`` are the tensors
    of the layers before fc8 that are new, ``ranges`` those of int8 that hang on them; ``told`` says what
    became of these layers, in a sentence.
    """

    held: HeldOut
    head: Head
    before: Mapping[str, Array] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    told: str = ""

    @property
    def tensors(self) -> dict[str, Array]:
        """Everything new, by the names of the weight file."""
        return {**self.before, "fc8.weight": self.head.weight, "fc8.bias": self.head.bias}

    @property
    def names(self) -> str:
        """The layers."""
        first = min((name.partition(".")[0] for name in self.before), default="fc8", key=LAYERS.index)
        return {"fc8": "fc8", "fc7": "fc7 and fc8"}.get(first, f"{first} to fc8")


def check_torch(option: str) -> None:
    """Is there what more than fc8 is trained with?

    Raises:
        FinetuneError: no, and ``option`` asks for it.
    """
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise FinetuneError(f"{option} needs PyTorch: pip install '.[train]'") from None


def variant_of(base: Base) -> Variant:
    """Which network a base is, as far as training its layers asks.

    Raises:
        FinetuneError: it is none whose layers can be trained on.
    """
    name = base.repository.card.get("variant")
    if name not in VARIANTS:
        raise FinetuneError(
            f"--deep trains on networks of the variants {', '.join(VARIANTS)}, and {base.repository.path} is "
            f"of {name!r}: leave --deep out"
        )
    return VARIANTS[name]


def learn_fc8(lesson: Lesson) -> Learned:
    """Fit fc8 on fc7 as it is."""
    fit = Fit(lesson.features, lesson.labels, lesson.classes)
    held = choose(fit, lesson.splits)
    return Learned(held, fit.head(fit.solve(lesson.learned, held.penalty)))


def learn_fc7(lesson: Lesson, inputs: Array, fc7: Mapping[str, Array], seed: int) -> Learned:
    """Train fc7 and fc8, from the base's fc7 and a fitted fc8 on; fc8 alone where that is no worse.

    Args:
        lesson: what is learned from.
        inputs: float32 (N, views, hidden), what fc7 reads.
        fc7: the base's tensors, ``fc7.weight`` or its two factors, and ``fc7.bias``.
        seed: of order and dropout.
    """
    from alexnet_train.finetune.hidden import Views, stop_early, train

    fit = Fit(lesson.features, lesson.labels, lesson.classes)
    alone = choose(fit, lesson.splits)
    head, *heads = (
        fit.head(fit.solve(rows, alone.penalty))
        for rows in (lesson.learned, *(learned for learned, _ in lesson.splits))
    )
    views = Views(inputs, lesson.labels)
    held, epochs = stop_early(views, lesson.splits, heads, fc7, alone, seed)
    count = len(alone.labels)
    if not epochs:
        told = f"fc7 stays as it was: no more of the {count} held-out photos are right with it than by chance"
        return Learned(alone, head, told=told)
    tensors, head = train(views, lesson.learned, head, fc7, epochs, seed)
    told = (
        f"fc7 is trained too, in {epochs} epochs: {held.right} of {count} held-out photos are right, "
        f"{alone.right} with fc8 alone"
    )
    return Learned(held, head, tensors, _ranges(inputs, tensors), told)


def _ranges(inputs: Array, fc7: Mapping[str, Array]) -> dict[str, Range]:
    """What fc7's parts and fc8 read, by the names of ``alexnet_server.models.export.layers.Int8.ranges``."""
    x = inputs[:: max(1, len(inputs) // LOOKED_AT)].reshape(-1, inputs.shape[-1])
    ranges = {}
    if "fc7.weight" in fc7:
        x = x @ fc7["fc7.weight"].T
    else:
        x = x @ fc7["fc7.weight.right"].T
        ranges["fc7.left.in"] = percentile_range(x)
        x = x @ fc7["fc7.weight.left"].T
    return {**ranges, "fc8.in": percentile_range(np.maximum(x + fc7["fc7.bias"], 0))}
