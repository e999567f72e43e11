"""conv4 to fc8 learned together, or fc8 alone where held-out photos do not gain by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from alexnet_server.models.export.calibrate import observed_ranges
from alexnet_server.models.export.layers import Range
from alexnet_train.finetune.base import Base
from alexnet_train.finetune.calibrate import MOST, sample
from alexnet_train.finetune.layers import Learned, Lesson, variant_of
from alexnet_train.finetune.learn import Array, Fit, Head, HeldOut, choose
from alexnet_train.finetune.maps import Front, Maps
from alexnet_train.finetune.photos import Photo
from alexnet_train.finetune.tail import NORMED, Crops, Tail, Training
from alexnet_train.finetune.views import VIEWS, six_views

EPOCHS = 5
PATIENCE = 2
"""Epochs in a row that do worse before the rest are left out."""


def learn_deep(lesson: Lesson, base: Base, photos: Sequence[Photo], seed: int) -> Learned:
    """Train conv4 to fc8, from the base's layers and a fitted fc8 on; fc8 alone where that is no worse.

    The first split alone tells how long, and whether it helps: what is learned takes minutes.

    Args:
        lesson: what is learned from.
        base: whose layers these are.
        photos: those of the lesson.
        seed: of crops, zooms, order and dropout.

    Raises:
        FinetuneError: there is no room for what conv4 reads.
    """
    fit = Fit(lesson.features, lesson.labels, lesson.classes)
    alone = choose(fit, lesson.splits)
    rows, out = lesson.splits[0]
    before = alone.first(len(out))
    front = Front(base, photos, variant_of(base).crop, seed)
    maps = front.crops(lesson.learned)
    labels = lesson.labels[lesson.learned]
    head = fit.head(fit.solve(rows, alone.penalty))
    some = Crops(maps, labels, np.flatnonzero(np.isin(lesson.learned, rows)))
    held, epochs = stop_early(_training(base, head, some, seed), front.views(out), before)
    head = fit.head(fit.solve(lesson.learned, alone.penalty))
    if not epochs:
        told = (
            f"conv4 to fc7 stay as they were: no more of {len(out)} held-out photos are right with them "
            "than by chance"
        )
        return Learned(alone, head, told=told)
    training = _training(base, head, Crops(maps, labels, np.arange(len(labels))), seed)
    training.epochs(epochs, "all photos")
    tensors = training.tail.tensors()
    told = (
        f"conv4 to fc8 are trained, in {epochs} epochs: {held.right} of {len(out)} held-out photos are "
        f"right, {before.right} with fc8 alone"
    )
    head = Head(tensors.pop("fc8.weight"), tensors.pop("fc8.bias"))
    own = [photos[row] for row in lesson.learned]
    return Learned(held, head, tensors, _ranges(base, tensors, own, seed), told)


def stop_early(training: Training, views: Maps, before: HeldOut) -> tuple[HeldOut, int]:
    """Train until the held-out photos do no better.

    Args:
        training: of what is learned from.
        views: what conv4 reads of the held-out photos.
        before: what fc8 alone makes of them.

    Returns:
        What the layers make of them after the best number of epochs, and that number; 0 and ``before`` where
        chance can explain what is better about it.
    """
    best, epochs = before, 0
    for epoch in range(1, EPOCHS + 1):
        training.epochs(1, f"epoch {epoch} of up to {EPOCHS}")
        logits = training.tail.logits(views)
        if not np.isfinite(logits).all():
            break
        held = replace(before, logits=logits)
        if held.loss < best.loss:
            best, epochs = held, epoch
        if epoch - epochs == PATIENCE:
            break
    return (best, epochs) if best.beats(before) else (before, 0)


def tensors_of(base: Base) -> dict[str, Array]:
    """conv4 to fc7, by the names of the weight file."""
    return {name: tensor for layer in NORMED for name, tensor in base.tensors(layer).items()}


def _training(base: Base, head: Head, crops: Crops, seed: int) -> Training:
    return Training(Tail(variant_of(base), tensors_of(base), head, crops), crops, seed)


def _ranges(base: Base, tensors: Mapping[str, Array], photos: Sequence[Photo], seed: int) -> dict[str, Range]:
    """What the new layers read and compute: of up to 300 photos, of fewer photos in several views."""
    if "int8" not in base.precisions:
        return {}
    points = base.calibration_points()
    points = {name: tensor for name, tensor in points.items() if name.startswith((*NORMED, "fc8"))}
    images, draw = sample(photos, seed), np.random.default_rng(seed)
    each = min(VIEWS, max(1, MOST // len(images)))
    views = [view for image in images for view in six_views(image, draw)[:each]]
    bar = tqdm(views, desc="int8 ranges", unit="view", mininterval=1)
    return observed_ranges(base.model("fp32", tensors=tensors), points, bar)
