"""The HTTP API: translation between HTTP and `service.Classifier`, nothing else."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, Query
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alexnet_server.access.keys import ApiKeys
from alexnet_server.call import Call, Calls, current
from alexnet_server.engines import Model
from alexnet_server.errors import ServingError, Unauthenticated
from alexnet_server.http import examples
from alexnet_server.http.listings import add_listings
from alexnet_server.http.oip import oip_routes
from alexnet_server.http.pages import add_pages
from alexnet_server.http.problems import (
    FORESEEN,
    failed,
    install,
    problem,
    problem_response,
    retry_after,
)
from alexnet_server.http.refusal import Refusal
from alexnet_server.http.schemas import (
    DocumentedApp,
    ExplainQuery,
    LabelQuery,
    ModelQuery,
    NameQuery,
    operation_id,
    query_of,
)
from alexnet_server.http.teaching import add_network, explained
from alexnet_server.http.upload import asked, open_body, read_photo, read_photos, while_connected
from alexnet_server.occlusion import ROWS
from alexnet_server.results import Classification
from alexnet_server.service import Classifier
from alexnet_server.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

_OPEN_PATHS = (
    *("/livez", "/readyz", "/healthz", "/ping", "/metrics", "/docs", "/openapi.json", "/favicon.ico"),
    "/v2/health/",
)


class _QueryRoute(APIRoute):
    """Calls an endpoint `(request, query)` at once.

    FastAPI's own way, which serves any signature, is a fifth of what a request costs in Python.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`; the handler raises what FastAPI's raises."""
        endpoint = self.endpoint
        (field,) = self.dependant.query_params
        kind: type[NameQuery] = field.field_info.annotation  # type: ignore[assignment]

        async def handle(request: Request) -> Response:
            answer: Response = await endpoint(request, query_of(request, kind))
            return answer

        return handle


class _Direct:
    """Answers requests for a few routes at once, and leaves all others to the application.

    FastAPI's way to a route leads through six applications, and costs a third of what a refused photo does.

    Args:
        app: The application, which has the routes too, for its document and for unknown paths.
        routes: Those with a fixed path.
    """

    def __init__(self, app: FastAPI, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = {
            (method, route.path): (route, route.get_route_handler())
            for route in routes
            if isinstance(route, _QueryRoute)
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        known = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if known is None:
            await self._app(scope, receive, send)
            return
        scope["route"], handle = known
        request = Request(scope, receive, send)
        try:
            response = await handle(request)
        except FORESEEN as error:
            response = await failed(request, error)
        except Exception as error:
            await (await failed(request, error))(scope, receive, send)
            raise
        await response(scope, receive, send)


def create_app(classifier: Classifier, settings: Settings, keys: ApiKeys) -> CallMiddleware:
    """The ASGI application of one classifier."""
    app = DocumentedApp(
        keyed=bool(keys),
        title="AlexNet",
        version=version("alexnet"),
        description="The 2012 network as a service: send a photo, get its labels.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": "."}],  # wherever this document is, so that a path prefix in front does no harm
    )
    install(app)
    # Not `include_router`, behind which the near misses of unknown paths no longer find these.
    app.router.routes += _photo_routes(classifier, settings).routes
    add_listings(app, classifier)
    add_network(app, classifier)
    add_pages(app)
    app.include_router(oip_routes(classifier, settings))
    answer: ASGIApp = _Direct(app, app.routes)
    if keys:
        answer = _KeyMiddleware(answer, keys, closed=("/metrics",) if settings.metrics_key else ())
    if settings.cors_origins:
        answer = CORSMiddleware(
            answer,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=[
                "authorization",
                "baggage",
                "content-type",
                "inference-header-content-length",
                "traceparent",
                "tracestate",
                "x-api-key",
                "x-request-id",
                "x-request-timeout-ms",
            ],
            expose_headers=[
                "inference-header-content-length",
                "retry-after",
                "server-timing",
                "x-request-id",
            ],
        )
    calls = Calls("http", classifier.metrics, access_log=settings.access_log)
    return CallMiddleware(
        answer, calls, closing=lambda: classifier.draining, refusal=Refusal(classifier, calls, keys)
    )


def _photo_routes(classifier: Classifier, settings: Settings) -> APIRouter:
    router = APIRouter(route_class=_QueryRoute, generate_unique_id_function=operation_id)

    @router.post("/classify", responses=examples.CLASSIFY, openapi_extra=examples.PHOTO)
    async def classify(request: Request, query: Annotated[LabelQuery, Query()]) -> Response:
        """Labels of one photo, best first."""
        model, deadline = _begin(request, query)
        classifier.admit(model, deadline)
        work = partial(classifier.classify, model=model, top_k=query.top_k, deadline=deadline)
        result = await _of_photo(request, deadline, work)
        current.get().stages = result.timing.stages
        return JSONResponse(_labels(result))

    @router.post("/classify/batch", responses=examples.BATCH, openapi_extra=examples.PHOTOS)
    async def classify_batch(request: Request, query: Annotated[LabelQuery, Query()]) -> Response:
        """Labels of up to 32 photos, in order: each its labels or its own error."""
        model, deadline = _begin(request, query)
        classifier.check_ready()
        async with open_body(request, settings.max_body_bytes, deadline, classifier.bodies) as body:
            current.get().kind = "batch"
            photos = await read_photos(request, body, max_photo_bytes=settings.max_photo_bytes)
            work = classifier.classify_batch(photos, model, top_k=query.top_k, deadline=deadline)
            results = await while_connected(request.receive, work)
        waits = [
            result.retry_after_s
            for result in results
            if isinstance(result, ServingError) and result.retry_after_s is not None
        ]
        return JSONResponse(
            {"results": [problem(r) if isinstance(r, ServingError) else _labels(r) for r in results]},
            headers={"retry-after": str(retry_after(max(waits)))} if waits else None,
        )

    @router.post("/features", responses=examples.FEATURES, openapi_extra=examples.FEATURES_PHOTO)
    async def features(request: Request, query: Annotated[ModelQuery, Query()]) -> Response:
        """The 4,096 numbers of the last hidden layer, for nearest neighbours and the like."""
        model, deadline = _begin(request, query)
        classifier.admit(model, deadline)
        work = partial(classifier.features, model=model, deadline=deadline)
        result = await _of_photo(request, deadline, work)
        current.get().stages = result.timing.stages
        values = result.values.astype(float).round(6).tolist()
        return JSONResponse({"model": result.model, "version": result.version, "features": values})

    @router.post("/explain", responses=examples.EXPLAIN, openapi_extra=examples.EXPLAIN_PHOTO)
    async def explain(request: Request, query: Annotated[ExplainQuery, Query()]) -> Response:
        """Which parts of a photo made a label: what its score loses where a grey square covers the photo.

        `grid[row][col]` is the photo's score less its score with the square's corner at x = 24 col,
        y = 24 row of the 256x256 pixels that the network is given: positive where it spoke for the label.
        """
        model, deadline = _begin(request, query)
        current.get().kind = "batch"  # 82 photos' work, by the caller's choice
        classifier.admit(model, deadline, views=ROWS)
        work = partial(classifier.explain, model=model, index=query.index, deadline=deadline)
        return JSONResponse(explained(await _of_photo(request, deadline, work)))

    async def _of_photo(
        request: Request, deadline: float, work: Callable[[bytes], Coroutine[Any, Any, T]]
    ) -> T:
        """What is made of the request's one photo, as long as the client is there."""
        async with open_body(request, settings.max_body_bytes, deadline, classifier.bodies) as body:
            photo = await read_photo(request, body, max_photo_bytes=settings.max_photo_bytes)
            return await while_connected(request.receive, work(photo))

    def _begin(request: Request, query: ModelQuery) -> tuple[Model, float]:
        """The model that is asked, and the request's deadline; before the body is read."""
        model, deadline = asked(request, query, classifier)
        current.get().model = model.name
        return model, deadline

    @router.get("/labels", responses=examples.LABELS)
    async def labels(_: Request, query: Annotated[NameQuery, Query()]) -> Response:
        """The classes that a model tells apart, in output order."""
        chosen = classifier.model(query.model)
        rows = [{"index": label.index, "wnid": label.wnid, "label": label.words} for label in chosen.labels]
        return JSONResponse({"model": chosen.name, "version": chosen.version, "labels": rows})

    return router


