"""From weights to a model repository: weight file, graphs without weights, configs, labels, model card.

Everything is written beside its place first and checked there: nothing is exported that does not compute what
the caller's own network computes (``Reference``).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet_server.models.export.card import Card, readme
from alexnet_server.models.export.ensemble import write_ensemble
from alexnet_server.models.export.graph import (
    MODEL_NAMES,
    PRECISIONS,
    VIEWS,
    Architecture,
    Precision,
    View,
    serving_graph,
)
from alexnet_server.models.export.layers import Range
from alexnet_server.models.export.quantize import Product, Quantised, pack
from alexnet_server.models.export.run import runner
from alexnet_server.models.export.triton_config import MAX_BATCH, Served, Target, config_text
from alexnet_server.models.export.weights import ServingWeights, serving_model
from alexnet_server.models.variants import LAYERS
from alexnet_server.models.weights import parse_weights, tensor
from alexnet_server.preprocess import PREPROCESS_VERSION

WEIGHT_FILE = "alexnet.weights"
TOLERANCE = 1e-4
"""Largest difference of a probability between the network exported and its graph, both in fp32."""


class ExportError(ValueError):
    """The exported graph is not the network; the message says how far off it is."""


@dataclass(frozen=True)
class Reference:
    """What the network itself says of a few photos.

    ``images`` uint8 (N, 256, 256, 3); ``probabilities`` float32 (N, classes) for each view that it can
    compute, from the weights *as packed*.
    """

    images: NDArray[np.uint8]
    probabilities: Mapping[View, NDArray[np.float32]]


@dataclass(frozen=True)
class Plan:
    """What goes into a repository.

    Attributes:
        weights: as trained; what is served are the weights as ``quantised``.
        quantised: the tensors that the weight file keeps with few levels (``quantize.fit``); none keeps
        float32. card: the model card's contents. views: which models. ranges: calibrated activations; without
        them no int8 graphs are written. golden: a photo as ``prepare`` makes it, uint8 (256, 256, 3), and its
        file name, for the server's self-test. reference: the network's own answers, to be compared.
    """

    weights: ServingWeights
    card: Card
    quantised: Mapping[str, Quantised | Product]
    views: Sequence[View] = VIEWS
    ranges: Mapping[str, Range] | None = None
    golden: tuple[str, NDArray[np.uint8]] | None = None
    reference: Reference | None = None


def packed_weights(weights: ServingWeights, quantised: Mapping[str, Quantised | Product]) -> ServingWeights:
    """The weights as they come back out of the weight file: what is served, what must be evaluated."""
    served = weights.served()
    stored = parse_weights(pack(served, quantised))
    tensors = {name: tensor(stored, name) for name in served if name != "mean"}
    factors = {
        layer: (stored[f"{layer}.weight.left"], stored[f"{layer}.weight.right"])
        for layer in LAYERS
        if f"{layer}.weight.left" in stored
    }
    mean = stored["mean"].reshape(3) if stored["mean"].size == 3 else stored["mean"]
    variant = replace(weights.variant, channel_order="RGB")  # conv1 reads RGB minus the mean by now
    return replace(weights, variant=variant, tensors=tensors, mean=mean, std=None, factors=factors)


def export(plan: Plan, folder: Path) -> None:
    """Write a model repository.

    Args:
        plan: what goes in.
        folder: where to; a repository there is replaced, its other files (unpacked graphs, other models)
        kept.

    Raises:
        ExportError: the graphs do not compute what the reference says, or the disk is full; what was there
        is untouched.
        RuntimeError: there is a reference or a golden photo, and no engine to run them with.
    """
    with replacing_repository(folder, labels_text(plan.weights) if "center" in plan.views else None) as place:
        _write(plan, place)


@contextmanager
def replacing_repository(folder: Path, labels: bytes | None) -> Iterator[Path]:
    """A place beside the repository to write it in; it is moved in when the block ends without an error.

    Args:
        folder: the repository; its other files are kept.
        labels: `labels.txt` of its model `alexnet`, where it has one that `classify` can pass on.

    Raises:
        ExportError: the disk is full or refuses; what was there is untouched.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=_staging_place(folder)) as temporary:
            yield Path(temporary)
            _move_in(Path(temporary), folder)
        if labels is not None:
            write_ensemble(folder, labels)
    except OSError as error:
        raise ExportError(
            f"cannot write {folder}: {error.strerror}; what was there before is intact"
        ) from error


def _move_in(staged: Path, folder: Path) -> None:
    for path in sorted(staged.rglob("*")):
        target = folder / path.relative_to(staged)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)


