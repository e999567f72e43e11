"""The processes of one run on one machine, started and waited for together, as torchrun would.

torchrun reports a run that was saved and stopped as a failure, in forty lines of its own and with status 1,
and kills what has not ended 30 seconds after SIGTERM. For several machines it remains the way.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, start_processes

from alexnet_train.run.parallel import LOST_AFTER_S, Mode, ParallelError, check

GRACE_S = 2 * LOST_AFTER_S
"""What the others are given to notice a rank that failed, to say so, and to end."""
ADDRESS = "127.0.0.1"


def launch(processes: int, mode: Mode, work: Callable[[], int]) -> int:
    """Call ``work()`` in each of ``processes`` processes, which get the SIGTERM and SIGINT of this one.

    Args:
        processes: how many.
        mode: what they are for.
        work: gives the process' exit status; it is pickled.

    Returns:
        0, or the status of the first that failed: 128 and the signal's number where a signal killed it.

    Raises:
        ParallelError: the number does not fit ``mode``, or torchrun has started processes already.
    """
    check(mode, processes)
    if "RANK" in os.environ:
        raise ParallelError("torchrun has started the processes already: leave --processes out")
    store = TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False)
    ranks = (processes, store.port, work)
    context = start_processes(_as_rank, ranks, processes, join=False)  # type: ignore[no-untyped-call]
    with _passed_on(context):
        try:
            while not context.join(grace_period=GRACE_S):
                pass
        except ProcessExitedException as end:
            return end.exit_code if end.exit_code > 0 else 128 - end.exit_code
    return 0


@contextmanager
def _passed_on(context: ProcessContext) -> Iterator[None]:
    """Pass signals to the processes, which know best when to stop."""

    def send(number: int, _frame: FrameType | None) -> None:
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    before = {number: signal.signal(number, send) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_rank(rank: int, processes: int, port: int, work: Callable[[], int]) -> None:
    """One of the processes; the store they meet at is the launcher's."""
    # A KeyboardInterrupt before there is anything to save would end in status 0.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": ADDRESS,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    sys.exit(work())
