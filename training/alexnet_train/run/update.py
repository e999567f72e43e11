"""The update of the 2012 code, and which rate each parameter takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn

from alexnet_train.config import Config
from alexnet_train.run.schedule import Rates

VELOCITY = "momentum_buffer"
"""Key of a parameter's velocity in either optimiser's state (the name is torch's)."""


class Update2012(torch.optim.Optimizer):
    """Momentum with the learning rate inside the velocity.

    ``v = momentum * v - lr * (gradient + weight_decay * w); w = w + v`` (weights.cu:152, 193, 195 and
    section 5 of the paper). After the rate drops, old velocity decays at the old rate's scale, unlike
    ``torch.optim.SGD``. A group whose rate is 0 is skipped: neither its weights nor its velocity move.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        super().__init__(groups, {"lr": 0.0, "frozen": False, "momentum": momentum, "weight_decay": 0.0})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Apply the gradients that stand in ``.grad``. ``lr`` may be a float or a scalar tensor."""
        if closure is not None:
            raise ValueError("Update2012 takes no closure: it looks at the gradients once")
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if not weights or group["frozen"]:
                continue
            velocities = [self._velocity(w) for w in weights]
            gradients = [w.grad for w in weights]
            if group["weight_decay"]:
                gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
            _advance(weights, velocities, gradients, group["lr"], group["momentum"])
        return None

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if VELOCITY not in state:
            state[VELOCITY] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        velocity: Tensor = state[VELOCITY]
        return velocity


def _advance(
    weights: list[Tensor],
    velocities: list[Tensor],
    gradients: list[Tensor],
    rate: float | Tensor,
    momentum: float,
) -> None:
    """``v = momentum * v - rate * g; w += v`` over lists, in multi-tensor kernels."""
    torch._foreach_mul_(velocities, momentum)
    if isinstance(rate, Tensor):
        torch._foreach_sub_(velocities, torch._foreach_mul(gradients, rate))
    else:
        torch._foreach_add_(velocities, gradients, alpha=-rate)
    torch._foreach_add_(weights, velocities)


def optimizer_for(network: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The recipe's optimiser, one parameter group for each pair of rate and weight decay.

    Each group carries ``name``, the name of one of its parameters, from which ``set_rates`` reads its rate.
    """
    named: dict[tuple[bool, bool], list[tuple[str, Tensor]]] = {}
    for name, parameter in network.named_parameters():
        is_weight = name.endswith("weight") and not name.startswith("norm")
        is_conv1 = name.split(".")[0] in ("conv1", "norm_conv1")
        named.setdefault((is_weight, is_conv1), []).append((name, parameter))
    groups = [
        {
            "params": [parameter for _, parameter in pairs],
            "name": pairs[0][0],
            "weight_decay": config.weight_decay if is_weight else 0.0,
        }
        for (is_weight, _), pairs in named.items()
    ]
    if config.update == "2012":
        return Update2012(groups, config.momentum)
    on_gpu = next(network.parameters()).is_cuda
    return torch.optim.SGD(groups, config.rate, momentum=config.momentum, nesterov=True, fused=on_gpu or None)


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Give every parameter group its rate of this update."""
    for group in optimizer.param_groups:
        rate = rates.of(group["name"])
        group["frozen"] = rate == 0.0
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def velocities(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Velocity of every parameter by name; zeros where none has been made yet."""
    return {
        name: optimizer.state[parameter].get(VELOCITY, torch.zeros_like(parameter))
        for name, parameter in network.named_parameters()
    }


def set_velocities(network: nn.Module, optimizer: torch.optim.Optimizer, values: dict[str, Tensor]) -> None:
    """Put back what ``velocities`` gave."""
    for name, parameter in network.named_parameters():
        state = optimizer.state[parameter]
        if VELOCITY not in state:
            state[VELOCITY] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state[VELOCITY].copy_(values[name])
