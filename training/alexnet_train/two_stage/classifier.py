"""Stage two: fc6, fc7 and fc8 on cached pool5 features, fc6 and fc7 as products of two factors.

fc6's 9,216 x 4,096 and fc7's 4,096 x 4,096 weights hold nine tenths of the network. Learned as a product
``left @ right`` of rank 384 and 256 they cost a seventh of the arithmetic, overfit less, and ship in a sixth
of the bytes; multiplied out they are ordinary full weights, and that is what the exported graph contains.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from alexnet_server.machine import configure_allocator
from alexnet_train import checkpoint
from alexnet_train.config import Config
from alexnet_train.data.dataset import DatasetError, first_classes, open_split
from alexnet_train.network.alexnet import LAST_NORM_GAIN
from alexnet_train.network.draws import Draws
from alexnet_train.run import log
from alexnet_train.run.held_out import error_rates, mistakes
from alexnet_train.run.loop import DivergedError
from alexnet_train.run.mix import Labels, mixed
from alexnet_train.run.schedule import Schedule

Held = Literal["crops", "windows"]
SIDE = 6
"""Cells of pool5."""


@dataclass(frozen=True)
class ClassifierConfig:
    """Every number of stage two."""

    fc6_rank: int = 384
    fc7_rank: int = 256
    """Ranks of the products; 0: full weights, seven times the arithmetic, to compare with."""
    hidden: int = 4096
    dropout: float = 0.5
    batch_size: int = 256
    epochs: int = 20
    warmup_steps: int = 300
    rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    bfloat16: bool = True
    cutmix_epochs: float = 0.8
    """Share of the epochs in which half of the batches are cut and mixed; the last ones see whole images."""
    seed: int = 2012


class Layer(nn.Module):
    """A linear layer with the batch norm that supplies its bias.

    Its weight is the product ``left @ right`` of that rank, or with rank 0 ``weight``, a full one.
    """

    def __init__(self, inputs: int, rank: int, outputs: int, gain: float, generator: torch.Generator) -> None:
        super().__init__()
        self.rank = rank
        scale = (2 / inputs) ** 0.5
        if rank:
            # He's variance for the product: left keeps the variance that right gives.
            self.right = nn.Parameter(torch.randn(rank, inputs, generator=generator) * scale)
            self.left = nn.Parameter(torch.randn(outputs, rank, generator=generator) * (1 / rank) ** 0.5)
        else:
            self.weight = nn.Parameter(torch.randn(outputs, inputs, generator=generator) * scale)
        self.norm = nn.BatchNorm1d(outputs)
        nn.init.constant_(self.norm.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) to (N, outputs), normed, before the ReLU."""
        x = F.linear(F.linear(x, self.right), self.left) if self.rank else F.linear(x, self.weight)
        return self.norm(x)  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """pool5 (N, 9216) to logits (N, classes): fc6, fc7 (batch norm, ReLU, dropout) and fc8."""

    def __init__(self, inputs: int, classes: int, config: ClassifierConfig) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)
        self.dropout = config.dropout
        self.fc6 = Layer(inputs, config.fc6_rank, config.hidden, 1.0, generator)
        self.fc7 = Layer(config.hidden, config.fc7_rank, config.hidden, LAST_NORM_GAIN, generator)
        self.fc8 = nn.Linear(config.hidden, classes)
        nn.init.normal_(self.fc8.weight, 0, 0.01, generator=generator)
        nn.init.zeros_(self.fc8.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) float to logits (N, classes)."""
        for layer in (self.fc6, self.fc7):
            x = F.dropout(F.relu(layer(x)), self.dropout, self.training)
        return self.fc8(x)  # type: ignore[no-any-return]


class Features:
    """The cached views on disk, dequantised batch by batch.

    Raises:
        DatasetError: the folder has no features, or only a part.
    """

    def __init__(self, folder: Path, channels_side: int = 36) -> None:
        try:
            meta = json.loads((folder / "meta.json").read_text())
            self.held_out: dict[Held, NDArray[np.uint8]] = {
                "crops": np.load(folder / "held_out.npy", mmap_mode="c"),
                "windows": np.load(folder / "held_out_windows.npy", mmap_mode="c"),
            }
        except FileNotFoundError as error:
            raise DatasetError(
                f"{error.filename} is missing; `alexnet-train features` writes it, to {folder}"
            ) from None
        self.scale = torch.tensor(meta["scale"]).repeat_interleave(channels_side)
        self.count, self.alternate = int(meta["count"]), bool(meta["alternate"])
        self.classes = int(meta.get("classes", 0))
        """Of the first so many classes alone; 0: of all."""
        self.kinds = [[np.load(f, mmap_mode="c") for f in sorted(folder.glob("train-*.npy"))]]
        """Crops, and windows where there are any: for each kind its arrays, of one row an image."""
        if (folder / "windows.npy").exists():
            rows = np.load(folder / "windows.npy", mmap_mode="c")
            images = self.count // 2 if self.alternate else self.count
            self.kinds.append([rows[i :: len(rows) // images] for i in range(len(rows) // images)])
        self.kinds = [kind for kind in self.kinds if kind]
        if not self.kinds or (self.alternate and len(self.kinds) < 2):
            raise DatasetError(f"{folder} lacks training views; let `alexnet-train features` finish")

    def batch(self, index: Tensor, epoch: int) -> Tensor:
        """Images ``index`` (N,) as (N, 9216) float32; each changes its view, and its kind, with the epoch."""
        rows, number = np.empty((len(index), len(self.scale)), np.uint8), index.numpy()
        kinds = len(self.kinds)
        turn = number % 2 if self.alternate else (number + epoch) % kinds
        row, past = (number // 2, epoch) if self.alternate else (number, epoch // kinds)
        for which, kind in enumerate(self.kinds):
            chosen = turn == which
            rows[chosen] = kind[past % len(kind)][row[chosen]]
        return self.dequantise(rows)

    def dequantise(self, rows: NDArray[np.uint8]) -> Tensor:
        """(N, 9216) uint8 to float32."""
        return torch.from_numpy(rows).float() * self.scale


def train(features: Path, data: Path, out: Path, config: ClassifierConfig) -> None:
    """Train the classifier: cosine rate, another view of each image and a checkpoint every epoch.

    Raises:
        CheckpointError: ``out`` holds a classifier with other settings.
        DatasetError: the features are fewer than a batch, or not there.
        DivergedError: the loss is no number any more; the last epoch's checkpoint stays.
    """
    configure_allocator(keep_all=True)
    cache = Features(features)
    if cache.count < config.batch_size:
        raise DatasetError(
            f"{features}: {cache.count} images, fewer than a batch of {config.batch_size}: "
            "use --set batch_size=N"
        )
    split = first_classes(open_split(data / "train"), cache.classes)
    labels = torch.from_numpy(split.labels)
    model = Classifier(len(cache.scale), len(split.classes), config)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others},
    ]
    optimizer = torch.optim.SGD(groups, config.rate, momentum=config.momentum, nesterov=True)
    out.mkdir(parents=True, exist_ok=True)
    first = _resumed(out / "last.pt", model, optimizer, config)
    for epoch in range(first, config.epochs):
        began = time.monotonic()
        loss = _epoch(model, optimizer, cache, labels, config, epoch)
        record = {"epoch": epoch + 1, "loss": round(loss, 4), "seconds": round(time.monotonic() - began)}
        record |= ten_view_error(model, cache, labels[cache.count :], config)
        log.append(out / "log.jsonl", record)
        checkpoint.save(out / "last.pt", config, epoch + 1, model.state_dict(), optimizer.state_dict())


def _resumed(
    path: Path, model: Classifier, optimizer: torch.optim.Optimizer, config: ClassifierConfig
) -> int:
    """The epoch to go on with, its state put back; 0 where nothing was saved."""
    if not path.exists():
        return 0
    state, own = checkpoint.load(path), asdict(config)
    differ = [
        f"{name} {value} there, {own.get(name)} here"
        for name, value in state["config"].items()
        if name not in ("epochs", "bfloat16") and own.get(name) != value
    ]
    if differ:
        raise checkpoint.CheckpointError(
            f"{path} has other settings ({'; '.join(differ)}): choose another --out, or the same settings"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["velocity"])
    return int(state["step"])


def _epoch(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    cache: Features,
    labels: Tensor,
    config: ClassifierConfig,
    epoch: int,
) -> float:
    """One pass over the cached images; returns its mean loss."""
    per_epoch = cache.count // config.batch_size
    recipe = Config("classifier", cosine=True, rate=config.rate, warmup_steps=config.warmup_steps)
    schedule = Schedule(recipe, per_epoch * config.epochs, per_epoch)
    generator = torch.Generator().manual_seed(config.seed * 7919 + epoch)
    torch.manual_seed(config.seed + epoch)
    order = torch.randperm(cache.count, generator=generator)[: per_epoch * config.batch_size]
    bar = tqdm(torch.split(order, config.batch_size), desc=f"epoch {epoch + 1}", mininterval=10)
    losses = 0.0
    for step, batch in enumerate(bar, epoch * per_epoch):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rates(step).weights
        index = batch.sort().values
        x, mixed_labels = cache.batch(index, epoch), Labels(labels[index], labels[index])
        if epoch < config.cutmix_epochs * config.epochs and step % 2:
            draws = Draws(config.seed, step, torch.arange(len(index)))
            maps, mixed_labels = mixed(
                x.view(len(x), -1, SIDE, SIDE), labels[index], draws, cutmix=1.0, mixup=0.0
            )
            x = maps.flatten(1)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            logits = model(x)
        loss = mixed_labels.loss(logits.float(), config.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses += loss.item()
        if not math.isfinite(losses):
            raise DivergedError(step + 1, schedule.rates(step).weights)
    return losses / per_epoch


@torch.inference_mode()
def view_logits(model: Classifier, cache: Features, config: ClassifierConfig, held: Held) -> Tensor:
    """Logits of the held-out images' ten views: (N, 10, classes) float32, the centre view at 8."""
    model.eval()
    parts, views = [], cache.held_out[held]
    for start in range(0, len(views), 1000):
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            parts.append(model(cache.dequantise(views[start : start + 1000])).float())
    model.train()
    return torch.cat(parts).reshape(-1, 10, model.fc8.out_features)


def ten_view_error(
    model: Classifier, cache: Features, labels: Tensor, config: ClassifierConfig
) -> dict[str, float]:
    """Error rates of the held-out images, whose ``labels`` come first.

    Of the centre crop, and of the mean of the probabilities of ten crops and of ten windows (dense).
    """
    crops, windows = (view_logits(model, cache, config, held).softmax(2) for held in cache.held_out)
    result: dict[str, float] = {}
    for name, p in (("centre", crops[:, 8]), ("ten", crops.mean(1)), ("dense", windows.mean(1))):
        rates = error_rates(mistakes(p, labels[: len(p)]), len(p), p.shape[1])
        result |= {f"{name}_{kind}": rate for kind, rate in rates.items()}
    return result
