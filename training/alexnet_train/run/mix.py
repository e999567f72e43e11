"""CutMix and Mixup within pairs of neighbouring images of a batch (arXiv:1905.04899, arXiv:1710.09412)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet_train.config import Config
from alexnet_train.network.draws import Draws

TRIES = 4


@dataclass(frozen=True)
class Labels:
    """Labels of a mixed batch: ``share`` (N,) of image i is of class ``first[i]``, the rest ``second[i]``."""

    first: Tensor
    second: Tensor
    share: Tensor | None = None

    def loss(self, logits: Tensor, smoothing: float) -> Tensor:
        """Mean cross-entropy of (N, classes) logits."""
        if self.share is None:
            return F.cross_entropy(logits, self.first, label_smoothing=smoothing)
        one = F.cross_entropy(logits, self.first, label_smoothing=smoothing, reduction="none")
        two = F.cross_entropy(logits, self.second, label_smoothing=smoothing, reduction="none")
        return (self.share * one + (1 - self.share) * two).mean()


def mixes(config: Config, step: int, steps: int) -> bool:
    """Whether update ``step`` of a run of ``steps`` mixes images."""
    mixing = bool(config.cutmix or config.mixup) and step < config.mix_share * steps
    return mixing and step % config.mix_every == 0


def mixed(x: Tensor, y: Tensor, draws: Draws, cutmix: float, mixup: float) -> tuple[Tensor, Labels]:
    """Mix images (N, 3, H, W) 2k and 2k + 1 with each other; N is even.

    ``cutmix`` and ``mixup`` are the parameters of the Beta distributions the shares come from, 0 for never;
    with both, every pair takes one of the two at random.
    """
    count, _, height, width = x.shape
    pairs = draws.shared(2)
    x_other = x.view(count // 2, 2, *x.shape[1:]).flip(1).reshape(x.shape)
    y_other = y.view(count // 2, 2).flip(1).reshape(count)
    by_box = torch.full_like(x[:, 0, 0, 0], bool(cutmix), dtype=torch.bool)
    if cutmix and mixup:
        by_box = pairs.uniform("which mix", 1)[:, 0] < 0.5
    box = _outside_box(pairs, beta(pairs, "cutmix", cutmix), height, width) if cutmix else 1.0
    blend = beta(pairs, "mixup", mixup)[:, None, None] if mixup else 1.0
    keep = torch.where(by_box[:, None, None], box, blend).expand(count, height, width)
    mask = keep[:, None].to(x.dtype)
    return mask * x + (1 - mask) * x_other, Labels(y, y_other, keep.mean((1, 2)))


def _outside_box(pairs: Draws, share: Tensor, height: int, width: int) -> Tensor:
    """(N, H, W) float32: 0 in a box of 1 - ``share`` of the area around a random centre, 1 outside."""
    side = (1 - share).sqrt()[:, None]
    centre = pairs.uniform("cutmix centre", 2)
    rows = (torch.arange(height, device=share.device) + 0.5) / height
    columns = (torch.arange(width, device=share.device) + 0.5) / width
    inside_rows = (rows - centre[:, :1]).abs() < side / 2
    inside_columns = (columns - centre[:, 1:]).abs() < side / 2
    return (~(inside_rows[:, :, None] & inside_columns[:, None, :])).float()


def beta(draws: Draws, name: str, parameter: float) -> Tensor:
    """(N,) float32 from Beta(parameter, parameter), by Joehnk's method with a fixed number of tries.

    A draw that fails them all (at 0.2: 6 in a million) is 1, an image left as it is.
    """
    if parameter == 1:
        return draws.uniform(name, 1)[:, 0]
    powers = draws.uniform(name, 2 * TRIES).clamp(min=2.0**-25).pow(1 / parameter).view(-1, TRIES, 2)
    total = powers.sum(2)
    accepted = total <= 1
    first = accepted.int().argmax(1, keepdim=True)
    share = (powers[:, :, 0] / total).gather(1, first)[:, 0]
    return torch.where(accepted.any(1), share, torch.ones_like(share))