def _staging_place(folder: Path) -> Path:
    """Where files on their way into ``folder`` wait: beside it, for no server takes them for a model there.

    Inside it where only it can be written, or is another file system (a container's volume): then moving
    into place is no copy that may break off.
    """
    beside = folder.parent
    inside = os.path.ismount(folder) or (folder.is_dir() and not os.access(beside, os.W_OK))
    return folder if inside else beside


def labels_text(weights: ServingWeights) -> bytes:
    """What `labels.txt` holds."""
    return "".join(f"{wnid}\t{words}\n" for wnid, words in weights.labels).encode()


def _write(plan: Plan, folder: Path) -> None:
    weights = plan.weights
    data = pack(weights.served(), plan.quantised)
    labels = labels_text(weights)
    parameters = {
        "preprocess_version": PREPROCESS_VERSION,
        "weights": weights.name,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "labels_sha256": hashlib.sha256(labels).hexdigest(),
    }
    (folder / WEIGHT_FILE).write_bytes(data)
    runner = _Runner(plan)
    for view in plan.views:
        own = folder / MODEL_NAMES[view]
        (own / "configs").mkdir(parents=True)
        (own / "labels.txt").write_bytes(labels)
        _write_graphs(plan, runner.weights.architecture, view, own, parameters)
        _write_configs(plan, view, own, parameters)
    runner.check()
    card = _card(plan, parameters, len(data), runner)
    (folder / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(readme(card), encoding="utf-8")


class _Runner:
    """The fp32 graphs with the weights as packed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.weights = packed_weights(plan.weights, plan.quantised)

    def probabilities(self, view: View, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (N, 256, 256, 3) -> float32 (N, classes), one by one as memory would have it."""
        run = runner(serving_model(self.weights, view))
        return np.concatenate([run(["probabilities"], image[None])[0] for image in images])

    def check(self) -> None:
        """Compare with the reference."""
        reference = self.plan.reference
        if reference is None:
            return
        for view, expected in reference.probabilities.items():
            found = self.probabilities(view, reference.images)
            worst = float(np.abs(found - expected).max())
            if not worst <= TOLERANCE:
                raise ExportError(
                    f"the exported {view} graph differs from the network by up to {worst:.1e} "
                    f"(allowed: {TOLERANCE:.0e}); nothing was written"
                )

    def golden(self, view: View) -> dict[str, Any]:
        """What a server must find in the golden photo."""
        if self.plan.golden is None:
            return {}
        file, image = self.plan.golden
        row = self.probabilities(view, image[None])[0]
        best = int(row.argmax())
        return {"golden": {"file": file, "index": best, "score": round(float(row[best]), 4)}}


def _card(plan: Plan, parameters: Mapping[str, str], size: int, runner: _Runner) -> dict[str, Any]:
    weights, models = plan.weights, {}
    for view in plan.views:
        models[MODEL_NAMES[view]] = {
            "views": view,
            "temperature": weights.temperature.get(view, 1.0),
            "max_batch_size": MAX_BATCH[view],
            "accuracy": [row for row in plan.card.accuracy if row.get("views") == view],
            **runner.golden(view),
        }
    return {
        "name": weights.name,
        **plan.card.told(),
        "variant": weights.variant.name,
        "classes": len(weights.labels),
        "source_size": weights.source_size,
        "preprocess_version": parameters["preprocess_version"],
        "weights": {"file": WEIGHT_FILE, "bytes": size, "sha256": parameters["weights_sha256"]},
        "labels_sha256": parameters["labels_sha256"],
        "precisions": list(_precisions(plan)),
        "models": models,
    }


def _precisions(plan: Plan) -> tuple[Precision, ...]:
    return tuple(precision for precision in PRECISIONS if precision != "int8" or plan.ranges is not None)


def _write_graphs(
    plan: Plan, architecture: Architecture, view: View, folder: Path, parameters: Mapping[str, str]
) -> None:
    for precision in _precisions(plan):
        graph = serving_graph(
            architecture,
            view,
            precision,
            ranges=plan.ranges,
            temperature=plan.weights.temperature.get(view, 1.0),
            metadata={**parameters, "views": view, "precision": precision},
        )
        (folder / f"graph.{precision}.onnx").write_bytes(graph.SerializeToString(deterministic=True))


def _write_configs(plan: Plan, view: View, folder: Path, parameters: Mapping[str, str]) -> None:
    variant, classes = plan.weights.variant, len(plan.weights.labels)
    served = Served(MODEL_NAMES[view], view, classes, variant.hidden, {**parameters, "views": view})
    (folder / "config.pbtxt").write_text(config_text(served), encoding="utf-8")
    targets: tuple[Target, ...] = ("cpu", "tensorrt")
    for target in targets:
        (folder / "configs" / f"{target}.pbtxt").write_text(config_text(served, target), encoding="utf-8")
