"""Two processes, one tower each, as the two GPUs of 2012 held them.

Rank r owns half of the output rows of conv1-5, fc6 and fc7 (tower a is rank 0), rank 0 fc8 and the loss as
well. Activations cross at pool2, pool5 and fc6's output in both directions and at fc7's output from b to a,
where layers-145.cfg has them cross; their gradients come back, and are summed, as layer.cu:218-262 does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alexnet_server.models.variants import Variant
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.draws import Draws

OF_RANK_0 = ("fc8.weight", "fc8.bias")
SEGMENTS = ("layers1and2", "layers3to5", "layer6", "layer7")
"""What a tower computes between two crossings, which no graph can hold."""


class TowerError(ValueError):
    """A variant that does not split into two towers; the message says why and what does."""


def check_splits(variant: Variant) -> None:
    """Raise ``TowerError`` unless the variant is two towers that meet only where activations cross."""
    if variant.groups != (1, 2, 1, 2, 2):
        raise TowerError(
            f"variant {variant.name} has no two towers (groups {variant.groups}): "
            "use --parallel data, or variant 2012 or paper"
        )
    if variant.lrn is not None and not variant.lrn_per_tower:
        raise TowerError(
            f"variant {variant.name}: its response norm spans both towers, so they would have to meet "
            "inside layers 1 and 2; use --parallel data, or variant 2012 or paper"
        )


class Tower(AlexNet):
    """The half of a network that one rank of a group of two owns; see ``AlexNet`` for the arguments.

    ``forward`` gives rank 0 the logits (N, classes). Rank 1 gets a scalar zero whose ``backward`` takes the
    gradients of fc7's output from rank 0: both ranks call ``forward`` and ``backward`` the same number of
    times.
    """

    processes: ClassVar[int] = 2

    def split(self, rank: int) -> Tower:
        """Become the tower of ``rank``: 0 is tower a, 1 is tower b, which has no fc8. Returns itself."""
        check_splits(self.variant)
        self.rank = rank
        self.towers_here = ("ab"[rank],)
        if rank == 1:
            del self.fc8
        return self

    def compiled(self, **options: Any) -> Tower:
        """This tower in training, of the same weights, its segments by ``torch.compile(**options)``."""
        tower = copy.copy(self)
        for name in SEGMENTS:
            setattr(tower, name, torch.compile(getattr(tower, name), **options))
        return tower

    def join(self, x: Tensor) -> Tensor:
        """Own maps or units and the other tower's, a before b, along dimension 1."""
        joined: Tensor = _Join.apply(x, self.rank)  # type: ignore[no-untyped-call]
        return joined

    def classify(self, pool5: Tensor, draws: Draws | None = None) -> Tensor:
        """fc6, fc7 and, on rank 0, fc8."""
        units = self.hidden_units(pool5, draws)
        if self.rank == 0:
            both: Tensor = _TakeLast.apply(units)  # type: ignore[no-untyped-call]
            return self._affine("fc8", both)
        nothing: Tensor = _GiveLast.apply(units)  # type: ignore[no-untyped-call]
        return nothing


class _Join(torch.autograd.Function):
    """Both ranks' tensors, concatenated; backward sums both ranks' gradients and keeps the own slice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rank: int) -> Tensor:
        ctx.rank = rank
        other = swap(x, rank)
        return torch.cat((x, other) if rank == 0 else (other, x), 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rank: int = ctx.rank
        halves = gradient.chunk(2, 1)
        return halves[rank] + swap(halves[1 - rank], rank), None


class _TakeLast(torch.autograd.Function):
    """Rank 0's end of fc7's crossing: (N, units) to (N, 2 units)."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return torch.cat((x, receive(torch.empty_like(x), 1)), 1)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        own, other = gradient.chunk(2, 1)
        send(other, 1)
        return own


class _GiveLast(torch.autograd.Function):
    """Rank 1's end of fc7's crossing; what it returns stands for the loss that rank 0 computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        send(x, 0)
        ctx.save_for_backward(x)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return receive(torch.empty_like(x), 0)


def _staged(x: Tensor) -> bool:
    """True for CUDA tensors under gloo (two ranks on one card): they go through pinned host memory."""
    return x.is_cuda and dist.get_backend() == "gloo"


def _outgoing(x: Tensor) -> Tensor:
    """Contiguous, maps last where there are any (as the network computes), on the host where staged."""
    x = x.permute(0, 2, 3, 1).contiguous() if x.dim() == 4 else x.contiguous()
    return x.cpu().pin_memory() if _staged(x) else x


def _arrived(received: Tensor, like: Tensor) -> Tensor:
    received = received.to(like.device)
    return received.permute(0, 3, 1, 2) if like.dim() == 4 else received


def swap(x: Tensor, rank: int) -> Tensor:
    """Send ``x`` to the other rank and receive its tensor of the same shape, both at once."""
    outgoing = _outgoing(x)
    incoming = torch.empty_like(outgoing, pin_memory=_staged(x))
    operations = [dist.P2POp(dist.isend, outgoing, 1 - rank), dist.P2POp(dist.irecv, incoming, 1 - rank)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return _arrived(incoming, x)


def send(x: Tensor, to: int) -> None:
    """Send a tensor to rank ``to``."""
    dist.send(_outgoing(x), to)


def receive(space: Tensor, source: int) -> Tensor:
    """A tensor like ``space`` from rank ``source``."""
    incoming = torch.empty_like(_outgoing(space), pin_memory=_staged(space))
    dist.recv(incoming, source)
    return _arrived(incoming, space)


def own_rows(canonical: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The share of rank ``rank`` in a one-process state (weights, batch norm, or velocities by name)."""
    own = {}
    for name, value in canonical.items():
        if name in OF_RANK_0:
            if rank == 0:
                own[name] = value
        else:
            own[name] = value.chunk(2, 0)[rank].contiguous() if value.dim() else value
    return own


def canonical_rows(own: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The reverse of ``own_rows``: rank 0 gets the one-process state on the CPU, rank 1 nothing.

    Both ranks call it. Tensors travel one at a time, so that rank 0 needs no second copy of everything.
    """
    whole: dict[str, Tensor] = {}
    for name, value in own.items():
        if name in OF_RANK_0 or value.dim() == 0:
            whole[name] = value.detach().cpu()
        elif rank == 1:
            dist.send(_flat(value), 0)
        else:
            other = torch.empty_like(_flat(value))
            dist.recv(other, 1)
            whole[name] = torch.cat((value.detach().cpu(), other.cpu().view(value.shape)), 0)
    return whole if rank == 0 else {}


def _flat(value: Tensor) -> Tensor:
    """Row-major copy for the wire, on the host under gloo."""
    flat = value.detach().contiguous(memory_format=torch.contiguous_format).view(-1)
    return flat.cpu() if _staged(flat) else flat


def squared_norm_of_all(parameters: list[nn.Parameter]) -> Tensor:
    """Squared norm of both towers' gradients together, a scalar, the same on both ranks."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    total = torch.stack(torch._foreach_norm(gradients)).square().sum()
    summed = total.cpu() if _staged(total) else total
    dist.all_reduce(summed)
    return summed.to(total.device)
