"""grpc.health.v1, Check and Watch, straight from the service's own readiness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from alexnet_server.errors import NotFound
from alexnet_server.service import Classifier

_POLL_S = 0.1
"""How long a change takes to reach a watcher: readiness is computed when asked, and announces nothing."""


class Health(HealthServicer):  # type: ignore[misc]
    """Services are `""`, those of this server by name, and every model by name.

    Args:
        classifier: Whose readiness.
        services: Full names of the server's services.
        closing: Set when the port closes; watchers are let go.
    """

    def __init__(self, classifier: Classifier, services: tuple[str, ...], closing: asyncio.Event) -> None:
        self._classifier = classifier
        self._services = frozenset(("", *services))
        self._closing = closing

    async def Check(self, request: HealthCheckRequest, context: Any) -> HealthCheckResponse:
        """SERVING or NOT_SERVING.

        Raises:
            NotFound: there is no such service.
        """
        del context
        status = self._status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFound(f"There is no service {request.service[:200]!r}.")
        return HealthCheckResponse(status=status)

    async def Watch(self, request: HealthCheckRequest, context: Any) -> AsyncIterator[HealthCheckResponse]:
        """The status now, and again whenever it changes."""
        del context
        last = None
        while not self._closing.is_set():
            status = self._status(request.service)
            if status != last:
                last = status
                yield HealthCheckResponse(status=status)
            await _wait(self._closing, _POLL_S)
        if last != HealthCheckResponse.NOT_SERVING:
            yield HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)

    def _status(self, service: str) -> int:
        if service not in self._services and service not in self._classifier.models:
            return int(HealthCheckResponse.SERVICE_UNKNOWN)
        ready = self._classifier.problem() is None
        return int(HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
