"""What stands between the service and an engine: places in a queue, and the gateway to a remote engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from alexnet_server.batching.admission import Admission
from alexnet_server.engines import Model, RemoteEngine
from alexnet_server.errors import Unavailable

log = logging.getLogger(__name__)

CLOSING = "The server is closing; send the request to another."
_PROBE_INTERVAL_S = 1.0


class Row(NamedTuple):
    """What the engine says of one photo, and what that took."""

    probabilities: NDArray[np.float32]
    """`[classes]`"""
    features: NDArray[np.float32] | None
    """`[4096]`, when asked for."""
    waited_s: float
    """From the image being ready to the engine's start."""
    engine_s: float


class Place(Protocol):
    """A reserved place in the queue, given back when the context ends, however it ends."""

    def __enter__(self) -> Place: ...

    def __exit__(self, *exc: object) -> None: ...

    async def infer(self, image: NDArray[np.uint8], *, features: bool = False) -> Row:
        """Queue the decoded `[256, 256, 3]` image and wait for the engine; once a place.

        Raises:
            Unavailable: Closing, or the engine has gone.
            Internal: The engine failed on this row.
        """


class Scheduler(Protocol):
    """Puts photos before an engine: the batcher, or the gateway to a server that batches by itself."""

    admission: Admission
    models: Mapping[str, Model]
    failed: asyncio.Future[None]
    """Done once the engine has gone for good: the process must end."""

    def reserve(self, model: Model, deadline: float) -> Place:
        """Take a place before decoding; `deadline` in `time.monotonic` seconds.

        Raises:
            Overloaded: The queue is full.
            DeadlineExceeded: The queue is longer than the deadline.
            Unavailable: Closing, or the engine has gone.
        """

    def problem(self) -> str | None:
        """Why requests should not be sent here now; None when they may be."""

    async def close(self) -> None:
        """Answer what still waits with `Unavailable`, and free the engine."""


class Gateway:
    """Passes rows through to a server that batches by itself; bounds what is under way.

    Args:
        engine: The remote server.
        admission: The bound; a view counts from decoding until its answer.
        probe_interval_s: Seconds between one-row inferences that tell whether the server works.
    """

    def __init__(
        self, engine: RemoteEngine, admission: Admission, *, probe_interval_s: float = _PROBE_INTERVAL_S
    ) -> None:
        self.admission = admission
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.engine = engine
        self.models = engine.models
        self.last_end = 0.0
        self._problem: str | None = "the engine has not answered yet"
        self._closed = False
        self._prober = asyncio.create_task(self._probe(probe_interval_s))

    def reserve(self, model: Model, deadline: float) -> Place:
        """See `Scheduler.reserve`."""
        if self._closed:
            raise Unavailable(CLOSING, retry_after_s=1.0)
        self.admission.enter(model.name, model.views, deadline)
        return _RemotePlace(self, model, deadline)

    def problem(self) -> str | None:
        """See `Scheduler.problem`."""
        return self._problem

    async def close(self) -> None:
        """See `Scheduler.close`."""
        self._closed = True
        self._prober.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._prober
        await self.engine.close()

    async def _probe(self, interval_s: float) -> None:
        while True:
            try:
                problem = await self.engine.problem()
            except Exception:
                log.exception("the probe of the engine failed")
                problem = "the probe of the engine failed"
            if problem != self._problem:
                log.warning("engine: %s", problem or "works")
            self._problem = problem
            await asyncio.sleep(interval_s)


class _RemotePlace:
    """A place in a gateway, held until the answer."""

    def __init__(self, gateway: Gateway, model: Model, deadline: float) -> None:
        self._gateway = gateway
        self._model = model
        self._deadline = deadline

    def __enter__(self) -> _RemotePlace:
        return self

    def __exit__(self, *exc: object) -> None:
        self._gateway.admission.leave(self._model.name, self._model.views)

    async def infer(self, image: NDArray[np.uint8], *, features: bool = False) -> Row:
        """See `Place.infer`."""
        started_at = time.monotonic()
        outputs = await self._gateway.engine.infer(
            self._model.name, image[None], features=features, timeout_s=self._deadline - started_at
        )
        ended_at = time.monotonic()
        # The queue moves by one row in the time since the last answer, however many are under way.
        moved_s = ended_at - max(started_at, self._gateway.last_end)
        self._gateway.last_end = ended_at
        self._gateway.admission.finish(self._model.name, self._model.views, moved_s, idle=False)
        hidden = None if outputs.features is None else outputs.features[0]
        return Row(outputs.probabilities[0], hidden, waited_s=0.0, engine_s=ended_at - started_at)
