"""conv4 to fc8 trained together on what conv4 reads, from the base's layers and a fitted fc8 on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from alexnet_server.models.variants import Variant
from alexnet_train.finetune.epochs import Epochs, array_of, fc8_of
from alexnet_train.finetune.learn import Array, Head, Indices
from alexnet_train.finetune.maps import Maps
from alexnet_train.network.fold import without_norm
from alexnet_train.run.start import put_norms_back

NORMED = ("conv4", "conv5", "fc6", "fc7")
"""The layers that are trained and have a batch norm behind them while they are."""
RATE = 4e-3
"""A tenth of the rate that such a network is trained with from the beginning."""
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
DROPOUT = 0.5
BATCH = 64
"""Crops in an update."""
MEASURED = 512
"""Crops that the statistics of the norms are measured on."""
LENGTH = 10.0
"""Of the features while they are trained on, so that the rate means the same for every base's fc8."""


@dataclass(frozen=True)
class Crops:
    """What conv4 reads of crops, and the labels (photos,) of their photos; ``rows`` are learned from."""

    maps: Maps
    labels: NDArray[np.int64]
    rows: Indices

    def __len__(self) -> int:
        return int(len(self.rows) * self.maps.shape[1])

    def batch(self, crops: Indices) -> tuple[Tensor, Tensor]:
        """Crops by number, (N, channels, 13, 13) float32, and labels (N,)."""
        views = self.maps.shape[1]
        photos = self.rows[crops // views]
        return _tensor(self.maps[photos, crops % views]), torch.from_numpy(self.labels[photos])

    def some(self) -> Iterator[Tensor]:
        """Batches of crops as far apart as can be."""
        crops = np.linspace(0, len(self) - 1, min(MEASURED, len(self))).astype(np.intp)
        for part in np.array_split(crops, -(-len(crops) // BATCH)):
            yield self.batch(part)[0]


class Weight(nn.Module):
    """A layer's weight, whole or as a product of two factors as the base has it; its norm has the bias."""

    def __init__(self, tensors: Mapping[str, Array], name: str) -> None:
        super().__init__()
        factors = f"{name}.weight.right" in tensors
        rows = torch.tensor(tensors[f"{name}.weight.left" if factors else f"{name}.weight"])
        self.right: nn.Parameter | None = None
        if factors:
            right = torch.tensor(tensors[f"{name}.weight.right"])
            # Rows as long as fresh ones, so that the rate means the same for both factors.
            lengths = right.norm(dim=1).clamp(min=1e-12) / 2**0.5
            self.right, rows = nn.Parameter(right / lengths[:, None]), rows * lengths
        self.rows = nn.Parameter(rows)

    def linear(self, x: Tensor) -> Tensor:
        """(N, inputs) to (N, outputs), without the bias."""
        return F.linear(x if self.right is None else F.linear(x, self.right), self.rows)


class Tail(nn.Module):
    """What conv4 reads, (N, channels, 13, 13), to logits (N, classes); batch norms are put back.

    Args:
        variant: of the base.
        tensors: the base's, by the names of the weight file.
        head: fc8, fitted to the base's features.
        crops: those that are learned from, on which the norms' statistics are measured.
    """

    def __init__(self, variant: Variant, tensors: Mapping[str, Array], head: Head, crops: Crops) -> None:
        super().__init__()
        self.variant = variant
        for name in NORMED:
            weight = Weight(tensors, name)
            self.add_module(name, weight)
            kind = nn.BatchNorm2d if name.startswith("conv") else nn.BatchNorm1d
            self.add_module(f"norm_{name}", kind(len(weight.rows)))
        self.fc8 = fc8_of(head)
        biases = {name: torch.tensor(tensors[f"{name}.bias"]).double() for name in NORMED}
        rows = {name: self._weight(name).rows for name in NORMED}
        put_norms_back(self, rows, biases, crops.some())
        self._shorten_features(crops)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32."""
        return self.fc8(self.features(x))  # type: ignore[no-any-return]

    def features(self, x: Tensor) -> Tensor:
        """(N, hidden), what fc8 reads."""
        for name in ("conv4", "conv5"):
            rows, groups = self._weight(name).rows, self.variant.groups[int(name[-1]) - 1]
            x = F.relu(self._norm(name)(F.conv2d(x, rows, padding=rows.shape[-1] // 2, groups=groups)))
        x = F.max_pool2d(x, *self.variant.pool, ceil_mode=True).flatten(1)
        before = self.variant.dropout == "before"
        for name in ("fc6", "fc7"):
            x = self._drop(x) if before else x
            x = F.relu(self._norm(name)(self._weight(name).linear(x)))
            x = x if before else self._drop(x)
        return x

    @torch.inference_mode()
    def logits(self, maps: Maps) -> Array:
        """(photos, views, channels, 13, 13) to (photos, views, classes), as it will be served."""
        self.eval()
        found = [self(_tensor(photo)).numpy() for photo in maps]
        self.train()
        return np.stack(found)

    @torch.no_grad()
    def tensors(self) -> dict[str, Array]:
        """All layers folded, by the names of the weight file."""
        state = self.state_dict()
        tensors: dict[str, Array] = {
            "fc8.weight": array_of(self.fc8.weight),
            "fc8.bias": array_of(self.fc8.bias),
        }
        for name in NORMED:
            weight = self._weight(name)
            folded, bias = without_norm(state | {f"{name}.weight": weight.rows}, name, True)
            tensors[f"{name}.bias"] = array_of(bias)
            if weight.right is None:
                tensors[f"{name}.weight"] = array_of(folded)
            else:
                tensors |= {
                    f"{name}.weight.left": array_of(folded),
                    f"{name}.weight.right": array_of(weight.right),
                }
        return tensors

    @torch.no_grad()
    def _shorten_features(self, crops: Crops) -> None:
        """Scale fc7's units and fc8's weights against each other."""
        self.eval()
        squares = torch.cat([self.features(x).square().sum(1) for x in crops.some()])
        self.train()
        factor = LENGTH / squares.mean().sqrt().clamp(min=1e-12)
        norm = self._norm("fc7")
        norm.weight.mul_(factor)
        norm.bias.mul_(factor)
        self.fc8.weight.div_(factor)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, DROPOUT, self.training)

    def _weight(self, name: str) -> Weight:
        weight = self.get_submodule(name)
        assert isinstance(weight, Weight)
        return weight

    def _norm(self, name: str) -> nn.modules.batchnorm._BatchNorm:
        norm = self.get_submodule(f"norm_{name}")
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        return norm


class Training:
    """A tail on its way; each epoch sees every crop once, in an order of its own.

    Args:
        tail: what is trained, in place.
        crops: what is learned from.
        seed: of order and dropout.
    """

    def __init__(self, tail: Tail, crops: Crops, seed: int) -> None:
        self.tail = tail
        matrices = [parameter for parameter in tail.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in tail.parameters() if parameter.dim() == 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": others},
        ]
        optimizer = torch.optim.SGD(groups, RATE, MOMENTUM, nesterov=True)
        self._epoch = Epochs(tail, optimizer, crops.batch, count=len(crops), size=BATCH, seed=seed)

    def epochs(self, count: int, what: str) -> None:
        """Train on every crop so many times; ``what`` is for the progress bar."""
        with tqdm(total=count * self._epoch.updates, desc=what, unit="update", mininterval=1) as bar:
            for _ in range(count):
                self._epoch(bar.update)


def _tensor(maps: Maps) -> Tensor:
    return torch.from_numpy(maps.astype(np.float32)).contiguous(memory_format=torch.channels_last)
