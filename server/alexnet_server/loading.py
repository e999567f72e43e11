"""From settings to a scheduler with an engine behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from alexnet_server.admission import Admission
from alexnet_server.batcher import Batcher
from alexnet_server.engines import Engine
from alexnet_server.errors import StartError
from alexnet_server.metrics import Metrics
from alexnet_server.scheduling import Scheduler
from alexnet_server.settings import Settings

OpenScheduler = Callable[[Settings, Metrics], Awaitable[Scheduler]]


async def open_scheduler(settings: Settings, metrics: Metrics) -> Scheduler:
    """Load the models that `settings` name.

    Raises:
        StartError: One cannot be loaded.
    """
    if settings.engine == "triton":
        raise StartError("--engine triton is not built yet")
    engine = await asyncio.to_thread(_open_onnx, settings)
    return await batch(engine, settings, metrics)


async def batch(engine: Engine, settings: Settings, metrics: Metrics) -> Batcher:
    """A batcher before an engine of this process, which is warmed up first."""
    admission = Admission(settings.queue_size)
    for name, (rows, seconds) in (await asyncio.to_thread(engine.warm_up)).items():
        admission.finish(name, rows * engine.models[name].views, seconds, idle=True)
    return Batcher(engine, admission, engine_timeout_s=settings.engine_timeout_s, on_batch=metrics.batch)


def _open_onnx(settings: Settings) -> Engine:
    # onnxruntime takes a second to import, and other engines do not need it.

    raise StartError("no repository yet")
