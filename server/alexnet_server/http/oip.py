"""The protocol over HTTP: the routes below `/v2`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from importlib.metadata import version as distribution_version
from typing import Any, TypeAlias

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from alexnet_server.call import current
from alexnet_server.errors import InvalidRequest, Unavailable
from alexnet_server.http import oip_wire
from alexnet_server.http.upload import Body, BodyBudget, open_body, request_deadline, while_connected
from alexnet_server.oip import inference, models, statistics
from alexnet_server.service import Classifier
from alexnet_server.settings import Settings

_INLINE_BYTES = 256 * 1024
"""More than this is decompressed in a thread, off the event loop."""


Endpoint: TypeAlias = Callable[..., Coroutine[Any, Any, Response]]


class OipRoutes:
    """The endpoints; each translates, and nothing else.

    Args:
        classifier: The service.
        settings: Limits.
        budget: Bodies in memory count towards it.
    """

    def __init__(self, classifier: Classifier, settings: Settings, budget: BodyBudget) -> None:
        self._classifier = classifier
        self._settings = settings
        self._budget = budget

    def router(self) -> APIRouter:
        """All routes; `/v2/models/stats` comes before the models' names."""
        routes = APIRouter(prefix="/v2", include_in_schema=False)
        gets: tuple[tuple[str, Endpoint], ...] = (
            ("", self.server),
            ("/health/live", self.live),
            ("/health/ready", self.ready),
            ("/models/stats", self.all_stats),
            ("/models/{name}", self.model),
            ("/models/{name}/versions/{version}", self.model),
            ("/models/{name}/ready", self.model_ready),
            ("/models/{name}/versions/{version}/ready", self.model_ready),
            ("/models/{name}/config", self.config),
            ("/models/{name}/versions/{version}/config", self.config),
            ("/models/{name}/stats", self.stats),
            ("/models/{name}/versions/{version}/stats", self.stats),
        )
        posts: tuple[tuple[str, Endpoint], ...] = (
            ("/models/{name}/infer", self.infer),
            ("/models/{name}/versions/{version}/infer", self.infer),
            ("/repository/index", self.index),
            ("/repository/models/{name}/load", self.control),
            ("/repository/models/{name}/unload", self.control),
        )
        for method, paths in (("GET", gets), ("POST", posts)):
            for path, endpoint in paths:
                routes.add_api_route(path, endpoint, methods=[method])
        return routes

    async def server(self) -> Response:
        """`GET /v2`."""
        return JSONResponse(
            {
                "name": models.SERVER_NAME,
                "version": distribution_version("alexnet"),
                "extensions": [*models.EXTENSIONS, "binary_tensor_data"],
            }
        )

    async def live(self) -> Response:
        """The process answers."""
        return JSONResponse({"live": True})

    async def ready(self) -> Response:
        """200 when requests should be sent here, else 503."""
        self._check_ready()
        return JSONResponse({"ready": True, "live": True})

    async def model(self, name: str, version: str = "") -> Response:
        """A model's tensors."""
        return JSONResponse(models.find(self._classifier, name, version).metadata())

    async def model_ready(self, name: str, version: str = "") -> Response:
        """200 when the model takes requests, 404 when there is none of that name, else 503."""
        models.find(self._classifier, name, version)
        self._check_ready()
        return JSONResponse({"name": name, "ready": True, "live": True})

    async def config(self, name: str, version: str = "") -> Response:
        """A model's configuration in Triton's form."""
        return JSONResponse(models.find(self._classifier, name, version).config())

    async def stats(self, name: str, version: str = "") -> Response:
        """A model's statistics."""
        served = models.find(self._classifier, name, version)
        return JSONResponse({"model_stats": [statistics.of_model(self._classifier.metrics.registry, served)]})

    async def all_stats(self) -> Response:
        """Every model's statistics."""
        registry = self._classifier.metrics.registry
        every = models.every(self._classifier).values()
        return JSONResponse({"model_stats": [statistics.of_model(registry, served) for served in every]})

    async def index(self) -> Response:
        """What the model repository holds."""
        return JSONResponse(models.index(self._classifier))

    async def control(self) -> Response:
        """Loading and unloading, which nobody may do over the network."""
        raise InvalidRequest(models.NO_CONTROL)

    async def infer(self, request: Request, name: str, version: str = "") -> Response:
        """An inference."""
        deadline = request_deadline(request, self._classifier)
        served = models.find(self._classifier, name, version)
        current.get().model = served.model.name
        async with open_body(request, self._settings.max_body_bytes, deadline, self._budget) as body:
            call = oip_wire.read_call(
                await self._decompressed(request, body),
                request.headers.get(oip_wire.HEADER_LENGTH),
                served,
            )
            if call.timeout_s is not None:
                deadline = min(deadline, self._classifier.deadline(call.timeout_s))
            work = inference.infer(self._classifier, served, call.rows, call.wanted, deadline)
            outputs = await while_connected(request.receive, work)
        accepted = request.headers.get("accept-encoding", "")
        content, headers = oip_wire.answer(served, call.id, outputs, accepted)
        return Response(content, headers=headers)

    async def _decompressed(self, request: Request, body: Body) -> bytes:
        received = await body.read()
        encoding = request.headers.get("content-encoding", "").strip().lower()
        limit = self._settings.max_body_bytes
        if len(received) > _INLINE_BYTES:
            data = await asyncio.to_thread(oip_wire.decompressed, received, encoding, limit)
        else:
            data = oip_wire.decompressed(received, encoding, limit)
        if data is not received:
            body.hold(len(data))
        return data

    def _check_ready(self) -> None:
        reason = self._classifier.problem()
        if reason is not None:
            raise Unavailable(f"Not ready: {reason}.", retry_after_s=1.0)
