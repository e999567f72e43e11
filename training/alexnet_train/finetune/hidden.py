"""fc7 and fc8 trained together on what fc7 reads of every view, from the base's fc7 and a fitted fc8 on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from alexnet_train.finetune.epochs import Epochs, array_of, fc8_of
from alexnet_train.finetune.learn import Array, Head, HeldOut, Indices

RATE = 3e-5
"""Of Adam, whose steps are about as long."""
DROPOUT = 0.5
"""Of fc7's inputs and outputs, as the base was trained."""
BATCH = 128
"""Views in an update."""
EPOCHS = 20
PATIENCE = 3
"""Epochs in a row that do worse before the rest are left out."""


@dataclass(frozen=True)
class Views:
    """What fc7 reads, float32 (N, views, hidden) as the served graph computes it, and labels (N,)."""

    inputs: Array
    labels: NDArray[np.int64]


def stop_early(
    views: Views,
    splits: Sequence[tuple[Indices, Indices]],
    heads: Sequence[Head],
    fc7: Mapping[str, Array],
    alone: HeldOut,
    seed: int,
) -> tuple[HeldOut, int]:
    """Train on what each split learns from, until the held-out photos do no better.

    Args:
        views: every photo, learned from or held out.
        splits: indices of photos that are learned from, and held out.
        heads: fc8 for each of them, fitted to the base's features of what it learns from.
        fc7: the base's tensors, ``fc7.weight`` or its two factors, and ``fc7.bias``.
        alone: what these heads make of the held-out photos.
        seed: of order and dropout.

    Returns:
        What fc7 and fc8 make of the held-out photos after the best number of epochs, and that number; 0 and
        ``alone`` where chance can explain what is better about it.
    """
    layers = [Layers(fc7, head) for head in heads]
    turns = [_epochs(views, learned, own, seed) for (learned, _), own in zip(splits, layers, strict=True)]
    best, epochs = alone, 0
    with tqdm(total=EPOCHS, desc="fc7", unit="epoch", mininterval=1) as bar:
        for epoch in range(1, EPOCHS + 1):
            for turn in turns:
                turn()
            pairs = zip(layers, splits, strict=True)
            logits = [own.logits(views.inputs[out]) for own, (_, out) in pairs]
            held = replace(alone, logits=np.concatenate(logits))
            if held.loss < best.loss:
                best, epochs = held, epoch
            bar.update()
            if epoch - epochs == PATIENCE:
                break
    return (best, epochs) if best.beats(alone) else (alone, 0)


def train(
    views: Views, learned: Indices, head: Head, fc7: Mapping[str, Array], epochs: int, seed: int
) -> tuple[dict[str, Array], Head]:
    """fc7's new tensors, under the names of ``fc7``, and fc8; arguments as of ``stop_early``."""
    layers = Layers(fc7, head)
    turn = _epochs(views, learned, layers, seed)
    for _ in tqdm(range(epochs), desc="fc7, all photos", unit="epoch", mininterval=1):
        turn()
    return layers.arrays()


class Layers(nn.Module):
    """fc7, whole or as a product of two factors as the base has it, and fc8."""

    def __init__(self, fc7: Mapping[str, Array], head: Head) -> None:
        super().__init__()
        self.names = [name for name in sorted(fc7, reverse=True) if name.startswith("fc7.weight")]
        self.matrices = nn.ParameterList([_parameter(fc7[name]) for name in self.names])
        """In the order in which they are applied: ``right`` before ``left``."""
        self.bias = _parameter(fc7["fc7.bias"])
        self.head = fc8_of(head)

    def forward(self, x: Tensor) -> Tensor:
        """(N, hidden) inputs of fc7 to logits (N, classes)."""
        x = F.dropout(x, DROPOUT, self.training)
        for matrix in self.matrices:
            x = F.linear(x, matrix)
        x = F.dropout(F.relu(x + self.bias), DROPOUT, self.training)
        return self.head(x)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def logits(self, inputs: Array) -> Array:
        """(N, views, hidden) to (N, views, classes), without dropout."""
        self.eval()
        found: Array = self(torch.from_numpy(inputs)).numpy()
        self.train()
        return found

    def arrays(self) -> tuple[dict[str, Array], Head]:
        """As they are stored."""
        matrices = zip(self.names, self.matrices, strict=True)
        fc7 = {name: array_of(matrix) for name, matrix in matrices} | {"fc7.bias": array_of(self.bias)}
        return fc7, Head(array_of(self.head.weight), array_of(self.head.bias))


def _epochs(views: Views, learned: Indices, layers: Layers, seed: int) -> Epochs:
    """Over every view of the photos that are learned from."""
    each = views.inputs.shape[1]

    def batch(rows: Indices) -> tuple[Tensor, Tensor]:
        photos = learned[rows // each]
        return torch.from_numpy(views.inputs[photos, rows % each]), torch.from_numpy(views.labels[photos])

    optimizer = torch.optim.Adam(layers.parameters(), RATE)
    return Epochs(layers, optimizer, batch, count=each * len(learned), size=BATCH, seed=seed)


def _parameter(array: Array) -> nn.Parameter:
    return nn.Parameter(torch.tensor(array))
