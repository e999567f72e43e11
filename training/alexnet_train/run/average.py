"""A running average of the weights, with batch norm statistics of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.draws import Draws


class Average:
    """Exponential moving average of a network's parameters (never of its batch norm statistics).

    Args:
        network: what is averaged; the average starts as a copy.
        decay: share of the old average kept at each update; early on less, so that the start is forgotten.
    """

    def __init__(self, network: AlexNet, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.measured = False
        """Whether the statistics are those of the weights as they are."""

    @torch.no_grad()
    def update(self, network: AlexNet, step: int) -> None:
        """Take in the weights after update ``step``."""
        self.measured = False
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)

    @torch.no_grad()
    def recompute_statistics(self, batches: Iterable[tuple[Tensor, Draws]]) -> None:
        """Set the batch norm statistics to those of the averaged weights on ``batches`` of crops.

        Nothing is read or computed where they are already, or where there is no batch norm.
        """
        norms = [m for m in self.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if self.measured or not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
        self.network.train()
        for x, draws in batches:
            self.network(x, draws)
        self.network.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.measured = True
