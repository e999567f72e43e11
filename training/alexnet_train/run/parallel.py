"""The processes of one run: who they are, when they stop together, and how a lost one is noticed."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

Mode = Literal["towers", "data", "none"]

HEARTBEAT_S = 0.5
LOST_AFTER_S = 10.0
"""A rank whose heartbeat has not moved for so long is given up; a closed connection is noticed at once."""
COLLECTIVE_TIMEOUT_S = 1800
EXIT_LOST_RANK = 70


class ParallelError(RuntimeError):
    """Processes that do not fit together, or one that was lost; the message says which and what to do."""


@dataclass
class Workers:
    """The processes of a run, seen from one of them."""

    mode: Mode
    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """True for the rank that logs, draws the progress bar and writes checkpoints."""
        return self.rank == 0

    def rows(self, batch_size: int) -> Tensor:
        """int64: this process' places in the joined batch; all of them unless data-parallel.

        Raises:
            ParallelError: the batch does not divide.
        """
        if self.mode != "data":
            return torch.arange(batch_size)
        if batch_size % self.world:
            raise ParallelError(
                f"a batch of {batch_size} does not divide by {self.world} processes; use --set batch_size=N"
            )
        share = batch_size // self.world
        return torch.arange(self.rank * share, (self.rank + 1) * share)

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes of a small CPU tensor."""
        if self.world > 1:
            dist.all_reduce(values, group=_control_group())
        return values


_control: list[dist.ProcessGroup] = []


def _control_group() -> dist.ProcessGroup:
    """A gloo group for a few numbers on the CPU, so that no GPU has to wait for them."""
    if not _control:
        _control.append(dist.new_group(backend="gloo", timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S)))
    return _control[0]


@contextmanager
def workers(mode: Mode, message: str) -> Iterator[Workers]:
    """Join the processes that torchrun started (none: just this one) and part from them at the end.

    Args:
        mode: ``towers`` (two processes, one tower each), ``data`` (DDP), ``none`` (one process).
        message: how to go on when a process is lost, for the error.

    Raises:
        ParallelError: the number of processes does not fit ``mode``, or one of them was lost.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    _check(mode, world)
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    if mode == "none":
        yield Workers(mode, 0, 1, device)
        return
    dist.init_process_group(
        _backend(world), timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S), rank=rank, world_size=world
    )
    _control_group()
    heart = _Heart(rank, world, message)
    try:
        yield Workers(mode, rank, world, device)
        dist.barrier(group=_control_group())
    except (RuntimeError, dist.DistError) as error:
        if not _is_lost(error):
            raise
        others = " or ".join(str(r) for r in range(world) if r != rank)
        raise ParallelError(f"rank {rank}: lost rank {others}, so this one stops too; {message}") from error
    finally:
        heart.stop()
        _control.clear()
        dist.destroy_process_group()


def _check(mode: Mode, world: int) -> None:
    if mode == "towers" and world != 2:
        raise ParallelError(
            f"--parallel towers needs two processes, here are {world}: "
            "torchrun --nproc-per-node 2 -m alexnet_train run ... --parallel towers"
        )
    if mode == "none" and world != 1:
        raise ParallelError(
            f"{world} processes, each training alone: add --parallel towers or --parallel data"
        )


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _backend(world: int) -> str:
    """Nccl for a GPU each; gloo on CPUs and for ranks that share a card, which nccl refuses."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    return "nccl" if torch.cuda.is_available() and torch.cuda.device_count() >= local else "gloo"


def _is_lost(error: Exception) -> bool:
    """Whether an error of torch.distributed tells of a peer that went away."""
    text = str(error).lower()
    return any(
        sign in text
        for sign in ("closed by peer", "connection reset", "broken pipe", "gloo", "nccl", "remote process")
    )


class StopVote:
    """Brings all processes to stop after the same update although signals reach them at different times.

    Each update's votes are summed while the next one runs, so that nobody waits.
    """

    def __init__(self, group: Workers) -> None:
        self.group = group
        self.pending: tuple[dist.Work, Tensor] | None = None

    def agreed(self, stopped: bool) -> bool:
        """Cast a vote; True when somebody had voted to stop by the last call."""
        if self.group.world == 1:
            return stopped
        answer = self.result()
        vote = torch.tensor([int(stopped)])
        work = dist.all_reduce(vote, group=_control_group(), async_op=True)
        assert work is not None
        self.pending = (work, vote)
        return answer

    def result(self) -> bool:
        """Wait for the last vote that was cast."""
        if self.pending is None:
            return False
        work, vote = self.pending
        work.wait()
        self.pending = None
        return bool(vote.item())


class _Heart:
    """Threads that show that this rank lives and end the process when another one does not.

    gloo tells of a dead peer by itself, but not of one that hangs; a rank stuck in an NCCL kernel cannot be
    told anything. So the threads leave for it.
    """

    def __init__(self, rank: int, world: int, message: str) -> None:
        self.rank, self.world, self.message = rank, world, message
        self.ended = threading.Event()
        self.store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            None,
            False,
            timeout=timedelta(seconds=LOST_AFTER_S),
            wait_for_workers=False,
        )
        self.store.set(f"alive/{rank}", "0")
        dist.barrier(group=_control_group())
        self.seen = {r: ("", time.monotonic()) for r in range(world) if r != rank}
        for work in (self._beat, self._watch):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def stop(self) -> None:
        """Let the threads end; they may be waiting for the store, and nobody waits for them."""
        self.ended.set()

    def _beat(self) -> None:
        """Show this rank's heartbeat and look for the others' in the store that torchrun or rank 0 keeps."""
        beats = 0
        while not self.ended.wait(HEARTBEAT_S):
            beats += 1
            try:
                self.store.set(f"alive/{self.rank}", str(beats))
                for rank, (last, _) in self.seen.items():
                    beat = self.store.get(f"alive/{rank}").decode()
                    if beat != last:
                        self.seen[rank] = (beat, time.monotonic())
            except dist.DistError:
                return  # the store is gone, and the watch will see that nothing moves any more

    def _watch(self) -> None:
        """Leave when no new heartbeat has been seen for too long; a store that hangs is noticed alike."""
        while not self.ended.wait(HEARTBEAT_S):
            for rank, (_, since) in list(self.seen.items()):
                if time.monotonic() - since > LOST_AFTER_S:
                    self._leave(f"rank {rank} has not answered for {LOST_AFTER_S:.0f} s")

    def _leave(self, reason: str) -> None:
        sys.stderr.write(
            f"\nalexnet-train: rank {self.rank}: {reason}, so this one stops too; {self.message}\n"
        )
        sys.stderr.flush()
        os._exit(EXIT_LOST_RANK)
