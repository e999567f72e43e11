"""Figure 1: a four-layer convolutional net learns several times faster with ReLUs than with tanh units.

alexnet-train figure1 --data data/tiny --out figures

The paper's ran on CIFAR-10; here 32-pixel reductions of a prepared dataset's first classes take its place.
The net is the authors' three convolutions and a fully connected layer (example-layers/layers-18pct.cfg)
without its norms, and without regularisation, as the caption says; each unit's learning rate is the fastest
of a few.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from alexnet_train.data.dataset import DatasetError, Split
from alexnet_train.network.draws import Draws

Unit = Literal["relu", "tanh"]
TARGET = 0.25
"""Training error at which the paper compares (section 3.1)."""


@dataclass(frozen=True)
class Figure1:
    """How the two nets are trained."""

    classes: int = 10
    images: int = 5000
    batch_size: int = 128
    epochs: int = 60
    rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    momentum: float = 0.9
    seed: int = 2012


class FourLayers(nn.Module):
    """Three 5x5 convolutions with overlapping pools and one linear layer: (N, 3, 32, 32) to (N, classes)."""

    def __init__(self, unit: Unit, classes: int, seed: int) -> None:
        super().__init__()
        self.unit = F.relu if unit == "relu" else torch.tanh
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 5, padding=2) for i, o in ((3, 32), (32, 32), (32, 64))
        )
        self.last = nn.Linear(64 * 16, classes)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Images of zero mean and unit variance to logits."""
        x = self.unit(F.max_pool2d(self.convolutions[0](x), 3, 2, ceil_mode=True))
        for convolution in list(self.convolutions)[1:]:
            x = F.avg_pool2d(self.unit(convolution(x)), 3, 2, ceil_mode=True)
        logits: Tensor = self.last(x.flatten(1))
        return logits


def small_images(split: Split, config: Figure1) -> tuple[Tensor, Tensor]:
    """(N, 3, 32, 32) float32, standardised, and int64 (N,): a split's first classes, averaged down.

    Raises:
        DatasetError: the split has too few images of those classes.
    """
    chosen = np.flatnonzero(split.labels < config.classes)[: config.images]
    if len(chosen) < config.batch_size:
        raise DatasetError(f"{len(chosen)} images in the first {config.classes} classes: fewer than a batch")
    factor = split.size // 32
    x = torch.from_numpy(split.images[chosen]).permute(0, 3, 1, 2).float()
    x = F.avg_pool2d(x, factor)
    return (x - x.mean()) / x.std(), torch.from_numpy(split.labels[chosen])


def training_errors(unit: Unit, rate: float, x: Tensor, y: Tensor, config: Figure1) -> list[float]:
    """Training error after each epoch (and before the first), until it is below ``TARGET``."""
    network = FourLayers(unit, config.classes, config.seed)
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=config.momentum)
    errors = [error_of(network, x, y)]
    for epoch in tqdm(range(config.epochs), desc=f"{unit} {rate:g}", mininterval=5):
        order = Draws(config.seed, epoch, torch.arange(len(x))).uniform("order", 1)[:, 0].argsort()
        for batch in torch.split(order, config.batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(network(x[batch]), y[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        errors.append(error_of(network, x, y))
        if errors[-1] <= TARGET or not np.isfinite(loss.item()):
            break
    return errors


@torch.no_grad()
def error_of(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images whose best guess is wrong."""
    wrong: int = sum(
        int((network(part).argmax(1) != labels).sum())
        for part, labels in zip(torch.split(x, 500), torch.split(y, 500), strict=True)
    )
    return wrong / len(x)


def epochs_to_target(errors: Sequence[float]) -> float:
    """Epochs, interpolated, until the training error is ``TARGET``; inf when it never is."""
    for epoch in range(1, len(errors)):
        before, after = errors[epoch - 1], errors[epoch]
        if after <= TARGET:
            return epoch - 1 + (before - TARGET) / (before - after)
    return float("inf")


def figure1(split: Split, out: Path, config: Figure1) -> dict[str, dict[str, object]]:
    """Train both nets, write ``figure-1.png`` and ``figure-1.json`` to ``out``.

    Returns:
        By unit: its fastest ``rate``, the ``epochs`` to 25 % training error, and its ``errors`` by epoch.
    """
    x, y = small_images(split, config)
    best: dict[str, dict[str, object]] = {}
    curves: dict[str, list[float]] = {}
    for unit in ("relu", "tanh"):
        runs = {rate: training_errors(unit, rate, x, y, config) for rate in config.rates}
        rate = min(runs, key=lambda r: (epochs_to_target(runs[r]), runs[r][-1]))
        best[unit] = {"rate": rate, "epochs": epochs_to_target(runs[rate]), "errors": runs[rate]}
        curves[unit] = runs[rate]
    out.mkdir(parents=True, exist_ok=True)
    (out / "figure-1.json").write_text(json.dumps({"config": asdict(config), **best}, indent=1))
    _draw(curves, out / "figure-1.png")
    return best


def _draw(curves: dict[str, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4))
    for unit, style in (("relu", "-"), ("tanh", "--")):
        axes.plot(curves[unit], style, color="black", label={"relu": "ReLU", "tanh": "tanh"}[unit])
    axes.axhline(TARGET, color="grey", lw=0.5)
    axes.set(xlabel="epochs", ylabel="training error rate", ylim=(0, 1))
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
