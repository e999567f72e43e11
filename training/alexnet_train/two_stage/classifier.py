"""Stage two: fc6, fc7 and fc8 on cached pool5 features, fc6 and fc7 as products of two factors.

fc6's 9,216 x 4,096 and fc7's 4,096 x 4,096 weights hold nine tenths of the network. Learned as a product
``left @ right`` of rank 384 and 256 they cost a seventh of the arithmetic, overfit less, and ship in a sixth
of the bytes; multiplied out they are ordinary full weights, and that is what the exported graph contains.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
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
from alexnet_train.data.dataset import DatasetError, open_split
from alexnet_train.network.alexnet import LAST_NORM_GAIN
from alexnet_train.run import log

Held = Literal["crops", "windows"]


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
                f"{error.filename} is missing; `alexnet-train features` makes it, in {folder}"
            ) from None
        self.scale = torch.tensor(meta["scale"]).repeat_interleave(channels_side)
        self.count, self.alternate = int(meta["count"]), bool(meta["alternate"])
        self.kinds = [[np.load(f, mmap_mode="c") for f in sorted(folder.glob("train-*.npy"))]]
        """Crops, and windows where there are any: for each kind its arrays, of one row an image."""
        if (folder / "windows.npy").exists():
            rows = np.load(folder / "windows.npy", mmap_mode="c")
            images = self.count // 2 if self.alternate else self.count
            self.kinds.append([rows[i :: len(rows) // images] for i in range(len(rows) // images)])
        self.kinds = [kind for kind in self.kinds if kind]
        if not self.kinds or (self.alternate and len(self.kinds) < 2):
            raise DatasetError(f"{folder} lacks training views; let `alexnet-train features` end")

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
    """Train the classifier: cosine rate, another view of each image and a checkpoint every epoch."""
    configure_allocator(keep_all=True)
    cache, split = Features(features), open_split(data / "train")
    labels = torch.from_numpy(split.labels)
    model = Classifier(len(cache.scale), len(split.classes), config)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() != 2]},
    ]
    optimizer = torch.optim.SGD(groups, config.rate, momentum=config.momentum, nesterov=True)
    out.mkdir(parents=True, exist_ok=True)
    first = 0
    if (out / "last.pt").exists():
        state = checkpoint.load(out / "last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["velocity"])
        first = state["step"]
    per_epoch = cache.count // config.batch_size
    total = per_epoch * config.epochs
    for epoch in range(first, config.epochs):
        generator = torch.Generator().manual_seed(config.seed * 7919 + epoch)
        torch.manual_seed(config.seed + epoch)
        order = torch.randperm(cache.count, generator=generator)[: per_epoch * config.batch_size]
        losses, began = 0.0, time.monotonic()
        for i, batch in enumerate(
            tqdm(torch.split(order, config.batch_size), desc=f"epoch {epoch + 1}", mininterval=10)
        ):
            step = epoch * per_epoch + i
            rate = (
                config.rate
                * min(1.0, (step + 1) / config.warmup_steps)
                * (0.5 + 0.5 * np.cos(np.pi * step / total))
            )
            for group in optimizer.param_groups:
                group["lr"] = float(rate)
            index = batch.sort().values
            x, y = cache.batch(index, epoch), labels[index]
            other, share = y, 0.0
            if epoch < config.cutmix_epochs * config.epochs and step % 2:
                x, other, share = cutmix(x, y, generator)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
                logits = model(x).float()
            loss = (1 - share) * F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
            if share:
                loss = loss + share * F.cross_entropy(logits, other, label_smoothing=config.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses += loss.item()
        record = {
            "epoch": epoch + 1,
            "loss": round(losses / per_epoch, 4),
            "seconds": round(time.monotonic() - began),
        }
        record |= held_out_error(model, cache, labels[cache.count :], config)
        log.append(out / "log.jsonl", record)
        checkpoint.save(out / "last.pt", config, epoch + 1, model.state_dict(), optimizer.state_dict())


def cutmix(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """CutMix (Yun et al. 2019) on pool5: a rectangle of cells of each row is another row's.

    Args:
        x: (N, channels * side * side) float, side 6.
        y: (N,) labels.
        generator: where the rectangle and the pairs are drawn from.

    Returns:
        The mixed rows, the other rows' labels, and the share of cells that are theirs.
    """
    side = 6
    height, width = (int(v) for v in torch.randint(1, side, (2,), generator=generator))
    top = int(torch.randint(0, side - height + 1, (), generator=generator))
    left = int(torch.randint(0, side - width + 1, (), generator=generator))
    order = torch.randperm(len(x), generator=generator)
    cells = x.view(len(x), -1, side, side).clone()
    window = (..., slice(top, top + height), slice(left, left + width))
    cells[window] = x.view_as(cells)[order][window]
    return cells.flatten(1), y[order], height * width / side**2


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


def held_out_error(
    model: Classifier, cache: Features, labels: Tensor, config: ClassifierConfig
) -> dict[str, float]:
    """Top-1 and top-5 error of the held-out images, whose ``labels`` come first.

    Of the centre crop, and of the mean of the probabilities of ten crops and of ten windows (dense).
    """
    crops, windows = (view_logits(model, cache, config, held).softmax(2) for held in cache.held_out)
    result = {}
    for name, p in (("centre", crops[:, 8]), ("ten", crops.mean(1)), ("dense", windows.mean(1))):
        hit = p.topk(min(5, p.shape[1])).indices == labels[: len(p), None]
        result[f"{name}_top1_error"] = round(1 - hit[:, 0].float().mean().item(), 4)
        result[f"{name}_top5_error"] = round(1 - hit.any(1).float().mean().item(), 4)
    return result
