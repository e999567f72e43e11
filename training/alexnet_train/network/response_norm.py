"""Response norms in PyTorch: over neighbouring maps (section 3.3 of the paper), and within a map.

On a GPU both are chains of elementwise operations, which ``torch.compile`` makes one kernel together with the
rest. On a CPU each link of such a chain is a pass over memory, so there forward and backward are written out
with as few as they need, and the sum over neighbours is a convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet_server.models.variants import ResponseNorm

NeighbourSum = Callable[[Tensor], Tensor]


def response_norm(x: Tensor, norm: ResponseNorm, groups: int) -> Tensor:
    """Local response normalisation over channels, within each of ``groups`` towers; (N, C, H, W) float.

    On a CPU the sum over neighbours is a 1x1 convolution with a banded kernel: the same numbers as a loop
    over the formula at the price of a matrix product; on a GPU it is a sum of shifted slices. Denominators
    are computed in float32 or wider.
    """
    total = shifted_sum if x.is_cuda else banded_sum
    return _normalised(x, norm, lambda squares: total(squares, norm.size, groups))


def spatial_norm(x: Tensor, norm: ResponseNorm) -> Tensor:
    """The 2012 code's second norm of layer 2: over size x size neighbours in the same map, zero outside."""
    padding = norm.size // 2
    return _normalised(
        x, norm, lambda squares: F.avg_pool2d(squares, norm.size, 1, padding, divisor_override=1)
    )


def _normalised(x: Tensor, norm: ResponseNorm, total: NeighbourSum) -> Tensor:
    """``x / (k + alpha * total(x**2)) ** beta``."""
    if not x.is_cuda and not torch.compiler.is_compiling():
        y: Tensor = _Normalise.apply(x, norm, total)  # type: ignore[no-untyped-call]
        return y
    wide = _widened(x)
    return (wide * (norm.alpha * total(wide * wide) + norm.k).pow(-norm.beta)).to(x.dtype)


class _Normalise(torch.autograd.Function):
    """The norm with its gradient. The sum must be its own transpose, as sums over neighbours are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: ResponseNorm, total: NeighbourSum) -> Tensor:
        wide = _widened(x)
        base = total(wide * wide).mul_(norm.alpha).add_(norm.k)
        scale = _power(base, norm.beta)
        ctx.save_for_backward(x, base, scale)
        ctx.norm, ctx.total = norm, total
        return (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, base, scale = ctx.saved_tensors
        wide, norm = x.to(base.dtype), ctx.norm
        # dL/dx = g s - 2 alpha beta x total(g s x / base), with s = base ** -beta.
        direct = gradient * scale
        through = ctx.total((direct * wide).div_(base)).mul_(-2 * norm.alpha * norm.beta)
        return direct.addcmul_(through, wide).to(x.dtype), None, None


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _power(base: Tensor, beta: float) -> Tensor:
    """``base ** -beta``; with the paper's .75 two roots, ten times as fast as a power."""
    if beta != 0.75:
        return base.pow(-beta)
    root = base.rsqrt()
    return root.sqrt().mul_(root)


def banded_sum(x: Tensor, size: int, groups: int) -> Tensor:
    """Sums over ``size`` neighbouring channels of (N, C, H, W), within each group, by convolution."""
    index = torch.arange(x.shape[1] // groups, device=x.device)
    band = ((index[:, None] - index[None, :]).abs() <= size // 2).to(x.dtype)
    if x.is_meta:  # shapes alone; autocast knows no such device
        return x
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(x, band.repeat(groups, 1)[:, :, None, None], groups=groups)


def shifted_sum(x: Tensor, size: int, groups: int) -> Tensor:
    """Sums over ``size`` neighbouring channels of (N, C, H, W), within each group, by shifted slices."""
    count, maps, height, width = x.shape
    parts = x.view(count, groups, maps // groups, height, width)
    padded = F.pad(parts, (0, 0, 0, 0, size // 2, size // 2))
    total = sum(padded.narrow(2, shift, maps // groups) for shift in range(size))
    assert isinstance(total, Tensor)
    return total.reshape(x.shape)
