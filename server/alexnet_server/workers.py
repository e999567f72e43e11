"""Several server processes behind one address: `--workers N`.

The parent takes both ports before anything else and serves nothing itself. Only its workers may listen there,
each with a socket of its own (SO_REUSEPORT), so that the kernel spreads connections over them.
"""

from __future__ import annotations

import ctypes
import logging
import os
import selectors
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from alexnet_server.errors import StartError
from alexnet_server.listening import reserve
from alexnet_server.machine import usable_cores
from alexnet_server.settings import Settings
from alexnet_server.telemetry.metrics import Shared

log = logging.getLogger(__name__)

_READY = b"r"
_RETRY_S = 1.0
_HOPELESS = 5
"""Replacements in a row that ended before they were ready, after which the parent gives up."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Worker:
    """What a server process must know of being one of several."""

    index: int
    first: bool
    """It listens while it loads, so that the address answers at once; later ones only when they are ready."""
    metrics: Shared
    pipe: int
    """To the parent."""

    def ready(self) -> None:
        """Tell the parent that it serves."""
        os.write(self.pipe, _READY)


Serve = Callable[[Settings, Worker], int]
"""Serves until a signal or the end; returns the exit status."""


def run_workers(settings: Settings, serve: Serve) -> int:
    """Start the workers, replace those that die, and stop with a signal; returns the exit status.

    Raises:
        StartError: A port is taken, or this system cannot share one.
    """
    if sys.platform != "linux":
        raise StartError("--workers needs Linux; start several servers on different ports instead")
    http = reserve(settings.host, settings.http_port, "--http-port")
    grpc = reserve(settings.host, settings.grpc_port, "--grpc-port")
    folder = tempfile.mkdtemp(prefix="alexnet-metrics-")
    ports = {"http_port": http[0].getsockname()[1], "grpc_port": grpc[0].getsockname()[1]}
    try:
        return _Parent(_share(settings).model_copy(update=ports), folder, serve).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for kept in (*http, *grpc):
            kept.close()


def _share(settings: Settings) -> Settings:
    """A worker's part: cores, queue and decoding memory are divided, threads that are asked for are not."""
    count = settings.workers
    cores = max(1, usable_cores() // count)
    return settings.model_copy(
        update={
            "engine_threads": settings.engine_threads or cores,
            "decode_threads": settings.decode_threads or cores,
            "queue_size": -(-settings.queue_size // count),
            "decode_memory_bytes": -(-settings.decode_memory_bytes // count),
        }
    )


@dataclass
class _Child:
    index: int
    pid: int
    pipe: int
    ready: bool = False


class _Parent:
    def __init__(self, settings: Settings, folder: str, serve: Serve) -> None:
        self._settings = settings
        self._folder = folder
        self._serve = serve
        self._children: dict[int, _Child] = {}
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._status = 0
        self._failures = 0
        self._began = time.monotonic()

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._start(0, first=True)
        while self._children:
            for key, _ in self._selector.select():
                self._hear(key.data)
        return self._status

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Pass a signal on: the first drains the workers, a second one does not wait."""
        self._stopping = True
        for child in self._children.values():
            os.kill(child.pid, number)

    def _hear(self, child: _Child) -> None:
        if os.read(child.pipe, 1) == _READY:
            child.ready = True
            self._failures = 0
            self._start_others()
        else:
            self._ended(child)

    def _start_others(self) -> None:
        """Once one is ready, what is missing: it has found the model whole, and unpacked or compiled it."""
        for index in range(self._settings.workers):
            if index not in self._children and not self._stopping:
                self._start(index, first=False)
        ready = sum(child.ready for child in self._children.values())
        if ready == self._settings.workers and self._began:
            log.info("ready after %.1f s: %d workers", time.monotonic() - self._began, ready)
            self._began = 0.0

    def _ended(self, child: _Child) -> None:
        self._selector.unregister(child.pipe)
        os.close(child.pipe)
        code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        del self._children[child.index]
        Shared(self._folder, child.index).forget()
        if self._stopping:
            self._status = self._status or (1 if code else 0)
            return
        self._failures += not child.ready
        if self._failures >= _HOPELESS or (not child.ready and not self._children):
            self._give_up()
            return
        log.error("worker %d has ended (status %d) and is being replaced", child.index, code)
        if not child.ready:
            time.sleep(_RETRY_S)
        if not self._stopping:
            self._start(child.index, first=not self._children)

    def _give_up(self) -> None:
        self._status = 1
        self._stopping = True
        for child in self._children.values():
            os.kill(child.pid, signal.SIGTERM)

    def _start(self, index: int, *, first: bool) -> None:
        reading, writing = os.pipe()
        # A signal between the fork and the table's entry would miss this child.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self._be_worker(index, parent, writing, first=first)
        os.close(writing)
        child = self._children[index] = _Child(index, pid, reading)
        self._selector.register(reading, selectors.EVENT_READ, child)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})

    def _be_worker(self, index: int, parent: int, pipe: int, *, first: bool) -> None:
        """Never returns."""
        status = 1
        try:
            os.setpgid(0, 0)  # a terminal's Ctrl-C comes through the parent, once
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)
            self._selector.close()
            for child in self._children.values():
                os.close(child.pipe)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
            metrics = Shared(self._folder, index)
            metrics.use()
            status = self._serve(self._settings, Worker(index, first, metrics, pipe))
        finally:
            logging.shutdown()
            sys.stderr.flush()
            os._exit(status)
