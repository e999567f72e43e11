"""Daemon threads: work that hangs in a library cannot delay the process's exit.

The interpreter joins the threads of a `ThreadPoolExecutor` when it ends, for as long as they take.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any


class DaemonThreads(Executor):
    """An executor for `loop.run_in_executor`, first come, first served.

    Args:
        count: Threads.
        name: Theirs.
    """

    def __init__(self, count: int, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._count = count
        self._began: dict[int, float] = {}  # when each busy thread began its work
        self._ended = self._dropping = False
        for _ in range(count):
            Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Executor.submit`; RuntimeError after `shutdown`."""
        if self._ended:
            raise RuntimeError("cannot take work after the shutdown")
        future: Future[Any] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self._dropping:
                    raise RuntimeError("closed")
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # SystemExit too: whoever waits must learn of it
                future.set_exception(error)

        self._work.put(work)
        return future

    def stuck(self, seconds: float) -> bool:
        """True when each thread has been at one piece of work for longer than that."""
        limit = time.monotonic() - seconds
        return sum(began < limit for began in tuple(self._began.values())) >= self._count

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """End the threads after what they were given, or after what they do now; never waits for them.

        With `cancel_futures` work that has not begun fails with RuntimeError.
        """
        self._ended, self._dropping = True, cancel_futures
        while cancel_futures:
            try:
                work = self._work.get_nowait()
            except Empty:
                break
            if work is not None:
                work()
        for _ in range(self._count):
            self._work.put(None)

    def _run(self) -> None:
        own = threading.get_ident()
        while (work := self._work.get()) is not None:
            self._began[own] = time.monotonic()
            work()
            del self._began[own], work  # or what it holds lives until the next
