"""The batcher: a batch is everything that queued while the engine was busy.

One batcher feeds one device, which computes one batch at a time or a few beside each other. Callers reserve a
place before their photo is decoded, and hand in the image once it is. An idle engine starts at once with what
is ready, so there is no delay to tune and a lone request waits for nobody; while it works, the next batch
grows. Queues of several models share the engine in order of arrival. Everything but the engine's own call
happens on the event loop.

Where the engine computes on the cores that decode (`Engine.shares_cores`), those cores are not idle while
photos are being decoded: starting a small batch then would slow the decoders and cost the photos behind them
a batch of their own. So the engine waits for busy decoders, as long as they keep delivering.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from alexnet_server.batching.admission import Admission
from alexnet_server.batching.batch import Batch
from alexnet_server.batching.scheduler import Place, Row, Scheduler, closing
from alexnet_server.engines import Engine, Model, Outputs
from alexnet_server.errors import Unavailable
from alexnet_server.threads import DaemonThreads

log = logging.getLogger(__name__)

_HOPELESS_BATCHES = 5
"""Batches in a row of which no row succeeded, after which the engine counts as broken."""
_SMALL_BATCH = 2


class Batcher(Scheduler):
    """Feeds one engine from bounded queues; see the module's text.

    Args:
        engine: Called from threads of the batcher's own, `concurrency` of them; `warm_up` is the caller's
            business.
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
        super().__init__(engine.models, admission)
        self._engine = engine
        self._engine_timeout_s = engine_timeout_s
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._threads = DaemonThreads(engine.concurrency, "alexnet-engine")
        self._decoding = dict.fromkeys(engine.models, 0)
        self._ready: dict[str, dict[int, Place]] = {name: {} for name in engine.models}  # by arrival
        # The running batches, and at most one prefetched behind them.
        self._in_engine: dict[Batch, asyncio.Future[None]] = {}
        self._lost = False
        self._hopeless = 0
        self._last_end = 0.0
        self._decode_s = 0.0  # running mean between two images becoming ready while decoders work
        self._last_ready = 0.0
        self._small_batch_s = 0.0  # running mean of the engine's time for one or two rows
        self._patience: asyncio.TimerHandle | None = None

    def reserve(self, model: Model, deadline: float, *, admitted: bool = False) -> Place:
        """See `Scheduler.reserve`."""
        place = super().reserve(model, deadline, admitted=admitted)
        self._decoding[model.name] += 1
        return place

    async def infer(self, place: Place, image: NDArray[np.uint8], *, features: bool) -> Row:
        """See `Place.infer`."""
        if self.closed:
            raise closing()
        name, now = place.model.name, time.monotonic()
        place.image, place.features, place.ready_at = image, features, now
        self._decoding[name] -= 1
        gap_s = now - self._last_ready
        if self._decoding[name] and gap_s < 1.0:  # how fast decoders deliver while they are busy
            self._decode_s = _running_mean(self._decode_s, gap_s)
        self._last_ready = now
        self._ready[name][place.arrival] = place
        self._pump()
        return await place.answer

    def leave(self, place: Place) -> None:
        """See `Scheduler.leave`; places of rows that went to the engine are free already."""
        if place.image is None:
            self._decoding[place.model.name] -= 1
            super().leave(place)
            self._pump()  # the engine may have been waiting for this very photo
        elif self._ready[place.model.name].pop(place.arrival, None):
            super().leave(place)

    def problem(self) -> str | None:
        """See `Scheduler.problem`."""
        if self.closed:
            return "the engine has stopped"
        latest = time.monotonic() - self._engine_timeout_s
        if any(0.0 < batch.started_at < latest for batch in self._in_engine):
            return f"a batch has been running for more than {self._engine_timeout_s:g} s"
        return None

    async def close(self) -> None:
        """See `Scheduler.close`. A batch that is running is waited for, `engine_timeout_s` at most."""
        self._refuse(closing(), self._waiting())
        running = list(self._in_engine.values())
        if running and (await asyncio.wait(running, timeout=self._engine_timeout_s))[1]:
            return
        self._threads.shutdown()
        self._engine.close()

    def _pump(self) -> None:
        """Give the engine work if it should have some; called whenever anything has changed."""
        if self.closed or len(self._in_engine) > self._engine.concurrency:
            return
        waiting = [places for places in self._ready.values() if places]
        if not waiting:
            return
        first = min(waiting, key=lambda places: next(iter(places)))
        model = next(iter(first.values())).model
        most = self._most_rows(model)
        # Beside or behind a running batch only a full one goes; any other still grows.
        if len(first) >= most or (not self._in_engine and not self._decoders_deliver(model)):
            self._dispatch(model, [first.pop(key) for key in sorted(first)[:most]])

    def _most_rows(self, model: Model) -> int:
        """Rows of a full batch: as many as the model takes, and no more than make it cheaper a view."""
        if self._engine.enough_views is None:
            return model.max_batch_size
        return min(model.max_batch_size, max(1, self._engine.enough_views // model.views))

    def _decoders_deliver(self, model: Model) -> bool:
        """True while it pays to wait for photos of this model being decoded on the engine's cores.

        What comes too late costs a batch of its own, about the time of a batch of one. So waiting for longer
        than that, with no decoder delivering, would cost more than it saves: a huge photo does not keep small
        ones. Slow decoders are given twice the usual gap between two images.
        """
        if not (self._engine.shares_cores and self._decoding[model.name]):
            return False
        patience_s = max(2 * self._decode_s, self._small_batch_s)
        remaining_s = max(self._last_ready, self._last_end) + patience_s - time.monotonic()
        if remaining_s <= 0:
            return False
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self._loop.call_later(remaining_s, self._pump)
        return True

    def _dispatch(self, model: Model, places: list[Place]) -> None:
        for place in places:
            super().leave(place)
        self.admission.start(model.name, len(places) * model.views)
        alone = not (self._in_engine or any(self._ready.values()) or any(self._decoding.values()))
        batch = Batch(model, places, alone)
        running = self._in_engine[batch] = self._loop.run_in_executor(self._threads, self._run, batch)
        running.add_done_callback(lambda _: self._finish(batch, running))

    def _run(self, batch: Batch) -> None:
        """On the engine's thread. If a batch ends in any way but an answer, the engine is lost."""
        if not self._lost:
            try:
                batch.run(self._engine)
            except BaseException:
                self._lost = True
                raise

    def _finish(self, batch: Batch, running: asyncio.Future[None]) -> None:
        """Answer a batch's callers, on the event loop."""
        error = running.exception()
        if self._in_engine.pop(batch, None) is None:  # the engine was given up, and they were answered
            return
        if error is not None:
            self._give_up(str(error) or type(error).__name__, batch)
            return
        if rows := len(batch.results):
            began = max(self._last_end, min(place.ready_at for place in batch.places))
            took_s = max(0.0, batch.ended_at - began)  # one that ended earlier may be told of later
            self._last_end = max(self._last_end, batch.ended_at)
            if rows <= _SMALL_BATCH:
                self._small_batch_s = _running_mean(self._small_batch_s, batch.ended_at - batch.started_at)
            views = rows * batch.model.views
            self.admission.finish(batch.model.name, views, took_s, idle=not self._in_engine)
            self._on_batch(batch.model.name, rows)
            batch.answer()
            good = any(isinstance(result, Outputs) for result in batch.results)
            self._hopeless = 0 if good else self._hopeless + 1
            if self._hopeless >= _HOPELESS_BATCHES:
                self._give_up(f"{self._hopeless} batches in a row failed")
        self._pump()

    def _give_up(self, why: str, *ended: Batch) -> None:
        """The engine is gone: answer everybody and tell whoever waits for `failed`."""
        log.critical("engine lost: %s", why)
        rows = [place for batch in (*ended, *self._in_engine) for place in batch.places]
        self._in_engine.clear()
        error = Unavailable("The engine has failed; send the request to another server.", retry_after_s=1.0)
        self._refuse(error, [*self._waiting(), *rows])
        if not self.failed.done():
            self.failed.set_result(None)

    def _waiting(self) -> list[Place]:
        return [place for places in self._ready.values() for place in places.values()]

    def _refuse(self, error: Unavailable, places: list[Place]) -> None:
        """Take nothing more, and answer those who wait."""
        self.closed = True
        for place in places:
            if not place.answer.done():
                place.answer.set_exception(error)


def _running_mean(mean: float, new: float) -> float:
    return new if not mean else mean + 0.1 * (new - mean)
