"""Prometheus metrics, in base units; one registry for each server, so that tests can have several."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import version
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    multiprocess,
    values,
)

# Twice as many series, for a time that no dashboard shows.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_REFRESH_S = 1.0
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
CallKind = Literal["unary", "stream", "batch"]


class Shared:
    """Metrics that several worker processes count together, in files of one folder.

    A worker that replaces another goes on with its files, so that nothing that was counted is lost.

    Args:
        folder: Of the parent.
        index: The worker's.
    """

    def __init__(self, folder: str, index: int) -> None:
        self.folder = folder
        self._index = index

    def use(self) -> None:
        """Make this process count there; before it makes `Metrics`."""
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = self.folder
        values.ValueClass = values.MultiProcessValue(lambda: self._index)  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        """Drop what was only true while the worker lived: its queue, its readiness."""
        multiprocess.mark_process_dead(self._index, self.folder)  # type: ignore[no-untyped-call]

    def registry(self) -> CollectorRegistry:
        """What all workers have counted."""
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, self.folder)  # type: ignore[no-untyped-call]
        return registry


class Metrics:
    """What the server counts.

    `alexnet_requests_total{door,model,code}` (code `ok`, `cancelled` or one of the error table),
    `alexnet_request_seconds{door,model,views,call=unary|stream|batch}`,
    `alexnet_stage_seconds{model,stage=decode|queue|engine}`,
    `alexnet_batch_size{model}` in rows, `alexnet_queue_views` and `alexnet_queue_limit_views`,
    `alexnet_tasks`, `alexnet_ready`, `alexnet_build_info{version}`, and the process's own.

    Args:
        shared: With other workers: sums over all, `alexnet_ready` when all are, and nothing of one process.
    """

    def __init__(self, shared: Shared | None = None) -> None:
        self._shared = shared
        self._views: dict[str, str] = {}
        self._own = CollectorRegistry()
        self._watched: list[tuple[Gauge, Callable[[], float]]] = []
        if shared is None:
            ProcessCollector(registry=self._own)
            PlatformCollector(registry=self._own)
        self._requests = Counter(
            "alexnet_requests", "Requests answered.", ("door", "model", "code"), registry=self._own
        )
        self._request_seconds = Histogram(
            "alexnet_request_seconds",
            "From the request's headers to its answer; of a stream, from each photo's arrival.",
            ("door", "model", "views", "call"),
            buckets=_SECONDS,
            registry=self._own,
        )
        self._stage_seconds = Histogram(
            "alexnet_stage_seconds",
            "Time of a photo in each stage.",
            ("model", "stage"),
            buckets=_SECONDS,
            registry=self._own,
        )
        self._batch_size = Histogram(
            "alexnet_batch_size", "Rows in a batch.", ("model",), buckets=_ROWS, registry=self._own
        )
        self._queue_views = self._gauge(
            "queue_views", "Views waiting for a decoder or the engine.", "livesum"
        )
        self._queue_limit = self._gauge(
            "queue_limit_views", "Views that may wait; more are refused.", "livesum"
        )
        self._tasks = self._gauge("tasks", "Tasks of the event loop that have not ended.", "livesum")
        self._ready = self._gauge("ready", "1 when requests should be sent here.", "livemin")
        build = Gauge(
            "alexnet_build_info", "What runs.", ("version",), registry=self._own, multiprocess_mode="max"
        )
        build.labels(version("alexnet")).set(1)
        # prometheus_client checks label names on every `labels()`; children never change, so keep them.
        self._requests_child = lru_cache(1024)(self._requests.labels)
        self._request_seconds_child = lru_cache(256)(self._request_seconds.labels)
        self._stage_child = lru_cache(256)(self._stage_seconds.labels)
        self._batch_child = lru_cache(64)(self._batch_size.labels)

    def _gauge(self, name: str, text: str, mode: Literal["livesum", "livemin"]) -> Gauge:
        return Gauge(f"alexnet_{name}", text, registry=self._own, multiprocess_mode=mode)

    @property
    def registry(self) -> CollectorRegistry:
        """What has been counted, by all workers where there are several."""
        self.refresh()
        return self._own if self._shared is None else self._shared.registry()

    def refresh(self) -> None:
        """Write down what is watched, for the other workers."""
        for gauge, value in self._watched:
            gauge.set(value())

    def keep_fresh(self, loop: asyncio.AbstractEventLoop) -> None:
        """Refresh every second as long as the loop runs: another worker may be asked for the metrics."""
        self.refresh()
        loop.call_later(_REFRESH_S, self.keep_fresh, loop)

    def know(self, views: Mapping[str, str]) -> None:
        """The view mode of each model that is served, by its name."""
        self._views = dict(views)

    def request(self, door: str, model: str, code: str, seconds: float, call: CallKind = "unary") -> None:
        """Count one answered request, or one photo of a stream.

        Args:
            door: `http` or `grpc`.
            model: Its name; empty where none was involved.
            code: `ok`, `cancelled` or one of the error table.
            seconds: From the headers to the answer.
            call: Only `unary` says how fast the service is: a photo of a stream waits by its client's
                choice, and a batch is as slow as it is long.
        """
        self._requests_child(door, model, code).inc()
        self._request_seconds_child(door, model, self._views.get(model, ""), call).observe(seconds)

    def stage(self, model: str, stage: str, seconds: float) -> None:
        """Record one photo's time in `decode`, `queue` or `engine`."""
        self._stage_child(model, stage).observe(seconds)

    def batch(self, model: str, rows: int) -> None:
        """Record one batch of the engine."""
        self._batch_child(model).observe(rows)

    def watch(
        self, queue_views: Callable[[], float], ready: Callable[[], float], *, queue_limit_views: int
    ) -> None:
        """Read the first two, and count tasks, whenever the metrics are scraped or refreshed."""
        self._queue_limit.set(queue_limit_views)
        self._watched = [
            (self._queue_views, queue_views),
            (self._tasks, _tasks),
            (self._ready, ready),
        ]

    def render(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)


def _tasks() -> float:
    """Those of the running loop, if there is one."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0.0
