"""Checkpoints as they will be served: folded weights, centre or ten views, alone or averaged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet_server.models.variants import variant_named
from alexnet_train import checkpoint
from alexnet_train.checkpoint import CheckpointError
from alexnet_train.config import Config, config_from
from alexnet_train.data.dataset import Split, Statistics, with_labels_of
from alexnet_train.evaluate.accuracy import Evaluation
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.fold import serving_weights
from alexnet_train.run.augment import Augmenter, Colour, centre_of

BATCH = 64


@dataclass(frozen=True)
class Served:
    """A network in evaluation mode and the views it takes of (N, size, size, 3) uint8 images."""

    network: AlexNet
    views: Augmenter
    device: torch.device
    classes: list[tuple[str, str]]
    """In the network's order; empty for a checkpoint that keeps no names."""

    @classmethod
    def load(cls, path: Path, size: int, device: torch.device | None = None) -> Served:
        """The network of a checkpoint that ``alexnet-train run`` wrote, for images of ``size`` pixels.

        Raises:
            CheckpointError: unreadable, or without the mean that was subtracted.
        """
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        state = checkpoint.load(path)
        config = config_from(state["config"])
        if "mean" not in state:
            raise CheckpointError(f"{path} keeps no mean; resume its run for one step, which writes it again")
        network = _network(config, checkpoint.serving_state(state)).to(device)
        # The mean goes in through `mean`; no colours are changed here.
        order = variant_named(config.variant).channel_order
        none = Statistics([0.0] * 3, np.eye(3).tolist())
        views = Augmenter(size, config.window, none, Colour(), device, channel_order=order)
        views.mean = centre_of(state["mean"], config.window).to(device)
        classes = [(wnid, words) for wnid, words in state.get("classes", [])]
        return cls(network, views, device, classes)

    @torch.inference_mode()
    def probabilities(self, images: NDArray[np.uint8], ten: bool = False) -> NDArray[np.float32]:
        """(N, S, S, 3) uint8 to (N, classes): the centre view's, or the mean of the ten views'."""
        x = torch.from_numpy(images).to(self.device)
        crops = self.views.ten(x) if ten else self.views.centre(x)
        p = self.network(crops.contiguous(memory_format=torch.channels_last)).softmax(1)
        averaged: NDArray[np.float32] = p.view(len(images), -1, p.shape[1]).mean(1).cpu().numpy()
        return averaged

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, S, S, 3) uint8 to fc7 after ReLU, (N, hidden), of the centre view."""
        crops = self.views.centre(torch.from_numpy(images).to(self.device))
        pooled = self.network.pool5(crops.contiguous(memory_format=torch.channels_last))
        values: NDArray[np.float32] = self.network.hidden_units(pooled).cpu().numpy()
        return values


def _network(config: Config, state: dict[str, Tensor]) -> AlexNet:
    """The folded network: no batch norm, no dropout, inputs in grey levels."""
    weights = serving_weights(state, config)
    network = AlexNet(
        variant_named(config.variant),
        len(weights["fc8.bias"]),
        dropout=0.0,
        window=config.window,
        hidden=config.hidden,
        activation=config.activation,
    )
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return network.eval()


def batches(split: Split, size: int = BATCH) -> Iterator[NDArray[np.uint8]]:
    """The images of a split, some at a time."""
    for start in range(0, len(split.labels), size):
        yield split.images[start : start + size]


def evaluate_checkpoints(paths: Sequence[Path], split: Split, ten: bool) -> dict[str, dict[str, Any]]:
    """Accuracy of each checkpoint on a prepared split and, of several, of the mean of their probabilities.

    Returns:
        ``Evaluation.summary`` by checkpoint path, and under ``ensemble``.

    Raises:
        CheckpointError: one of them is unreadable or has another number of classes than the split.
    """
    results: dict[str, dict[str, Any]] = {}
    total: NDArray[np.float32] = np.zeros((len(split.labels), len(split.classes)), np.float32)
    spent, own, first = 0.0, split, None
    for path in paths:
        served = Served.load(path, split.size)
        if served.network.classes != len(split.classes):
            raise CheckpointError(
                f"{path}: {served.network.classes} classes, the split has {len(split.classes)}; "
                "evaluate it on the data it was trained for (--classes)"
            )
        first = first or served.classes
        if served.classes != first:
            raise CheckpointError(
                f"{path} has other classes than {paths[0]}; only average networks of the same"
            )
        own = with_labels_of(split, first, str(path)) if first else split
        evaluation = _evaluate(served, own, ten)
        results[str(path)] = evaluation.summary()
        total += evaluation.probabilities
        spent += len(split.labels) / evaluation.images_per_s
    if len(paths) > 1:
        joined = Evaluation((total / len(paths)).astype(np.float32), own.labels, len(split.labels) / spent)
        results["ensemble"] = joined.summary()
    return results


def _evaluate(served: Served, split: Split, ten: bool) -> Evaluation:
    began = time.perf_counter()
    parts = [served.probabilities(images, ten) for images in batches(split)]
    return Evaluation(np.concatenate(parts), split.labels, len(split.labels) / (time.perf_counter() - began))
