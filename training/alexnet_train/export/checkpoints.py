"""From the checkpoints of ``run`` to a model repository; several become one graph that averages them.

alexnet-train export runs/1/last.pt runs/2/last.pt --repository runs/repository

The 2012 entry averaged the probabilities of five networks, and of seven (Table 2 of the paper).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import compose, helper

from alexnet_server.models.export.card import Card, readme
from alexnet_server.models.export.ensemble import write_ensemble
from alexnet_server.models.export.graph import MODEL_NAMES, VIEWS, View
from alexnet_server.models.export.run import runner
from alexnet_server.models.export.triton_config import MAX_BATCH, Served, config_text
from alexnet_server.models.export.weights import ServingWeights, serving_model
from alexnet_server.models.export.write import (
    TOLERANCE,
    WEIGHT_FILE,
    ExportError,
    Plan,
    Reference,
    export,
    labels_text,
)
from alexnet_server.models.unpack import write_model
from alexnet_server.models.variants import variant_named
from alexnet_server.photos import PHOTO as GOLDEN_PHOTO
from alexnet_server.preprocess import PREPROCESS_VERSION, SIDE, prepare
from alexnet_train import checkpoint
from alexnet_train.checkpoint import CheckpointError
from alexnet_train.config import Config, config_from
from alexnet_train.data.dataset import Statistics
from alexnet_train.network.alexnet import AlexNet, pool5_side
from alexnet_train.network.fold import serving_weights
from alexnet_train.run.augment import Augmenter, Colour, centre_of

LICENCE = "That of the training images and of the code: see LICENSE and LICENSE-WEIGHTS."


class CardError(ValueError):
    """A card's JSON that no card can be made of; the message names the file and the entry."""


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
        CardError: the card's JSON is of no card.
        ExportError: a graph is not the network.
    """
    members = [
        load(path, f"{name}-{i}" if len(paths) > 1 else name, bottleneck) for i, path in enumerate(paths, 1)
    ]
    for path, member in zip(paths, members, strict=True):
        if member.labels != members[0].labels:
            raise CheckpointError(
                f"{path} has other classes than {paths[0]}; only average networks of the same"
            )
    told = card_from(card) if card else plain_card(paths, name)
    golden = GOLDEN_PHOTO.name, prepare(GOLDEN_PHOTO.read_bytes())
    plans = [
        Plan(member, told, {}, golden=golden, reference=reference(path, golden[1], bottleneck))
        for path, member in zip(paths, members, strict=True)
    ]
    if len(plans) == 1:
        export(plans[0], repository)
        for view in VIEWS:  # complete graphs of an earlier export; serving writes them anew
            (repository / MODEL_NAMES[view] / "1/model.onnx").unlink(missing_ok=True)
    else:
        _write_average(plans, name, repository)


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
    if config.activation != "relu":
        raise CheckpointError(
            f"{path} was trained with activation {config.activation}, and the served network has ReLU: "
            "`alexnet-train checkpoints` evaluates it, it cannot be exported"
        )
    if pool5_side(variant, variant.crop) != 6 or variant.without_conv4:
        raise CheckpointError(
            f"{path} is of variant {variant.name}, whose layers the serving graph does not have: "
            "`alexnet-train checkpoints` evaluates it, it cannot be exported"
        )
    if "classes" not in state:
        raise CheckpointError(f"{path} keeps no labels; resume its run for one step, which writes them")
    mean = state["mean"].numpy()
    return ServingWeights(
        name,
        replace(variant, hidden=config.hidden),
        serving_weights(checkpoint.serving_state(state), config),
        np.ascontiguousarray(mean.transpose(2, 0, 1)) if mean.ndim == 3 else mean,
        tuple((wnid, words) for wnid, words in state["classes"]),
        source_size=state["size"] if bottleneck else None,
    )


def card_from(path: Path) -> Card:
    """The card's own entries from a JSON file.

    Raises:
        CardError: not JSON, an entry that no card has, or one that is missing.
    """
    try:
        return Card(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        known = ", ".join(field.name for field in fields(Card))
        raise CardError(
            f"{path}: {str(error).removeprefix('Card.__init__() ')}; a card has {known}"
        ) from error


def plain_card(paths: Sequence[Path], name: str) -> Card:
    """A card that tells no more than the checkpoints know."""
    states = [checkpoint.load(path) for path in paths]
    configs: list[Config] = [config_from(state["config"]) for state in states]
    several = f"The average of {len(paths)} networks. " if len(paths) > 1 else ""
    first = states[0]
    return Card(
        title=name,
        summary=f"{several}Variant {configs[0].variant} of AlexNet, {len(first['classes'])} classes.",
        data=f"Images of {first['size']} pixels; the card does not know where they come from.",
        recipe=" ".join(
            f"{config.recipe}, {state['step']:,} updates of {config.batch_size}, seed {config.seed}."
            for state, config in zip(states, configs, strict=True)
        ),
        licence=LICENCE,
    )


@torch.inference_mode()
def reference(path: Path, photo: NDArray[np.uint8], bottleneck: bool) -> Reference:
    """What the network that was trained, norms and all, says of a photo (256, 256, 3) and of its mirror.

    With ``bottleneck`` the photos are coarse enough to pass through the graph's reduction unchanged.
    """
    state = checkpoint.load(path)
    config = config_from(state["config"])
    network = AlexNet.of(config, len(state["model"]["fc8.bias"])).eval()
    network.load_state_dict(checkpoint.serving_state(state))
    coarse = SIDE // state["size"] if bottleneck else 1
    small = np.ascontiguousarray(np.stack([photo, photo[:, ::-1]])[:, ::coarse, ::coarse])
    none = Statistics([0.0] * 3, np.eye(3).tolist())
    order = network.variant.channel_order
    augmenter = Augmenter(
        small.shape[1], config.window, none, Colour(), torch.device("cpu"), channel_order=order
    )
    augmenter.mean = centre_of(state["mean"], config.window)
    views = augmenter.ten(torch.from_numpy(small)) / config.input_scale
    probabilities = network(views).softmax(1).reshape(2, 10, -1).numpy()
    images = small.repeat(coarse, 1).repeat(coarse, 2)
    return Reference(images, {"center": probabilities[:, 8], "ten": probabilities.mean(1)})


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


def _write_average(plans: Sequence[Plan], name: str, repository: Path) -> None:
    """Complete graphs of every view, with their configs, labels and card, in place of what was there."""
    members = [plan.weights for plan in plans]
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
    models = {view: average([serving_model(member, view) for member in members]) for view in VIEWS}
    for view in ("center", "ten"):
        _check_average(models[view], view, plans)
    for view, model in models.items():
        _write_model(model, view, repository, labels, {**parameters, "views": view}, members[0])
        for graph in (repository / MODEL_NAMES[view]).glob("graph.*.onnx"):
            graph.unlink()
    (repository / WEIGHT_FILE).unlink(missing_ok=True)
    _write_card(plans[0], name, parameters, repository)
    write_ensemble(repository, labels)


def _check_average(model: onnx.ModelProto, view: View, plans: Sequence[Plan]) -> None:
    """Compare with the mean of what the members' own networks say."""
    references = [plan.reference for plan in plans if plan.reference is not None]
    (found,) = runner(model)(["probabilities"], references[0].images)
    expected = np.mean([own.probabilities[view] for own in references], 0)
    worst = float(np.abs(found - expected).max())
    if not worst <= TOLERANCE:
        raise ExportError(f"the average of {view} views differs by up to {worst:.1e}; nothing was written")


def _write_card(plan: Plan, name: str, parameters: dict[str, str], repository: Path) -> None:
    models: dict[str, Any] = {
        MODEL_NAMES[view]: {
            "views": view,
            "temperature": 1.0,
            "max_batch_size": MAX_BATCH[view],
            "accuracy": [],
        }
        for view in VIEWS
    }
    card = {
        "name": name,
        **plan.card.told(),
        "variant": plan.weights.variant.name,
        "classes": len(plan.weights.labels),
        "source_size": plan.weights.source_size,
        "preprocess_version": parameters["preprocess_version"],
        "labels_sha256": parameters["labels_sha256"],
        "precisions": ["fp32"],
        "models": models,
    }
    (repository / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (repository / "README.md").write_text(readme(card), "utf-8")


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
