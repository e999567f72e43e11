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
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from alexnet_server.admission import Admission
from alexnet_server.engines import Engine, EngineFailed, Model, Outputs
from alexnet_server.errors import Internal, Unavailable
from alexnet_server.scheduling import CLOSING, Place, Row

log = logging.getLogger(__name__)

_HOPELESS_BATCHES = 5
"""Batches in a row of which no row succeeded, after which the engine counts as broken."""


@dataclass(slots=True)
class _Pending:
    """An image that waits for the engine."""

    image: NDArray[np.uint8]
    features: bool
    future: asyncio.Future[Row]
    arrival: int
    ready_at: float


@dataclass(slots=True)
class _ModelQueue:
    """Photos of one model: `decoding` have a place and no image yet, `ready` wait for the engine."""

    model: Model
    decoding: int = 0
    ready: dict[int, _Pending] = field(default_factory=dict)


@dataclass(slots=True)
class _Batch:
    """Rows handed to the engine's thread."""

    model: Model
    rows: list[_Pending]
    started_at: float | None = None
    ended_at: float = 0.0
    results: list[Outputs | Exception] = field(default_factory=list)


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
        self._in_engine: list[_Batch] = []  # the running batch, and at most one prefetched behind it
        self._hopeless = 0
        self._last_end = 0.0
        self._decode_s = 0.0  # running mean between two images becoming ready while decoders work
        self._last_ready = 0.0
        self._patience: asyncio.TimerHandle | None = None
        self._closed = False
        self._inbox: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._engine_thread, name="alexnet-engine", daemon=True)
        self._thread.start()

    # -- for callers -------------------------------------------------------------------------------------

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
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join, self._engine_timeout_s)
        await asyncio.sleep(0)  # the last batch's callers are answered by a callback on this loop
        if not self._thread.is_alive():
            self._engine.close()

    # -- on the event loop -------------------------------------------------------------------------------

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
        """True while it pays to wait for photos of this model being decoded on the engine's cores."""
        if not (self._engine.shares_cores and model_queue.decoding):
            return False
        # Twice the usual gap between two images: a huge photo must not keep small ones waiting.
        remaining_s = self._last_ready + 2 * self._decode_s - time.monotonic()
        if remaining_s <= 0:
            return False
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self._loop.call_later(remaining_s, self.pump)
        return True

    def _dispatch(self, model_queue: _ModelQueue) -> None:
        model = model_queue.model
        keys = sorted(model_queue.ready)[: model.max_batch_size]
        batch = _Batch(model, [model_queue.ready.pop(key) for key in keys])
        for _ in batch.rows:
            self.admission.leave(model.name, model.views)
        self.admission.start(model.name, len(batch.rows) * model.views)
        self._in_engine.append(batch)
        self._inbox.put(batch)

    def _note_ready(self, now: float, decoding: int) -> None:
        """Learn how fast decoders deliver, from gaps in which they were at work."""
        gap_s = now - self._last_ready
        if decoding and gap_s < 1.0:
            self._decode_s = gap_s if not self._decode_s else self._decode_s + 0.1 * (gap_s - self._decode_s)
        self._last_ready = now

    def _finish(self, batch: _Batch) -> None:
        """Answer a batch's callers, on the event loop."""
        if batch not in self._in_engine:  # the engine was given up meanwhile, and they were answered
            return
        self._in_engine.remove(batch)
        rows = len(batch.results)
        if rows and batch.started_at is not None:
            took_s = batch.ended_at - max(self._last_end, min(row.ready_at for row in batch.rows))
            self._last_end = batch.ended_at
            views = rows * batch.model.views
            self.admission.finish(batch.model.name, views, took_s, idle=not self._in_engine)
            self._on_batch(batch.model.name, rows)
        for row, result in zip(batch.rows, batch.results, strict=True):
            _answer(row, result, batch)
        self._judge(batch)
        self.pump()

    def _judge(self, batch: _Batch) -> None:
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

    # -- on the engine's thread --------------------------------------------------------------------------

    def _engine_thread(self) -> None:
        why = "its thread ended"
        try:
            while (batch := self._inbox.get()) is not None:
                self._run(batch)
                self._loop.call_soon_threadsafe(self._finish, batch)
                del batch  # or the images live until the next batch
            return
        except EngineFailed as error:
            why = str(error)
        except BaseException as error:
            # Whatever ends this thread (SystemExit and MemoryError included) ends the service with it.
            why = f"its thread ended by {type(error).__name__}: {error}"
        self._loop.call_soon_threadsafe(self._give_up, why)

    def _run(self, batch: _Batch) -> None:
        """Run a batch; when it fails as a whole, run its rows one by one, so that none pays for another."""
        batch.rows = [row for row in batch.rows if not row.future.done()]  # callers may have left
        batch.started_at = time.monotonic()
        if batch.rows:
            try:
                batch.results.extend(self._infer(batch.model, batch.rows))
            except EngineFailed:
                raise
            except Exception as error:
                log.exception("a batch of %d rows of %s failed", len(batch.rows), batch.model.name)
                alone = (
                    [error] if len(batch.rows) == 1 else [self._alone(batch.model, row) for row in batch.rows]
                )
                batch.results.extend(alone)
        batch.ended_at = time.monotonic()

    def _alone(self, model: Model, row: _Pending) -> Outputs | Exception:
        try:
            return self._infer(model, [row])[0]
        except EngineFailed:
            raise
        except Exception as error:
            return error

    def _infer(self, model: Model, rows: list[_Pending]) -> list[Outputs]:
        features = any(row.features for row in rows)
        images = np.stack([row.image for row in rows])
        probabilities, hidden = self._engine.infer(model.name, images, features=features)
        if len(probabilities) != len(rows) or (features and (hidden is None or len(hidden) != len(rows))):
            raise RuntimeError(f"{model.name} answered {len(probabilities)} rows to {len(rows)}")
        return [
            Outputs(probabilities[i], hidden[i] if hidden is not None and row.features else None)
            for i, row in enumerate(rows)
        ]


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
        batcher = self._batcher
        if batcher._closed:
            raise Unavailable(CLOSING, retry_after_s=1.0)
        self._decoding = False
        self._queue.decoding -= 1
        future: asyncio.Future[Row] = batcher._loop.create_future()
        now = time.monotonic()
        batcher._note_ready(now, self._queue.decoding)
        self._queue.ready[self._arrival] = _Pending(image, features, future, self._arrival, now)
        batcher.pump()
        return await future


def _answer(row: _Pending, result: Outputs | Exception, batch: _Batch) -> None:
    if row.future.done():
        return
    if isinstance(result, Exception):
        row.future.set_exception(Internal())
    else:
        started_at = batch.started_at or batch.ended_at
        waited_s = max(0.0, started_at - row.ready_at)
        row.future.set_result(Row(*result, waited_s=waited_s, engine_s=batch.ended_at - started_at))
