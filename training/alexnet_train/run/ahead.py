"""Images too many for the device, read ahead into a ring of buffers that are used over and over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Copy(Protocol):
    """A copy to the device that goes on while the loop does something else."""

    def synchronize(self) -> None:
        """Wait until it is made."""
        ...


@dataclass
class Buffer:
    """One batch in host memory, and the copy that is being made of it."""

    images: Tensor
    copy: Copy | None = None


class ReadAhead:
    """The images of one update after another, on the device.

    Each reader fills a buffer of its own with a later update's images, straight from the memmap; buffers are
    pinned where the device has CUDA, so that copying them needs no help. A buffer is filled again when its
    copy is made.

    Args:
        images: uint8 (count, S, S, 3).
        indices: which of them an update sees, int64 (N,).
        size: N.
        device: where they are wanted.
        stop: the number of updates; nothing is read beyond.
        readers: threads, and updates read ahead.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        indices: Callable[[int], Tensor],
        size: int,
        device: torch.device,
        stop: int,
        readers: int,
    ) -> None:
        self.images, self.indices, self.device, self.stop = images, indices, device, stop
        self.readers = readers
        self.pool = ThreadPoolExecutor(readers, "read-ahead")
        self.pending: dict[int, Future[Buffer]] = {}
        shape, pinned = (size, *images.shape[1:]), device.type == "cuda"
        self.free: deque[Buffer] = deque()
        for _ in range(readers + 1):  # and the one that is handed out
            self.free.append(Buffer(torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)))

    def __call__(self, step: int) -> Tensor:
        """uint8 (N, S, S, 3) of update ``step``, which is the one after the last that was asked for."""
        for ahead in range(step, min(step + self.readers + 1, self.stop)):
            if ahead not in self.pending:
                self.pending[ahead] = self.pool.submit(self._fill, self.free.popleft(), ahead)
        buffer = self.pending.pop(step).result()
        images = self._sent(buffer)
        self.free.append(buffer)
        return images

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown(cancel_futures=True)

    def _fill(self, buffer: Buffer, step: int) -> Buffer:
        if buffer.copy is not None:
            buffer.copy.synchronize()
        # Any mode but the default, which would go through a buffer of its own.
        np.take(self.images, self.indices(step).numpy(), axis=0, out=buffer.images.numpy(), mode="clip")
        return buffer

    def _sent(self, buffer: Buffer) -> Tensor:
        """The images on the device, or on their way to it."""
        images = buffer.images.to(self.device, non_blocking=True, copy=True)
        if self.device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            buffer.copy = event
        return images
