"""The shipped default: both stages joined, calibrated, quantised, compared with PyTorch and exported.

alexnet-train release --convolutions runs/convolutions/last.pt --classifier runs/classifier/last.pt
--features runs/features --data data/tiny --card training/cards/tiny-imagenet.json
--repository model_repository
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet_server.models.export.calibrate import calibrate
from alexnet_server.models.export.graph import View
from alexnet_server.models.export.quantize import fit
from alexnet_server.models.export.weights import ServingWeights
from alexnet_server.models.export.write import Plan, Reference, export, packed_weights
from alexnet_server.models.variants import VARIANTS
from alexnet_server.photos import PHOTO as GOLDEN_PHOTO
from alexnet_server.preprocess import prepare
from alexnet_train import checkpoint
from alexnet_train.data.dataset import Split, first_classes, open_split
from alexnet_train.data.enlarge import enlarge
from alexnet_train.evaluate.calibration import fit_temperature
from alexnet_train.export.checkpoints import card_from
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.run.augment import Augmenter, Colour
from alexnet_train.two_stage.assemble import join
from alexnet_train.two_stage.classifier import Classifier, ClassifierConfig, Features, view_logits

CALIBRATION_IMAGES = 300


def temperatures(classifier: Path, features: Path, labels: NDArray[np.int64]) -> dict[View, float]:
    """The temperature of each view mode, fitted on the held-out training images."""
    state, cache = checkpoint.load(classifier), Features(features)
    config = ClassifierConfig(**state["config"])
    model = Classifier(len(cache.scale), len(state["model"]["fc8.bias"]), config)
    model.load_state_dict(state["model"])
    crops, windows = (view_logits(model, cache, config, held).numpy() for held in cache.held_out)
    own = labels[cache.count :][: len(crops)]
    views: dict[View, NDArray[np.float32]] = {"center": crops[:, 8:9], "ten": crops, "dense": windows}
    return {view: fit_temperature(logits, own) for view, logits in views.items()}


@torch.inference_mode()
def reference(weights: ServingWeights, split: Split) -> Reference:
    """What PyTorch makes of eight held-out images with the very weights that are exported."""
    network = AlexNet(weights.variant, len(weights.labels), dropout=0.0).eval()
    network.load_state_dict({name: torch.tensor(tensor) for name, tensor in weights.tensors.items()})
    images = enlarge(split.images[-8:]) if split.size != 256 else split.images[-8:]
    assert split.statistics is not None
    statistics = replace(split.statistics, mean=weights.mean.tolist())
    augmenter = Augmenter(256, weights.variant.crop, statistics, Colour(), torch.device("cpu"))
    views = augmenter.ten(torch.from_numpy(np.ascontiguousarray(images)))
    logits = network(views).reshape(len(images), 10, -1)
    by_view: dict[View, NDArray[np.float32]] = {
        "center": (logits[:, 8] / weights.temperature["center"]).softmax(1).numpy(),
        "ten": (logits / weights.temperature["ten"]).softmax(2).mean(1).numpy(),
    }
    return Reference(images, by_view)


def release(
    convolutions: Path,
    classifier: Path,
    features: Path,
    data: Path,
    card: Path,
    repository: Path,
    *,
    name: str,
    bottleneck: bool,
) -> None:
    """Write the model repository of the two stages' network.

    Args:
        convolutions: stage one's checkpoint.
        classifier: stage two's checkpoint.
        features: stage two's cache, for the temperatures.
        data: prepared dataset, for classes, mean and calibration images.
        card: JSON with the fields of ``Card``.
        repository: where to.
        name: of the weights.
        bottleneck: begin the graph with the 64-pixel bottleneck of the training images (design, section 2).

    Raises:
        CardError: the card's JSON is of no card.
        ExportError: the graph is not the network.
    """
    told = card_from(card)
    split = first_classes(open_split(data / "train"), Features(features).classes)
    assert split.statistics is not None
    tensors, factors = join(convolutions, classifier)
    weights = ServingWeights(
        name,
        VARIANTS["2012"],
        tensors,
        np.array(split.statistics.mean, np.float32),
        tuple(split.classes),
        source_size=split.size if bottleneck else None,
        temperature=temperatures(classifier, features, split.labels),
    )
    quantised = fit(weights.served(), factors)
    served = packed_weights(weights, quantised)
    photos = enlarge(split.images[:CALIBRATION_IMAGES])
    plan = Plan(
        weights,
        told,
        quantised,
        ranges=calibrate(served, photos),
        golden=(GOLDEN_PHOTO.name, prepare(GOLDEN_PHOTO.read_bytes())),
        reference=reference(replace(served, source_size=None), split) if not bottleneck else None,
    )
    export(plan, repository)
