"""The gateway: rows pass through to a server that batches by itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import numpy as np
from numpy.typing import NDArray

from alexnet_server.batching.admission import Admission
from alexnet_server.batching.scheduler import Place, Row, Scheduler
from alexnet_server.engines import RemoteEngine

log = logging.getLogger(__name__)


class Gateway(Scheduler):
    """Bounds what is under way, and knows whether the server works.

    Args:
        engine: The remote server.
        admission: The bound; a view counts from decoding until its answer.
        probe_interval_s: Seconds between one-row inferences that tell whether the server works.
    """

    def __init__(self, engine: RemoteEngine, admission: Admission, *, probe_interval_s: float = 1.0) -> None:
        super().__init__(engine.models, admission)
        self._engine = engine
        self._last_end = 0.0
        self._problem: str | None = "the engine has not answered yet"
        self._prober = asyncio.create_task(self._probe(probe_interval_s))

    async def infer(self, place: Place, image: NDArray[np.uint8], *, features: bool) -> Row:
        """See `Place.infer`."""
        model, started_at = place.model, time.monotonic()
        outputs = await self._engine.infer(
            model.name, image[None], features=features, timeout_s=place.deadline - started_at
        )
        ended_at = time.monotonic()
        # The queue moves by one row in the time since the last answer, however many are under way.
        moved_s = ended_at - max(started_at, self._last_end)
        self._last_end = ended_at
        self.admission.finish(model.name, model.views, moved_s, idle=False)
        hidden = None if outputs.features is None else outputs.features[0]
        return Row(outputs.probabilities[0], hidden, waited_s=0.0, engine_s=ended_at - started_at)

    def problem(self) -> str | None:
        """See `Scheduler.problem`."""
        return self._problem

    async def close(self) -> None:
        """See `Scheduler.close`."""
        self.closed = True
        self._prober.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._prober
        await self._engine.close()

    async def _probe(self, interval_s: float) -> None:
        while True:
            try:
                problem = await self._engine.problem()
            except Exception:
                log.exception("the probe of the engine failed")
                problem = "the probe of the engine failed"
            if problem != self._problem:
                log.warning("engine: %s", problem or "works")
            self._problem = problem
            await asyncio.sleep(interval_s)
