"""The processes of one run: who they are, when they stop together, and how a lost one is noticed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from alexnet_train.config import Config
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.towers import Tower, canonical_rows, own_rows

Mode = Literal["towers", "data", "none"]

LOST_AFTER_S = 30
"""What waits so long for another rank gives it up; a closed connection is noticed at once."""
PATIENCE_S = 1800
"""How long the ranks wait for one another at the start, and for rank 0 to write a checkpoint."""
CALL_S = 3
"""How long the ranks that are left wait for one another before they name those that are not."""


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

    def network(self, whole: AlexNet, config: Config) -> AlexNet:
        """This process' part of a recipe's network, channels last on its device."""
        own = whole
        if self.mode == "towers":
            own = Tower.of(config, whole.classes).split(self.rank)
            own.load_state_dict(own_rows(whole.state_dict(), self.rank))
        nn.Module.to(own, device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return own

    def own_share(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """This process' part of a one-process state."""
        return own_rows(state, self.rank) if self.mode == "towers" else state

    def one_process(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of ``own_share``, on rank 0 at least; every process calls it."""
        return canonical_rows(own, self.rank) if self.mode == "towers" else own

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes of a small CPU tensor."""
        if self.world > 1:
            dist.all_reduce(values, group=_control_group())
        return values

    def wait_for_rank_0(self) -> None:
        """Wait while rank 0 writes, longer than for anything else."""
        if self.world > 1:
            dist.monitored_barrier(_control_group(), timeout=timedelta(seconds=PATIENCE_S))


_control: list[dist.ProcessGroup] = []


def _control_group() -> dist.ProcessGroup:
    """A gloo group for a few numbers on the CPU, so that no GPU has to wait for them."""
    if not _control:
        _control.append(dist.new_group(backend="gloo", timeout=timedelta(seconds=LOST_AFTER_S)))
    return _control[0]


@contextmanager
def workers(mode: Mode, message: str) -> Iterator[Workers]:
    """Join the processes that were started together (none: just this one) and part from them at the end.

    A rank that dies closes its connections; one that hangs lets the others' next exchange on the CPU, one an
    update, run into its timeout, and NCCL's watchdog ends what waits for it on a GPU.

    Args:
        mode: ``towers`` (two processes, one tower each), ``data`` (DDP), ``none`` (one process).
        message: how to go on when a process is lost, for the error.

    Raises:
        ParallelError: the number of processes does not fit ``mode``, or one of them was lost.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    check(mode, world)
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    if mode == "none":
        yield Workers(mode, 0, 1, device)
        return
    timeout, store = timedelta(seconds=LOST_AFTER_S), _met(rank, world)
    dist.init_process_group(_backend(world), timeout=timeout, store=store, rank=rank, world_size=world)
    _control_group()
    try:
        yield Workers(mode, rank, world, device)
        dist.barrier(group=_control_group())
    except (RuntimeError, dist.DistError) as error:
        if not _is_lost(error):
            raise
        lost = " and ".join(str(other) for other in _lost(store, rank, world))
        raise ParallelError(f"rank {rank}: lost rank {lost}, so this one stops too; {message}") from error
    finally:
        _control.clear()
        dist.destroy_process_group()


def _met(rank: int, world: int) -> Store:
    """The store of what started the ranks, or rank 0's where there is none, once every rank has come."""
    own = _store(PATIENCE_S, is_master=rank == 0 and not _has_launchers_store())
    own.set(f"here {rank}", "")
    own.wait([f"here {other}" for other in range(world)])
    return own


def _has_launchers_store() -> bool:
    """Whether the ranks meet at the store of what started them, which is there before and after them."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store(timeout_s: float, *, is_master: bool) -> Store:
    """Where the ranks of this attempt leave what the others are to know."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = timedelta(seconds=timeout_s)
    store = TCPStore(address, port, is_master=is_master, timeout=timeout, wait_for_workers=False)
    return PrefixStore(f"alexnet {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def told_already(line: str) -> bool:
    """Whether another rank told the same line, as all would of a wrong input; this one is to tell it if not.

    Ranks that were started one by one do not know of one another, and each tells it.
    """
    if not _has_launchers_store():
        return False
    try:
        return _store(CALL_S, is_master=False).add(f"told {line}", 1) > 1
    except dist.DistError:
        return False  # better twice than never


def _lost(store: Store, rank: int, world: int) -> list[int]:
    """The ranks that do not answer a roll call."""
    others = [other for other in range(world) if other != rank]
    if world == 2:
        return others
    try:
        store.set(f"left {rank}", "")
        time.sleep(CALL_S)
        return [other for other in others if not store.check([f"left {other}"])] or others
    except dist.DistError:
        return [0]  # it went with the store


def check(mode: Mode, world: int) -> None:
    """Raise ``ParallelError`` unless ``mode`` is for ``world`` processes."""
    if mode == "towers" and world != 2:
        raise ParallelError(
            f"--parallel towers needs two processes, but there are {world}: add --processes 2, or start "
            "it with torchrun --nproc-per-node 2 -m alexnet_train run ... --parallel towers"
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
    signs = (
        "closed by peer",
        "connection reset",
        "broken pipe",
        "gloo",
        "nccl",
        "remote process",
        "timed out",
    )
    return any(sign in text for sign in signs)


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
