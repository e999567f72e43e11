from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from alexnet_train.config import Config
from alexnet_train.data.dataset import Split
from alexnet_train.run import ahead, batches
from alexnet_train.run.ahead import Buffer, ReadAhead
from alexnet_train.run.batches import Batches, batch_indices

CONFIG = Config("x", batch_size=4, held_out=2)
CPU = torch.device("cpu")


def test_shuffled_epochs_see_every_image_once_but_the_remainder() -> None:
    epochs = [torch.cat([batch_indices(CONFIG, 10, e * 2 + i) for i in range(2)]) for e in range(3)]
    assert all(len(set(epoch.tolist())) == 8 for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_the_fixed_order_is_the_files_without_a_gap() -> None:
    config = replace(CONFIG, fixed_order=True)
    stream = torch.cat([batch_indices(config, 10, step) for step in range(5)])
    assert stream.tolist() == [*range(10), *range(10)]


def test_ranks_take_their_part_of_the_joined_batch_and_never_a_held_out_image() -> None:
    images = np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    split = Split(images, np.arange(12), [("n", "n")] * 12, None)
    whole = Batches(split, CONFIG, torch.arange(4), CPU, 10)
    parts = [Batches(split, CONFIG, torch.arange(2) + 2 * rank, CPU, 10) for rank in (0, 1)]
    for step in range(6):
        images_seen, labels = whole(step)
        joined = [torch.cat(pieces) for pieces in zip(*(part(step) for part in parts), strict=True)]
        assert torch.equal(images_seen, joined[0])
        assert torch.equal(labels, joined[1])
        assert labels.max() < 10
        assert torch.equal(images_seen[:, 0, 0, 0].long(), labels)


class LastMoment:
    """A copy to a device that is made when somebody waits for it, and not before."""

    def __init__(self, buffer: Buffer) -> None:
        self.source, self.images = buffer.images, torch.zeros_like(buffer.images)
        self.made = 0

    def synchronize(self) -> None:
        if not self.made:
            self.images.copy_(self.source)
        self.made += 1


def test_images_read_ahead_are_those_asked_for_and_stay_until_they_are_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    indices: Callable[[int], Tensor] = partial(batch_indices, CONFIG, 40)
    read: list[int] = []
    copies: list[LastMoment] = []

    def watched(step: int) -> Tensor:
        read.append(step)
        return indices(step)

    def sent(_ring: ReadAhead, buffer: Buffer) -> Tensor:
        buffer.copy = LastMoment(buffer)
        copies.append(buffer.copy)
        return buffer.copy.images

    monkeypatch.setattr(ReadAhead, "_sent", sent)
    with closing(ReadAhead(images, watched, 4, CPU, 23, readers=3)) as ring:
        found = [ring(step) for step in range(3, 23)]
        assert not any(copy.made for copy in copies[-4:]), "their buffers are not wanted again"
    for copy in copies:
        copy.synchronize()
    assert sorted(read) == list(range(3, 23)), "once each"
    assert len({copy.source.data_ptr() for copy in copies}) == 4
    for step, batch in enumerate(found, 3):
        assert torch.equal(batch[:, 0, 0, 0].long(), indices(step)), step


def test_images_read_ahead_are_not_changed_by_later_ones() -> None:
    images = np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    with closing(ReadAhead(images, partial(batch_indices, CONFIG, 40), 4, CPU, 20, readers=2)) as ring:
        found = [ring(step) for step in range(20)]
    for step, batch in enumerate(found):
        assert torch.equal(batch[:, 0, 0, 0].long(), batch_indices(CONFIG, 40, step)), step


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_buffers_are_pinned_where_there_is_cuda(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    empty, pinned = torch.empty, []

    def watched(shape: tuple[int, ...], dtype: torch.dtype, pin_memory: bool) -> Tensor:
        pinned.append(pin_memory)
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(ahead.torch, "empty", watched)
    images = np.zeros((40, 1, 1, 3), np.uint8)
    ReadAhead(images, partial(batch_indices, CONFIG, 40), 4, torch.device(kind), 9, readers=5).close()
    assert pinned == [kind == "cuda"] * 6


def test_indices_cross_to_a_gpu_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only then does the copy wait for nothing."""
    pinned: list[Tensor] = []
    crossed: list[tuple[bool, bool]] = []

    def pin(pageable: Tensor) -> Tensor:
        pinned.append(pageable.clone())
        return pinned[-1]

    def to(source: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        assert device.type == "cuda"
        crossed.append((any(source is one for one in pinned), non_blocking))
        return source

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2**30, 2**30))
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    images = np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    split = Split(images, np.arange(12), [("n", "n")] * 12, None)
    resident = Batches(split, CONFIG, torch.arange(2), torch.device("cuda", 0), 10)
    crossed.clear()
    seen, labels = resident(3)
    assert torch.equal(seen[:, 0, 0, 0].long(), labels)
    assert torch.equal(labels, batch_indices(CONFIG, 10, 3)[:2])
    assert torch.equal(resident.joined(3)[:, 0, 0, 0], batch_indices(CONFIG, 10, 3).byte())
    assert crossed == [(True, True)] * 2


@pytest.mark.parametrize(("cores", "ranks", "threads"), [(1, 1, 4), (12, 2, 6), (64, 2, 8)])
def test_readers_are_four_to_eight(
    cores: int, ranks: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert batches.readers() == threads
