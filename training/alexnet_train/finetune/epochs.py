"""What the ways to train layers before fc8 have in common: epochs, and fc8 from a fitted one and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet_train.finetune.learn import Array, Head, Indices


class Epochs:
    """A network on its way; each epoch sees every row once, in an order of its own.

    Args:
        network: from a batch's inputs to logits (N, classes).
        optimizer: of its parameters.
        batch: rows by number to inputs and labels (N,) int64.
        count: rows.
        size: rows in an update, at most.
        seed: of order and dropout.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: Callable[[Indices], tuple[Tensor, Tensor]],
        *,
        count: int,
        size: int,
        seed: int,
    ) -> None:
        self.updates = -(-count // size)
        self._network, self._optimizer, self._batch = network, optimizer, batch
        self._count, self._seed, self._epoch = count, seed, 0

    def __call__(self, updated: Callable[[], object] = lambda: None) -> None:
        """Train for one epoch; ``updated`` is called after each update."""
        # So that neither another training nor an epoch more or less changes what is drawn.
        torch.manual_seed(self._seed * 7919 + self._epoch)
        self._epoch += 1
        for rows in torch.randperm(self._count).tensor_split(self.updates):
            x, labels = self._batch(rows.numpy())
            self._optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(self._network(x), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            updated()


def fc8_of(head: Head) -> nn.Linear:
    """fc8 as it was fitted, to go on from."""
    fc8 = nn.Linear(*reversed(head.weight.shape))
    fc8.weight, fc8.bias = nn.Parameter(torch.tensor(head.weight)), nn.Parameter(torch.tensor(head.bias))
    return fc8


def array_of(tensor: Tensor) -> Array:
    """As it is stored, in float32."""
    found: Array = tensor.detach().numpy().astype(np.float32, copy=False)
    return found
