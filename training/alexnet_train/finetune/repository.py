"""The model repository of a new head: the base's stored tensors and graphs, with fc8, labels and card new."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from alexnet_server.models.export.card import readme
from alexnet_server.models.export.graph import View
from alexnet_server.models.export.layers import Range
from alexnet_server.models.export.run import runner
from alexnet_server.models.export.triton_config import MAX_BATCH, Served, Target, config_text
from alexnet_server.models.export.write import TOLERANCE, WEIGHT_FILE, ExportError, replacing_repository
from alexnet_server.models.graphs import Forms, fill
from alexnet_server.models.repository import ModelEntry
from alexnet_server.models.weights import parse_weights
from alexnet_server.photos import PHOTO as GOLDEN_PHOTO
from alexnet_server.photos import golden_image
from alexnet_server.preprocess import PREPROCESS_VERSION
from alexnet_train.evaluate.accuracy import draw_confusion
from alexnet_train.evaluate.calibration import softmax
from alexnet_train.finetune.base import Base, read_graph
from alexnet_train.finetune.errors import FinetuneError
from alexnet_train.finetune.graph import with_classes
from alexnet_train.finetune.learn import Head
from alexnet_train.finetune.ranges import with_ranges
from alexnet_train.finetune.report import Report


@dataclass(frozen=True)
class Finetuned:
    """A base with new last layers.

    ``tensors`` are fc8's and all others that are new, by the names of the weight file; ``ranges`` replace
    the int8 graphs' own; ``temperatures`` by view; ``told`` are entries of the card; ``report`` is what
    held-out photos say.
    """

    base: Base
    classes: Sequence[tuple[str, str]]
    tensors: Mapping[str, NDArray[np.float32]]
    ranges: Mapping[str, Range]
    temperatures: Mapping[str, float]
    told: Mapping[str, Any]
    report: Report


def check_target(base: Base, folder: Path) -> None:
    """May the repository be written there? Asked before the work, not after it.

    Raises:
        FinetuneError: it is the base itself, or holds models that would stay and be of other weights.
    """
    if folder.resolve() == base.repository.path.resolve():
        raise FinetuneError(f"--repository {folder} is the network it starts from: name another folder")
    others = {path.parent.name for path in folder.glob("*/config.pbtxt")} - {"preprocess", "classify"}
    if stay := sorted(others - set(base.repository.models)):
        raise FinetuneError(f"--repository {folder} holds another model, {stay[0]}: name another folder")


def write(new: Finetuned, folder: Path) -> None:
    """Write the repository beside its place, check there that it computes the head, and move it in.

    Raises:
        ExportError: the graphs do not compute the head, or the disk is full.
        FinetuneError: the base's files are damaged or too old.
    """
    data = _weight_file(new)
    labels = "".join(f"{label}\t{words}\n" for label, words in new.classes).encode()
    changed = {
        "weights": re.sub(r"[^\w.-]+", "-", folder.resolve().name),
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "labels_sha256": hashlib.sha256(labels).hexdigest(),
    }
    forms = Forms(parse_weights(data))
    models = {}
    with replacing_repository(folder, labels) as place:
        (place / WEIGHT_FILE).write_bytes(data)
        for name, entry in new.base.repository.models.items():
            models[name] = _write_model(new, entry, place / name, labels, changed, forms)
        card = _card(new, changed, len(data), models)
        text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
        (place / "card.json").write_text(text, encoding="utf-8")
        (place / "README.md").write_text(readme(card), encoding="utf-8")
        names = [label for label, _ in new.classes]
        draw_confusion(new.report.confusion, place / "confusion.png", names)


def _weight_file(new: Finetuned) -> bytes:
    """The base's arrays as they are stored, and the new layers in float32."""
    layers = tuple({f"{name.partition('.')[0]}." for name in new.tensors})
    arrays: dict[str, Any] = {
        key: array for key, array in new.base.arrays().items() if not key.startswith(layers)
    }
    compressed = any(array.dtype == np.int8 for array in arrays.values())
    arrays |= new.tensors
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def _write_model(
    new: Finetuned, entry: ModelEntry, folder: Path, labels: bytes, changed: Mapping[str, str], forms: Forms
) -> dict[str, Any]:
    """One view: graphs of every precision, configs and labels; returns its entry in the card."""
    classes, temperature = len(new.classes), new.temperatures[entry.view]
    (folder / "configs").mkdir(parents=True)
    (folder / "labels.txt").write_bytes(labels)
    for precision in new.base.precisions:
        graph = with_classes(read_graph(entry, precision), classes, temperature, changed)
        if precision == "int8":
            graph = with_ranges(graph, new.ranges)
        (folder / f"graph.{precision}.onnx").write_bytes(graph.SerializeToString(deterministic=True))
        if precision == "fp32":
            golden = _golden(new, entry, fill(graph, forms))
    parameters = {"preprocess_version": PREPROCESS_VERSION, **changed, "views": entry.view}
    view = cast(View, entry.view)
    served = Served(entry.name, view, classes, entry.features, parameters)
    (folder / "config.pbtxt").write_text(config_text(served), encoding="utf-8")
    targets: tuple[Target, ...] = ("cpu", "tensorrt")
    for target in targets:
        (folder / "configs" / f"{target}.pbtxt").write_text(config_text(served, target), encoding="utf-8")
    return {
        "views": entry.view,
        "temperature": temperature,
        "max_batch_size": MAX_BATCH[view],
        "accuracy": [new.report.row(new.base.precision)] if entry.view == "center" else [],
        "golden": golden,
    }


def _golden(new: Finetuned, entry: ModelEntry, model: onnx.ModelProto) -> dict[str, Any]:
    """What a server must find in the golden photo; the centre view is held against the head itself."""
    probabilities, features = runner(model)(["probabilities", "features"], golden_image()[None])
    if entry.view == "center":
        head = Head(new.tensors["fc8.weight"], new.tensors["fc8.bias"])
        expected = softmax(head.logits(features) / np.float32(new.temperatures["center"]))
        worst = float(np.abs(probabilities - expected).max())
        if not worst <= TOLERANCE:
            raise ExportError(
                f"the graph differs from the new head by up to {worst:.1e}; nothing was written"
            )
    row: NDArray[np.float32] = probabilities[0]
    best = int(row.argmax())
    return {"file": GOLDEN_PHOTO.name, "index": best, "score": round(float(row[best]), 4)}


def _card(new: Finetuned, changed: Mapping[str, str], size: int, models: Mapping[str, Any]) -> dict[str, Any]:
    base = new.base.repository.card
    weights = {"file": WEIGHT_FILE, "bytes": size, "sha256": changed["weights_sha256"]}
    return {
        "name": changed["weights"],
        "title": changed["weights"],
        **new.told,
        "accuracy": [new.report.row(new.base.precision)],
        "details": new.report.markdown(),
        "variant": base.get("variant"),
        "classes": len(new.classes),
        "source_size": base.get("source_size"),
        "preprocess_version": PREPROCESS_VERSION,
        "weights": weights,
        "labels_sha256": changed["labels_sha256"],
        "precisions": list(new.base.precisions),
        "models": dict(models),
    }
