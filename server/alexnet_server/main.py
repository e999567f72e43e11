"""`alexnet-server`: HTTP and gRPC on one event loop, from start to drain."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from alexnet_server.access.keys import load_keys
from alexnet_server.access.tls import load_certificate
from alexnet_server.batching.scheduler import Scheduler
from alexnet_server.errors import StartError
from alexnet_server.http.app import create_app
from alexnet_server.http.server import HttpDoor, addresses
from alexnet_server.listening import listen
from alexnet_server.loading import OpenScheduler, fetched, open_scheduler
from alexnet_server.machine import configure_allocator, usable_cores
from alexnet_server.rpc import GrpcDoor
from alexnet_server.service import Classifier
from alexnet_server.settings import Settings, load_settings
from alexnet_server.telemetry import logs, tracing
from alexnet_server.telemetry.metrics import Metrics
from alexnet_server.workers import Worker, run_workers

try:
    from uvloop import new_event_loop
except ImportError:  # Windows, whose own loop cannot watch a port that is listened on; this one can
    new_event_loop = asyncio.SelectorEventLoop  # type: ignore[assignment]

log = logging.getLogger(__name__)

_Stop = asyncio.Future[signal.Signals]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The process's exit status: 0 after SIGTERM or SIGINT, 1 after a failure, 2 for settings that make no
        sense.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["unpack"]:
        from alexnet_server.models.unpack import main as unpack  # brings onnx with it

        return unpack(words[1:])
    if words[:1] == ["weights"]:
        from alexnet_server.models.public.cache import main as weights

        return weights(words[1:])
    if "--version" in words:
        print(f"alexnet-server {version('alexnet')}")  # noqa: T201 - the answer to the command
        return 0
    form = os.environ.get("ALEXNET_LOG_FORMAT", "plain")  # until the settings are known
    logs.configure("info", form)
    try:
        settings = load_settings(words)
    except StartError as error:
        return _refuse(error, 2, form)
    return run(settings)


def run(settings: Settings, open_scheduler: OpenScheduler = open_scheduler) -> int:
    """Serve in this process's main thread until a signal or the engine's end; returns the exit status."""
    _open_standard_files()
    logs.configure(settings.log_level, settings.log_format)
    configure_allocator()
    if settings.workers == 1:
        return _run(settings, open_scheduler, None)
    try:
        return run_workers(settings, lambda share, worker: _run(share, open_scheduler, worker))
    except StartError as error:
        return _refuse(error, 1, settings.log_format)


def _run(settings: Settings, open_scheduler: OpenScheduler, worker: Worker | None) -> int:
    try:
        tracing.configure()
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(serve(settings, open_scheduler, worker))
    except StartError as error:
        return _refuse(error, 1, settings.log_format)
    finally:
        tracing.close()


async def serve(
    settings: Settings, open_scheduler: OpenScheduler = open_scheduler, worker: Worker | None = None
) -> int:
    """Open the ports, load the models, serve, drain.

    Args:
        settings: What to serve, and where.
        open_scheduler: Loads the models and puts a scheduler before their engine.
        worker: This process's place among several.

    Returns:
        The process's exit status.

    Raises:
        StartError: A port is taken, a file is wrong, or the models cannot be loaded.
    """
    metrics = Metrics(worker.metrics if worker else None)
    classifier = Classifier(settings, metrics, decode_threads=settings.decode_threads or usable_cores())
    doors = _Doors(classifier, settings)
    stop: _Stop = asyncio.get_running_loop().create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        _listen_to(number, stop, doors)
    if worker is None or worker.first:
        await doors.open()
    try:
        return await _live(settings, classifier, stop, doors, open_scheduler, worker)
    finally:
        await doors.close()
        await classifier.close()
        log.info("closed")


class _Doors:
    """The HTTP and gRPC ports of a server."""

    def __init__(self, classifier: Classifier, settings: Settings) -> None:
        keys, self._certificate = load_keys(settings), load_certificate(settings)
        self._settings = settings
        self.http = HttpDoor(create_app(classifier, settings, keys), settings, self._certificate)
        self.grpc = GrpcDoor(classifier, settings, keys, self._certificate)
        self.serving: asyncio.Task[None] | None = None
        """Ends when the HTTP port has closed; None before it was opened."""

    async def open(self) -> None:
        settings = self._settings
        sockets = listen(settings.host, settings.http_port, "--http-port", shared=settings.workers > 1)
        await self.grpc.open()
        self.serving = asyncio.create_task(self.http.serve(sockets))
        where = addresses(sockets, "http" if self._certificate is None else "https")
        log.info("listening on %s and %s, loading", where, self.grpc.address)

    async def close(self) -> None:
        """Let what is in flight finish."""
        self.http.stop()
        closing = [asyncio.create_task(self.grpc.close(self._settings.shutdown_timeout_s))]
        if self.serving is not None:
            closing.append(self.serving)
        await asyncio.wait(closing)

    def abort(self) -> None:
        """Wait for nobody any more."""
        self.http.stop()
        self.http.force_exit = True
        self.grpc.abort()


async def _live(
    settings: Settings,
    classifier: Classifier,
    stop: _Stop,
    doors: _Doors,
    open_scheduler: OpenScheduler,
    worker: Worker | None,
) -> int:
    """From loading to the end of draining; returns the exit status."""
    started = time.monotonic()

    async def opened() -> Scheduler:
        return await open_scheduler(await fetched(settings, classifier.tell_loading), classifier.metrics)

    loading = asyncio.create_task(classifier.load(opened))
    await _first_of(loading, stop, doors.serving)
    if loading.done():
        failed = loading.result()
        if (problem := classifier.problem()) is not None:
            log.error("not ready: %s", problem)
        elif worker is None:
            log.info("ready after %.1f s: %s", time.monotonic() - started, _loaded(classifier))
        else:
            await _join(worker, doors, classifier)
        await _first_of(failed, stop, doors.serving)
        if failed.done():
            return 1
    loading.cancel()
    if not stop.done():
        log.critical("the HTTP server stopped by itself")
        return 1
    classifier.begin_drain()
    if stop.result() == signal.SIGTERM and settings.drain_delay_s and doors.serving:
        log.info("draining: serving for another %g s", settings.drain_delay_s)
        await asyncio.wait({doors.serving}, timeout=settings.drain_delay_s)
    return 0


async def _first_of(*ends: asyncio.Future[Any] | None) -> None:
    await asyncio.wait({end for end in ends if end is not None}, return_when=asyncio.FIRST_COMPLETED)


async def _join(worker: Worker, doors: _Doors, classifier: Classifier) -> None:
    """Serve beside the other workers."""
    if doors.serving is None:
        await doors.open()
    log.info("worker %d serves %s", worker.index, _loaded(classifier))
    classifier.metrics.keep_fresh(asyncio.get_running_loop())
    worker.ready()


def _listen_to(number: signal.Signals, stop: _Stop, doors: _Doors) -> None:
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(number, _on_signal, number, stop, doors)
    except NotImplementedError:  # on Windows; the HTTP server looks about ten times a second
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(_on_signal, number, stop, doors))


def _on_signal(number: signal.Signals, stop: _Stop, doors: _Doors) -> None:
    """The first signal drains, a second one does not wait for anybody."""
    if stop.done():
        doors.abort()
    else:
        stop.set_result(number)


def _open_standard_files() -> None:
    """See that 0, 1 and 2 are open: a socket in their place would be written to, and gRPC aborts at exit."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - for good


def _loaded(classifier: Classifier) -> str:
    return ", ".join(
        f"{model.name} ({model.about.get('precision', '?')}, {model.device})"
        for model in classifier.models.values()
    )


def _refuse(error: StartError, status: int, form: str) -> int:
    if form == "json":  # whoever reads JSON lines gets nothing else
        log.critical("%s", error)
    else:
        print(f"alexnet-server: {error}", file=sys.stderr)  # noqa: T201 - as commands say it
    return status
