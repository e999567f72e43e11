"""Starts the processes of a parallel test and defines what they do; imported by the spawned ranks."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from alexnet_server.models.variants import VARIANTS, Variant
from alexnet_train.config import Config
from alexnet_train.network import towers
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.draws import Draws
from alexnet_train.network.towers import Tower, canonical_rows, own_rows
from alexnet_train.run.mix import Labels
from alexnet_train.run.parallel import Mode, Workers, workers
from alexnet_train.run.schedule import Rates
from alexnet_train.run.step import train_step
from alexnet_train.run.update import optimizer_for, set_rates

UPDATES = 5
CONFIG = Config("equality", update="2012")
CLASSES = 10


@dataclass(frozen=True)
class Case:
    """A network, how it is trained, and a fault to plant."""

    variant: Variant
    window: int
    batch_size: int = 8
    fault: str = ""
    compiled: bool = False
    """Compile a tower's segments, each of which must then be one graph."""


def narrow(name: str) -> Variant:
    """The variant at a twelfth of its width or so: fast, and still two towers with LRN windows to cross."""
    return replace(VARIANTS[name], channels=(16, 32, 48, 48, 32), hidden=64)


def spawn(work: Callable[..., None], *arguments: object, world: int = 2) -> None:
    """Run ``work(rank, world, *arguments)`` in ``world`` processes as torchrun would set them up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_as_rank, (world, port, work, arguments), nprocs=world)


def _as_rank(
    rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    work(rank, world, *arguments)


def trained_by_ranks(rank: int, world: int, case: Case, mode: Mode, out: Path) -> None:
    """One rank's part of ``trained``; rank 0 saves the results, in one-process shapes, to ``out``."""
    with workers(mode, "run the test again") as group:
        results = trained(case, group)
        if rank == 0:
            torch.save(results, out)


def trained(case: Case, group: Workers) -> dict[str, dict[str, Tensor]]:
    """Logits and gradients of the first update, and the weights' movement after ``UPDATES`` of them."""
    torch.set_num_threads(1)
    whole = AlexNet(case.variant, CLASSES, window=case.window).double()
    whole.initialise(torch.Generator().manual_seed(1))
    start = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    network: AlexNet = whole
    if group.mode == "towers":
        network = Tower(case.variant, CLASSES, window=case.window).double().split(group.rank)
        network.load_state_dict(own_rows(start, group.rank))
        _plant(case.fault, network)
    called: nn.Module = network
    if case.compiled and isinstance(network, Tower):
        called = network.compiled(backend="aot_eager", fullgraph=True)
    if group.mode == "data":
        called = nn.parallel.DistributedDataParallel(network)
    optimizer = optimizer_for(network, CONFIG)
    set_rates(optimizer, Rates(0.01, 0.02, 0.01, 0.02))
    rows = group.rows(case.batch_size)
    results: dict[str, dict[str, Tensor]] = {}
    for step in range(UPDATES):
        generator = torch.Generator().manual_seed(100 + step)
        x = torch.randn(case.batch_size, 3, case.window, case.window, generator=generator).double() * 70
        y = torch.randint(0, CLASSES, (case.batch_size,), generator=generator)
        draws = Draws(_seed(case.fault, group.rank), step, rows)
        if step == 0:
            results["logits"] = _logits(network, x[rows], draws, group)
        train_step(called, optimizer, x[rows], Labels(y[rows], y[rows]), CONFIG, draws)
        if step == 0:
            gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
            results["gradients"] = _canonical(gradients, group)
    end = _canonical(network.state_dict(), group)
    results["movements"] = {name: tensor - start[name] for name, tensor in end.items()}
    return results


def _logits(network: AlexNet, x: Tensor, draws: Draws, group: Workers) -> dict[str, Tensor]:
    with torch.no_grad():
        logits = network(x, draws)
    if group.mode == "data":
        parts = [torch.empty_like(logits) for _ in range(group.world)]
        torch.distributed.all_gather(parts, logits)
        logits = torch.cat(parts)
    return {"logits": logits}


def _canonical(values: dict[str, Any], group: Workers) -> dict[str, Tensor]:
    if group.mode == "towers":
        return canonical_rows(values, group.rank)
    return {name: tensor.clone() for name, tensor in values.items()}


def _seed(fault: str, rank: int) -> int:
    return 7 + rank if fault == "masks are redrawn" else 7


def _plant(fault: str, network: AlexNet) -> None:
    """Break what the equality test has to notice."""
    if fault == "the remote gradient is dropped":
        towers._Join.backward = staticmethod(lambda ctx, gradient: (gradient.chunk(2, 1)[ctx.rank], None))
    if fault == "the LRN spans the towers":
        # As a fused network's would: windows reach over the seam, at both its sides.
        network._steps = _seamless(network)  # type: ignore[method-assign]


def _seamless(network: AlexNet) -> Callable[[Tensor, tuple[str, ...]], Tensor]:
    own, spanning = network._steps, replace(network.variant, lrn_per_tower=False)

    def steps(x: Tensor, names: tuple[str, ...]) -> Tensor:
        if "lrn" not in names:
            return own(x, names)
        rank = network.rank
        assert isinstance(rank, int)
        whole = towers._Join.apply(x, rank)
        fused = AlexNet(spanning, CLASSES, window=99)
        return fused._steps(whole, names).chunk(2, 1)[rank]

    return steps
