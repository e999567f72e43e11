"""The protocol over HTTP: the routes below `/v2`."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version as distribution_version

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from alexnet_server.call import current
from alexnet_server.errors import DeadlineExceeded, InvalidRequest, Unavailable
from alexnet_server.http import oip_wire
from alexnet_server.http.oip_wire import InferCall
from alexnet_server.http.pieces import Gathered
from alexnet_server.http.upload import Body, open_body, request_deadline, while_connected
from alexnet_server.oip import inference, models, statistics
from alexnet_server.oip.models import Served
from alexnet_server.service import Classifier
from alexnet_server.settings import Settings

_INLINE_BYTES = 16 * 1024
"""JSON of more than this is parsed in a thread, off the event loop."""
_AT_A_TIME = 2
"""Bodies that are inflated or parsed at a time; the others wait, for as long as they have."""


def oip_routes(classifier: Classifier, settings: Settings) -> APIRouter:
    """The routes; each translates, and nothing else.

    Args:
        classifier: The service.
        settings: Limits.
    """
    routes = APIRouter(prefix="/v2", include_in_schema=False)
    _add_server(routes, classifier)
    _add_models(routes, classifier)
    _add_inference(routes, classifier, settings)
    return routes


def _add_server(routes: APIRouter, classifier: Classifier) -> None:
    @routes.get("")
    @routes.get("/")
    async def server() -> Response:
        about = {"name": models.SERVER_NAME, "version": distribution_version("alexnet")}
        return JSONResponse({**about, "extensions": [*models.EXTENSIONS, "binary_tensor_data"]})

    @routes.get("/health/live")
    async def live() -> Response:
        return JSONResponse({"live": True})

    @routes.get("/health/ready")
    async def ready() -> Response:
        _check_ready(classifier)
        return JSONResponse({"ready": True, "live": True})

    @routes.post("/repository/index")
    async def index() -> Response:
        return JSONResponse(models.index(classifier))

    @routes.post("/repository/models/{name}/load")
    @routes.post("/repository/models/{name}/unload")
    async def control() -> Response:
        raise InvalidRequest(models.NO_CONTROL)


def _add_models(routes: APIRouter, classifier: Classifier) -> None:
    registry = classifier.metrics.registry

    @routes.get("/models/stats")  # before the models' names
    async def all_stats() -> Response:
        every = models.every(classifier).values()
        return JSONResponse({"model_stats": [statistics.of_model(registry, served) for served in every]})

    @routes.get("/models/{name}")
    @routes.get("/models/{name}/versions/{version}")
    async def model(name: str, version: str = "") -> Response:
        return JSONResponse(models.find(classifier, name, version).metadata())

    @routes.get("/models/{name}/ready")
    @routes.get("/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str = "") -> Response:
        models.find(classifier, name, version)
        _check_ready(classifier)
        return JSONResponse({"name": name, "ready": True, "live": True})

    @routes.get("/models/{name}/config")
    @routes.get("/models/{name}/versions/{version}/config")
    async def config(name: str, version: str = "") -> Response:
        return JSONResponse(models.find(classifier, name, version).config())

    @routes.get("/models/{name}/stats")
    @routes.get("/models/{name}/versions/{version}/stats")
    async def stats(name: str, version: str = "") -> Response:
        served = models.find(classifier, name, version)
        return JSONResponse({"model_stats": [statistics.of_model(registry, served)]})


def _add_inference(routes: APIRouter, classifier: Classifier, settings: Settings) -> None:
    limit = settings.max_body_bytes
    turns = asyncio.Semaphore(_AT_A_TIME)

    @routes.post("/models/{name}/infer")
    @routes.post("/models/{name}/versions/{version}/infer")
    async def infer(request: Request, name: str, version: str = "") -> Response:
        deadline = request_deadline(request, classifier)
        served = models.find(classifier, name, version)
        current.get().model = served.model.name
        classifier.admit(served.model, deadline)
        async with open_body(request, limit, deadline, classifier.bodies) as body:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    data = await _decompressed(request, body, limit, turns)
                    call = await _read_call(data, request.headers.get(oip_wire.HEADER_LENGTH), served, turns)
            except TimeoutError:
                raise DeadlineExceeded("The request's time ran out before its body was parsed.") from None
            if call.timeout_s is not None:
                deadline = min(deadline, classifier.deadline(call.timeout_s))
            work = inference.infer(classifier, served, call.rows, call.wanted, deadline)
            outputs = await while_connected(request.receive, work)
        accepted = request.headers.get("accept-encoding", "")
        content, headers = oip_wire.answer(served, call.id, outputs, accepted)
        return Response(content, headers=headers)


async def _decompressed(request: Request, body: Body, limit: int, turns: asyncio.Semaphore) -> bytes:
    """The body as it was before its Content-Encoding; what comes out counts as it comes."""
    received = await body.read()
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return received
    inflating = oip_wire.inflated(received, encoding, limit)
    gathered, all_json = Gathered(), oip_wire.HEADER_LENGTH not in request.headers
    async with turns:
        while piece := await asyncio.to_thread(next, inflating, b""):
            body.hold(len(piece))
            gathered.add(piece)
            if all_json:
                oip_wire.check_json_bytes(len(gathered))
    return gathered.whole()


async def _read_call(
    data: bytes, header_length: str | None, served: Served, turns: asyncio.Semaphore
) -> InferCall:
    """As `oip_wire.read_call`, in a thread where there is much JSON."""
    binary = header_length is not None and header_length.isdigit() and len(header_length) < 5
    if binary or len(data) <= _INLINE_BYTES:
        return oip_wire.read_call(data, header_length, served)
    async with turns:
        return await asyncio.to_thread(oip_wire.read_call, data, header_length, served)


def _check_ready(classifier: Classifier) -> None:
    if (reason := classifier.problem()) is not None:
        raise Unavailable(f"Not ready: {reason}.", retry_after_s=1.0)
