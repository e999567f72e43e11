"""Which images an update sees, and how they get to its device."""

from __future__ import annotations

import os
from functools import lru_cache

import torch
from torch import Tensor

from alexnet_server.machine import usable_cores
from alexnet_train.config import Config
from alexnet_train.data.dataset import Split
from alexnet_train.run.ahead import ReadAhead

SHARE_OF_FREE_MEMORY = 0.6
"""The dataset moves to the GPU when it takes at most this part of what is free there."""
READERS = range(4, 9)
"""Threads that read ahead when it does not: as many as there are cores for, within these bounds."""


def ranks_here() -> int:
    """How many processes of the run this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def ranks_on_card() -> int:
    """How many of them share a GPU."""
    return -(-ranks_here() // max(1, torch.cuda.device_count()))


def readers() -> int:
    """How many threads of each read ahead."""
    return min(READERS[-1], max(READERS[0], usable_cores() // ranks_here()))


def batch_indices(config: Config, count: int, step: int) -> Tensor:
    """Indices of update ``step``, int64 (batch_size,) below ``count``.

    In fixed order consecutive images, epoch after epoch without a gap; else consecutive slices of a
    permutation drawn anew each epoch, whose remainder is left out.
    """
    if config.fixed_order:
        return (step * config.batch_size + torch.arange(config.batch_size)) % count
    per_epoch = count // config.batch_size
    epoch, position = divmod(step, per_epoch)
    return _order(config.seed, count, epoch)[
        position * config.batch_size : (position + 1) * config.batch_size
    ]


@lru_cache(maxsize=2)
def _order(seed: int, count: int, epoch: int) -> Tensor:
    """The permutation of one epoch; for a million images it takes as long as an update."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 7919 + epoch))


class Batches:
    """Images and labels by update, on the device.

    On a GPU the whole dataset is kept there when it fits; else threads read ahead into pinned memory, so
    that the loop waits for neither disk nor bus.

    Args:
        split: the training images.
        config: the recipe.
        rows: this process' places in the joined batch, from ``Workers.rows``.
        device: where batches are wanted.
        stop: the number of updates; nothing is read beyond.
    """

    def __init__(self, split: Split, config: Config, rows: Tensor, device: torch.device, stop: int) -> None:
        self.split, self.config, self.rows, self.device = split, config, rows, device
        self.count = len(split.labels) - config.held_out
        self.labels = torch.from_numpy(split.labels).to(device)
        self.resident: Tensor | None = None
        self.ahead: ReadAhead | None = None
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0] / ranks_on_card()
            if split.images.nbytes <= SHARE_OF_FREE_MEMORY * free:
                self.resident = torch.from_numpy(split.images[: self.count]).to(device)
            else:
                self.ahead = ReadAhead(split.images, self._indices, len(rows), device, stop, readers())

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """uint8 (N, S, S, 3) and int64 (N,) of update ``step`` on the device."""
        index = self._indices(step)
        own = self._on_device(index)
        labels = self.labels[own]
        if self.resident is not None:
            return self.resident[own], labels
        if self.ahead is not None:
            return self.ahead(step), labels
        return self._read(index).to(self.device), labels

    def joined(self, step: int) -> Tensor:
        """All images of an update, whatever this process' places, without reading ahead."""
        index = batch_indices(self.config, self.count, step)
        if self.resident is not None:
            return self.resident[self._on_device(index)]
        return self._read(index).to(self.device)

    def close(self) -> None:
        """End the threads that read ahead."""
        if self.ahead is not None:
            self.ahead.close()

    def _indices(self, step: int) -> Tensor:
        return batch_indices(self.config, self.count, step)[self.rows]

    def _on_device(self, index: Tensor) -> Tensor:
        """The indices where the data is; from pinned memory, so that the copy waits for nothing."""
        if self.device.type == "cuda":
            index = index.pin_memory()
        return index.to(self.device, non_blocking=True)

    def _read(self, index: Tensor) -> Tensor:
        return torch.from_numpy(self.split.images[index.numpy()])
