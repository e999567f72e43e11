"""The thread on which an engine computes: batches in, answers out, and nobody pays for another's row."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from alexnet_server.batching.scheduler import Row
from alexnet_server.engines import Engine, EngineFailed, Model, Outputs

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Pending:
    """An image that waits for the engine."""

    image: NDArray[np.uint8]
    features: bool
    future: asyncio.Future[Row]
    arrival: int
    ready_at: float


@dataclass(slots=True, eq=False)
class Batch:
    """Rows handed to the engine's thread."""

    model: Model
    rows: list[Pending]
    started_at: float | None = None
    ended_at: float = 0.0
    results: list[Outputs | Exception] = field(default_factory=list)


class EngineThread:
    """Runs batches one after another on a thread of its own.

    Args:
        engine: What computes.
        loop: Where the callbacks are called.
        on_done: Called with each batch once its `results` are there.
        on_end: Called with the reason when the thread ends without having been told to.
    """

    def __init__(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        on_done: Callable[[Batch], None],
        on_end: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._loop = loop
        self._on_done = on_done
        self._on_end = on_end
        self._inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="alexnet-engine", daemon=True)
        self._thread.start()

    def put(self, batch: Batch) -> None:
        """Run `batch` after those that were put before."""
        self._inbox.put(batch)

    async def stop(self, timeout_s: float) -> bool:
        """Finish what was put and end; False when that takes longer than `timeout_s`."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join, timeout_s)
        await asyncio.sleep(0)  # the last batch's callback runs on this loop
        return not self._thread.is_alive()

    def _main(self) -> None:
        why = "its thread ended"
        try:
            while (batch := self._inbox.get()) is not None:
                self._run(batch)
                self._loop.call_soon_threadsafe(self._on_done, batch)
                del batch  # or the images live until the next batch
            return
        except EngineFailed as error:
            why = str(error)
        except BaseException as error:
            # Whatever ends this thread (SystemExit and MemoryError included) ends the service with it.
            why = f"its thread ended by {type(error).__name__}: {error}"
        self._loop.call_soon_threadsafe(self._on_end, why)

    def _run(self, batch: Batch) -> None:
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

    def _alone(self, model: Model, row: Pending) -> Outputs | Exception:
        try:
            return self._infer(model, [row])[0]
        except EngineFailed:
            raise
        except Exception as error:
            return error

    def _infer(self, model: Model, rows: list[Pending]) -> list[Outputs]:
        features = any(row.features for row in rows)
        images = np.stack([row.image for row in rows])
        probabilities, hidden = self._engine.infer(model.name, images, features=features)
        if len(probabilities) != len(rows) or (features and (hidden is None or len(hidden) != len(rows))):
            raise RuntimeError(f"{model.name} answered {len(probabilities)} rows to {len(rows)}")
        return [
            Outputs(probabilities[i], hidden[i] if hidden is not None and row.features else None)
            for i, row in enumerate(rows)
        ]