def _labels(result: Classification) -> dict[str, Any]:
    predictions = [
        {"rank": p.rank, "index": p.index, "wnid": p.wnid, "label": p.label, "score": round(p.score, 6)}
        for p in result.predictions
    ]
    return {"model": result.model, "version": result.version, "predictions": predictions}


class CallMiddleware:
    """Makes a `Call` of each request, and gives each answer `X-Request-Id` and `Server-Timing`.

    HEAD is answered as GET, without the body; `Content-Length` and all other headers are GET's. A slash
    behind a path is passed over.

    Plain ASGI: Starlette's `BaseHTTPMiddleware` costs a task and a queue for each request, and hides
    disconnects.

    Args:
        app: What answers.
        calls: Opens and accounts for calls.
        closing: True once clients should not keep their connections.
        refusal: What is answered without a call of this.
    """

    def __init__(self, app: ASGIApp, calls: Calls, *, closing: Callable[[], bool], refusal: Refusal) -> None:
        self.refusal = refusal
        self._app = app
        self._calls = calls
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        scope = _as_routed(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                # Refused before it was asked for its body: what comes next may or may not be that.
                call.close = call.close or awaited
                message["headers"] = [*message.get("headers", ()), *self._headers(call)]
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        headers = Headers(scope=scope)
        awaited = "expect" in headers

        async def receive_awaited() -> Message:
            nonlocal awaited
            awaited = False
            return await receive()

        attributes: dict[str, str | int] = {"http.request.method": method, "url.path": path}
        # Named by its method until the route is known: paths are the caller's, and there is no end of them.
        with self._calls.open(f"{method} {path}", headers, method, attributes) as call:
            try:
                await self._app(scope, receive_awaited if awaited else receive, send_with_headers)
            except Exception:
                # Answered already, as `internal`; an error after the answer began can only cut it off.
                log.exception("%s failed", call.name)
                if not call.status:
                    raise
            finally:
                attributes["http.response.status_code"] = call.status
                if (route := getattr(scope.get("route"), "path", None)) is not None:
                    attributes["http.route"] = route
                    call.span_name = f"{method} {route}"

    def _headers(self, call: Call) -> list[tuple[bytes, bytes]]:
        headers = call.http_headers()
        if call.close or self._closing():
            headers.append((b"connection", b"close"))
        return headers


def _as_routed(scope: Scope) -> Scope:
    """HEAD as GET, and a path without the slashes behind it."""
    method, path = scope["method"], scope["path"]
    if method == "HEAD" or (path.endswith("/") and path != "/"):
        return {**scope, "method": "GET" if method == "HEAD" else method, "path": path.rstrip("/") or "/"}
    return scope


class _KeyMiddleware:
    """Asks for an API key on every path but probes, metrics, documentation and the page itself.

    Args:
        app: What answers.
        keys: Who may ask.
        closed: Paths that would be open otherwise.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, closed: Sequence[str]) -> None:
        self._app = app
        self._keys = keys
        self._open = tuple(path for path in (*_OPEN_PATHS, "/page/") if path not in closed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: Callable[[Scope, Receive, Send], Awaitable[None]] = self._app
        path = scope.get("path", "")
        if scope["type"] == "http" and path != "/" and not path.startswith(self._open):
            headers = Request(scope).headers
            try:
                self._keys.check(headers.get("authorization"), headers.get("x-api-key"))
            except Unauthenticated as error:
                answer = problem_response(error)
        await answer(scope, receive, send)
