"""The error that a run is steered by: of training images it never trains on."""

from __future__ import annotations

import torch
from torch import Tensor

from alexnet_train.config import Config
from alexnet_train.data.dataset import Split, tells_top5
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.run.augment import Augmenter
from alexnet_train.run.parallel import Workers


def mistakes(scores: Tensor, labels: Tensor) -> Tensor:
    """float64 (2,): for how many rows of (N, classes) the label is not the best, not among the five best."""
    hit = scores.topk(min(5, scores.shape[1])).indices == labels[:, None]
    return torch.stack([(~hit[:, 0]).sum(), (~hit.any(1)).sum()]).double()


def error_rates(wrong: Tensor, images: int, classes: int) -> dict[str, float]:
    """The top-1 and, of more than five classes, top-5 error (fractions) behind ``mistakes`` in ``images``."""
    top1, top5 = (round(rate, 4) for rate in (wrong / images).tolist())
    return {"top1_error": top1} | ({"top5_error": top5} if tells_top5(classes) else {})


@torch.no_grad()
def held_out_error(
    network: AlexNet, split: Split, augmenter: Augmenter, config: Config, group: Workers
) -> dict[str, float]:
    """``error_rates`` of the held-out images' centre windows, the same on every rank."""
    network.eval()
    wrong = torch.zeros(2, dtype=torch.float64)
    count, size = len(split.labels), config.batch_size
    ranks, rank = (group.world, group.rank) if group.mode == "data" else (1, 0)
    for start in range(count - config.held_out + rank * size, count, size * ranks):
        stop = min(count, start + size)
        x = (
            augmenter.centre(torch.from_numpy(split.images[start:stop].copy()).to(group.device))
            / config.input_scale
        )
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.bfloat16):
            logits = network(x.contiguous(memory_format=torch.channels_last))
        if logits.dim():  # tower b has none
            wrong += mistakes(logits.cpu(), torch.from_numpy(split.labels[start:stop]))
    network.train()
    return error_rates(group.summed(wrong), config.held_out, len(split.classes))
