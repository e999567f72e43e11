"""The error that a run is steered by: of training images it never trains on."""

from __future__ import annotations

import torch

from alexnet_train.config import Config
from alexnet_train.data.dataset import Split
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.run.augment import Augmenter
from alexnet_train.run.parallel import Workers


@torch.no_grad()
def held_out_error(
    network: AlexNet, split: Split, augmenter: Augmenter, config: Config, group: Workers
) -> dict[str, float]:
    """Top-1 and top-5 error (fractions) of the held-out images' centre windows, the same on every rank."""
    network.eval()
    right = torch.zeros(2, dtype=torch.float64)
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
            best = logits.topk(min(5, logits.shape[1])).indices.cpu()
            hit = best == torch.from_numpy(split.labels[start:stop])[:, None]
            right += torch.stack([hit[:, 0].sum(), hit.any(1).sum()])
    network.train()
    top1, top5 = (1 - group.summed(right) / config.held_out).tolist()
    return {"top1_error": round(top1, 4), "top5_error": round(top5, 4)}
