"""From the checkpoints of ``run`` to a model repository; several become one graph that averages them.

alexnet-train export runs/1/last.pt runs/2/last.pt --repository runs/repository

The 2012 entry averaged the probabilities of five networks, and of seven (Table 2 of the paper).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import compose, helper

from alexnet_server.models.export.card import Card
from alexnet_server.models.export.ensemble import write_ensemble
from alexnet_server.models.export.graph import MODEL_NAMES, VIEWS, View
from alexnet_server.models.export.triton_config import Served, config_text
from alexnet_server.models.export.weights import ServingWeights, serving_model
from alexnet_server.models.export.write import Plan, export, labels_text
from alexnet_server.models.unpack import write_model
from alexnet_server.models.variants import variant_named
from alexnet_server.preprocess import PREPROCESS_VERSION
from alexnet_train import checkpoint
from alexnet_train.checkpoint import CheckpointError
from alexnet_train.config import Config, config_from
from alexnet_train.export.fold import serving_weights

LICENCE = "That of the training images and of the code: see LICENSE and LICENSE-WEIGHTS."


def export_checkpoints(
    paths: Sequence[Path], repository: Path, *, name: str, card: Path | None, bottleneck: bool
) -> None:
    """Write a model repository of one checkpoint, or of the average of several.

    One network is written as small graphs and a float32 weight file, several as complete graphs: their
    ``probabilities`` are the mean of the networks', their ``features`` the first network's.

    Args:
        paths: checkpoints that ``run`` wrote, of the same classes.
        repository: where to.
        name: of the weights.
        card: JSON with the fields of ``Card``; without it the recipe is all it tells.
        bottleneck: begin with the reduction to the training images' size (design, section 2).

    Raises:
        CheckpointError: a checkpoint is unreadable, of other classes, or not trained on the served crop.
        ExportError: a graph is not the network.
    """
    members = [
        load(path, f"{name}-{i}" if len(paths) > 1 else name, bottleneck) for i, path in enumerate(paths, 1)
    ]
    for path, member in zip(paths, members, strict=True):
        if member.labels != members[0].labels:
            raise CheckpointError(f"{path}: its classes are not those of {paths[0]}; average like with like")
    if len(members) == 1:
        told = Card(**json.loads(card.read_text())) if card else plain_card(paths[0], name)
        export(Plan(members[0], told, {}), repository)
    else:
        _write_average(members, name, repository)


def load(path: Path, name: str, bottleneck: bool = False) -> ServingWeights:
    """What is served of a checkpoint: folded weights, mean and labels.

    Raises:
        CheckpointError: unreadable, an older one without labels, or trained on windows of another size.
    """
    state = checkpoint.load(path)
    config = config_from(state["config"])
    variant = variant_named(config.variant)
    if config.window != variant.crop:
        raise CheckpointError(
            f"{path} was trained on windows of {config.window} pixels, and {variant.name} serves "
            f"{variant.crop}: its fc6 does not fit; train with --set window={variant.crop}"
        )
    if "classes" not in state:
        raise CheckpointError(f"{path} keeps no labels; resume its run for a step to have them written")
    mean = state["mean"].numpy()
    return ServingWeights(
        name,
        replace(variant, hidden=config.hidden),
        serving_weights(checkpoint.serving_state(state), config),
        np.ascontiguousarray(mean.transpose(2, 0, 1)) if mean.ndim == 3 else mean,
        tuple((wnid, words) for wnid, words in state["classes"]),
        source_size=state["size"] if bottleneck else None,
    )


def plain_card(path: Path, name: str) -> Card:
    """A card that tells no more than the checkpoint knows."""
    state = checkpoint.load(path)
    config: Config = config_from(state["config"])
    return Card(
        title=name,
        summary=f"Variant {config.variant} of AlexNet, {len(state['classes'])} classes.",
        data=f"Images of {state['size']} pixels; what they were, the card does not know.",
        recipe=f"{config.recipe}, {state['step']:,} updates of {config.batch_size}, seed {config.seed}.",
        licence=LICENCE,
    )


def average(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """One graph whose ``probabilities`` are the mean of the models' and whose ``features`` the first's."""
    parts = [
        compose.add_prefix(model, f"network{i}/", rename_inputs=False) for i, model in enumerate(models, 1)
    ]
    outputs = [f"network{i}/probabilities" for i in range(1, len(models) + 1)]
    nodes = [node for part in parts for node in part.graph.node]
    nodes.append(helper.make_node("Mean", outputs, ["probabilities"], "average"))
    nodes.append(helper.make_node("Identity", ["network1/features"], ["features"], "features"))
    graph = helper.make_graph(
        nodes,
        "alexnet-average",
        models[0].graph.input,
        models[0].graph.output,
        [tensor for part in parts for tensor in part.graph.initializer],
    )
    return helper.make_model(graph, opset_imports=models[0].opset_import, ir_version=models[0].ir_version)


def _write_average(members: Sequence[ServingWeights], name: str, repository: Path) -> None:
    """Complete graphs of every view, with their configs and labels."""
    labels = labels_text(members[0])
    digest = hashlib.sha256()
    for member in members:
        for tensor in member.served().values():
            digest.update(tensor.tobytes())
    parameters = {
        "preprocess_version": PREPROCESS_VERSION,
        "weights": name,
        "weights_sha256": digest.hexdigest(),
        "labels_sha256": hashlib.sha256(labels).hexdigest(),
    }
    for view in VIEWS:
        model = average([serving_model(member, view) for member in members])
        _write_model(model, view, repository, labels, {**parameters, "views": view}, members[0])
    write_ensemble(repository, labels)


def _write_model(
    model: onnx.ModelProto,
    view: View,
    repository: Path,
    labels: bytes,
    parameters: dict[str, str],
    first: ServingWeights,
) -> None:
    folder = repository / MODEL_NAMES[view]
    helper.set_model_props(model, {**parameters, "precision": "fp32"})
    write_model(folder / "1/model.onnx", model)
    (folder / "labels.txt").write_bytes(labels)
    served = Served(folder.name, view, len(first.labels), first.variant.hidden, parameters)
    (folder / "config.pbtxt").write_text(config_text(served), encoding="utf-8")
