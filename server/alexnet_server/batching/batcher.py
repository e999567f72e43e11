"""The batcher: a batch is whatever queued while the engine was busy.

One batcher feeds one device. Callers reserve a place before their photo is decoded, and hand in the image
once it is. An idle engine starts at once with what is ready, so there is no delay to tune and a lone request
waits for nobody; while it works, the next batch grows. Queues of several models share the engine in order of
arrival. Everything but the engine's own call happens on the event loop.

Where the engine computes on the cores that decode (`Engine.shares_cores`), those cores are not idle while
photos are being decoded: starting a small batch then would slow the decoders and cost the photos behind them
a batch of their own. So the engine waits for decoders at work, as long as they keep delivering.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from alexnet_server.batching.admission import Admission
from alexnet_server.batching.engine_thread import Batch, EngineThread, Pending
from alexnet_server.batching.scheduler import CLOSING, Place, Row
from alexnet_server.engines import Engine, Model, Outputs
from alexnet_server.errors import Internal, Unavailable

log = logging.getLogger(__name__)

_HOPELESS_BATCHES = 5
"""Batches in a row of which no row succeeded, after which the engine counts as broken."""
_SMALL_BATCH = 2


@dataclass(slots=True)
class _ModelQueue:
    """Photos of one model: `decoding` have a place and no image yet, `ready` wait for the engine."""

    model: Model
    decoding: int = 0
    ready: dict[int, Pending] = field(default_factory=dict)


class Batcher:
    """Feeds one engine from bounded queues; see the module's text.

    Args:
        engine: Called from one thread of the batcher's own; `warm_up` is the caller's business.
        admission: The bound, shared by all models.
        engine_timeout_s: A batch running longer is a `problem()`.
        on_batch: Called with (model's name, rows) for each finished batch.
    """

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        *,
        engine_timeout_s: float,
        on_batch: Callable[[str, int], None] = lambda _model, _rows: None,
    ) -> None:
        self.admission = admission
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.models: Mapping[str, Model] = engine.models
        self._engine = engine
        self._engine_timeout_s = engine_timeout_s
        self._on_batch = on_batch
        self._queues = {name: _ModelQueue(model) for name, model in engine.models.items()}
        self._loop = asyncio.get_running_loop()
        self._arrivals = 0
        self._in_engine: list[Batch] = []  # the running batch, and at most one prefetched behind it
        self._hopeless = 0
        self._last_end = 0.0
        self._decode_s = 0.0  # running mean between two images becoming ready while decoders work
        self._last_ready = 0.0
        self._small_batch_s = 0.0  # running mean of the engine's time for one or two rows
        self._patience: asyncio.TimerHandle | None = None
        self._closed = False
        self._thread = EngineThread(engine, self._loop, self._finish, self._give_up)

    def reserve(self, model: Model, deadline: float) -> Place:
        """See `Scheduler.reserve`."""
        if self._closed:
            raise Unavailable(CLOSING, retry_after_s=1.0)
        self.admission.enter(model.name, model.views, deadline)
        self._arrivals += 1
        return _Place(self, self._queues[model.name], self._arrivals)

    def problem(self) -> str | None:
        """See `Scheduler.problem`."""
        if self._closed:
            return "the engine has stopped"
        started_at = self._in_engine[0].started_at if self._in_engine else None
        if started_at is not None and time.monotonic() - started_at > self._engine_timeout_s:
            return f"a batch has been running for more than {self._engine_timeout_s:g} s"
        return None

    async def close(self) -> None:
        """See `Scheduler.close`. A batch that is running is waited for, `engine_timeout_s` at most."""
        self._stop(Unavailable(CLOSING, retry_after_s=1.0), keep_running=True)
        if await self._thread.stop(self._engine_timeout_s):
            self._engine.close()

    def pump(self) -> None:
        """Give the engine work if it should have some; called whenever anything has changed."""
        if self._closed or len(self._in_engine) > 1:
            return
        waiting = [model_queue for model_queue in self._queues.values() if model_queue.ready]
        if not waiting:
            return
        first = min(waiting, key=lambda model_queue: next(iter(model_queue.ready)))
        full = len(first.ready) >= first.model.max_batch_size
        # Behind a running batch only a full one is prefetched; any other still grows.
        if full or (not self._in_engine and not self._decoders_deliver(first)):
            self._dispatch(first)

    def _decoders_deliver(self, model_queue: _ModelQueue) -> bool:
        """True while it pays to wait for photos of this model being decoded on the engine's cores.

        What comes too late costs a batch of its own, about the time of a batch of one. So waiting for longer
        than that, with no decoder delivering, would cost more than it saves: a huge photo does not keep small
        ones. Slow decoders are given twice the usual gap between two images.
        """
        if not (self._engine.shares_cores and model_queue.decoding):
            return False
        patience_s = max(2 * self._decode_s, self._small_batch_s)
        remaining_s = max(self._last_ready, self._last_end) + patience_s - time.monotonic()
        if remaining_s <= 0:
            return False
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self._loop.call_later(remaining_s, self.pump)
        return True

    def _dispatch(self, model_queue: _ModelQueue) -> None:
        model = model_queue.model
        keys = sorted(model_queue.ready)[: model.max_batch_size]
        batch = Batch(model, [model_queue.ready.pop(key) for key in keys])
        for _ in batch.rows:
            self.admission.leave(model.name, model.views)
        self.admission.start(model.name, len(batch.rows) * model.views)
        self._in_engine.append(batch)
        self._thread.put(batch)

    def _note_ready(self, now: float, decoding: int) -> None:
        """Learn how fast decoders deliver, from gaps in which they were at work."""
        gap_s = now - self._last_ready
        if decoding and gap_s < 1.0:
            self._decode_s = _running_mean(self._decode_s, gap_s)
        self._last_ready = now

    def _finish(self, batch: Batch) -> None:
        """Answer a batch's callers, on the event loop."""
        if batch not in self._in_engine:  # the engine was given up meanwhile, and they were answered
            return
        self._in_engine.remove(batch)
        rows = len(batch.results)
        if rows and batch.started_at is not None:
            took_s = batch.ended_at - max(self._last_end, min(row.ready_at for row in batch.rows))
            self._last_end = batch.ended_at
            if rows <= _SMALL_BATCH:
                self._small_batch_s = _running_mean(self._small_batch_s, batch.ended_at - batch.started_at)
            views = rows * batch.model.views
            self.admission.finish(batch.model.name, views, took_s, idle=not self._in_engine)
            self._on_batch(batch.model.name, rows)
        for row, result in zip(batch.rows, batch.results, strict=True):
            _answer(row, result, batch)
        self._judge(batch)
        self.pump()

    def _judge(self, batch: Batch) -> None:
        """Give the engine up when batch after batch fails as a whole."""
        if any(isinstance(result, Outputs) for result in batch.results):
            self._hopeless = 0
        elif batch.results:
            self._hopeless += 1
            if self._hopeless >= _HOPELESS_BATCHES:
                self._give_up(f"{self._hopeless} batches in a row failed")

    def _give_up(self, why: str) -> None:
        """The engine is gone: answer everybody and tell whoever waits for `failed`."""
        if self._closed:
            return
        log.critical("engine lost: %s", why)
        self._stop(
            Unavailable("The engine has failed; send the request to another server.", retry_after_s=1.0)
        )
        if not self.failed.done():
            self.failed.set_result(None)

    def _stop(self, error: Unavailable, *, keep_running: bool = False) -> None:
        self._closed = True
        rows = [row for model_queue in self._queues.values() for row in model_queue.ready.values()]
        if not keep_running:
            rows += [row for batch in self._in_engine for row in batch.rows]
            self._in_engine.clear()
        for row in rows:
            if not row.future.done():
                row.future.set_exception(error)


class _Place:
    """A place in a batcher's queue."""

    def __init__(self, batcher: Batcher, model_queue: _ModelQueue, arrival: int) -> None:
        self._batcher = batcher
        self._queue = model_queue
        self._arrival = arrival
        self._decoding = True
        model_queue.decoding += 1

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *exc: object) -> None:
        left = self._queue.ready.pop(self._arrival, None)
        if self._decoding or left is not None:
            self._batcher.admission.leave(self._queue.model.name, self._queue.model.views)
        if self._decoding:
            self._decoding = False
            self._queue.decoding -= 1
            self._batcher.pump()  # the engine may have been waiting for this very photo

    async def infer(self, image: NDArray[np.uint8], *, features: bool = False) -> Row:
        """See `Place.infer`."""
        batcher = self._batcher
        if batcher._closed:
            raise Unavailable(CLOSING, retry_after_s=1.0)
        self._decoding = False
        self._queue.decoding -= 1
        future: asyncio.Future[Row] = batcher._loop.create_future()
        now = time.monotonic()
        batcher._note_ready(now, self._queue.decoding)
        self._queue.ready[self._arrival] = Pending(image, features, future, self._arrival, now)
        batcher.pump()
        return await future


def _running_mean(mean: float, new: float) -> float:
    return new if not mean else mean + 0.1 * (new - mean)


def _answer(row: Pending, result: Outputs | Exception, batch: Batch) -> None:
    if row.future.done():
        return
    if isinstance(result, Exception):
        row.future.set_exception(Internal())
    else:
        started_at = batch.started_at or batch.ended_at
        waited_s = max(0.0, started_at - row.ready_at)
        row.future.set_result(Row(*result, waited_s=waited_s, engine_s=batch.ended_at - started_at))
