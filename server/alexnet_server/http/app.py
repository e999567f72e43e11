"""The HTTP door: translation between HTTP and `service.Classifier`, nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.middleware.cors import CORSMiddleware
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from alexnet_server.access.keys import ApiKeys
from alexnet_server.call import Calls, current
from alexnet_server.engines import Model
from alexnet_server.errors import InvalidRequest, ServingError, Unauthenticated, Unavailable, did_you_mean
from alexnet_server.http import examples
from alexnet_server.http.body import BodyBudget, open_body
from alexnet_server.http.context import CallMiddleware, request_deadline, while_connected
from alexnet_server.http.oip import OipRoutes
from alexnet_server.http.pages import add_pages
from alexnet_server.http.problems import install, problem, problem_response, retry_after
from alexnet_server.http.upload import read_photo, read_photos
from alexnet_server.results import Classification
from alexnet_server.service import Classifier, Views
from alexnet_server.settings import Settings

_OPEN_PATHS = ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/favicon.ico", "/v2/health/")


class NameQuery(BaseModel):
    """Which model."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str | None = Field(None, description="A model by name; `/models` lists them.")

    @model_validator(mode="before")
    @classmethod
    def _name_unknown(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Raise InvalidRequest for a parameter that means nothing here, in our words."""
        for name in given.keys() - cls.model_fields.keys():
            near = did_you_mean(name, cls.model_fields)
            hint = f"; did you mean `{near}`?" if near else "."
            allowed = ", ".join(f"`{each}`" for each in cls.model_fields)
            message = f"There is no parameter `{name[:100]}`{hint} Allowed here: {allowed}."
            raise InvalidRequest(message, errors=[{"field": name[:100], "message": "unknown parameter"}])
        return given


class ModelQuery(NameQuery):
    """Which model looks at the photo."""

    views: Views | None = Field(
        None, description="A model by how it looks at a photo; not with `model`. `center` when neither is."
    )


class LabelQuery(ModelQuery):
    """Which model, and how many labels."""

    top_k: int = Field(5, ge=1, description="How many labels, 1 to the number of classes.")


def _given_once(request: Request) -> None:
    """Raise InvalidRequest for a parameter that is given twice, of which FastAPI would take the last."""
    given = [name for name, _ in request.query_params.multi_items()]
    for name in request.query_params:
        if given.count(name) > 1:
            raise InvalidRequest(f"`{name[:100]}` is given more than once; give it once.")


def create_app(classifier: Classifier, settings: Settings, keys: ApiKeys) -> ASGIApp:
    """The ASGI application of one classifier."""
    app = FastAPI(
        title="AlexNet",
        version=version("alexnet"),
        description="The 2012 network as a service: a photo in, labels out.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": "."}],  # wherever this document is, so that a path prefix in front does no harm
    )
    install(app)
    budget = BodyBudget(8 * settings.max_body_bytes)
    _add_inference(app, classifier, settings, budget)
    _add_listings(app, classifier)
    _add_operations(app, classifier)
    add_pages(app)
    app.include_router(OipRoutes(classifier, settings, budget).router())
    if keys:
        app.add_middleware(_KeyMiddleware, keys=keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=[
                "authorization",
                "content-type",
                "x-api-key",
                "x-request-id",
                "x-request-timeout-ms",
            ],
            expose_headers=["retry-after", "server-timing", "x-request-id"],
        )
    calls = Calls("http", classifier.metrics, access_log=settings.access_log)
    return CallMiddleware(app, calls, closing=lambda: classifier.draining)


def _add_inference(app: FastAPI, classifier: Classifier, settings: Settings, budget: BodyBudget) -> None:
    async def classify(request: Request, query: Annotated[LabelQuery, Query()]) -> Response:
        """Labels of one photo, best first."""
        model, deadline = _begin(request, query)
        async with open_body(request, settings.max_body_bytes, deadline, budget) as body:
            photo = await read_photo(request, body, max_photo_bytes=settings.max_photo_bytes)
            work = classifier.classify(photo, model, top_k=query.top_k, deadline=deadline)
            result = await while_connected(request.receive, work)
        current.get().stages = result.timing.stages
        return JSONResponse(_labels(result))

    async def classify_batch(request: Request, query: Annotated[LabelQuery, Query()]) -> Response:
        """Labels of up to 32 photos, in order: each its labels or its own error."""
        model, deadline = _begin(request, query)
        async with open_body(request, settings.max_body_bytes, deadline, budget) as body:
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

    async def features(request: Request, query: Annotated[ModelQuery, Query()]) -> Response:
        """The 4,096 numbers of the last hidden layer, for nearest neighbours and the like."""
        model, deadline = _begin(request, query)
        async with open_body(request, settings.max_body_bytes, deadline, budget) as body:
            photo = await read_photo(request, body, max_photo_bytes=settings.max_photo_bytes)
            work = classifier.features(photo, model, deadline=deadline)
            result = await while_connected(request.receive, work)
        current.get().stages = result.timing.stages
        values = result.values.astype(float).round(6).tolist()
        return JSONResponse({"model": result.model, "version": result.version, "features": values})

    def _begin(request: Request, query: ModelQuery) -> tuple[Model, float]:
        """The model that is asked, and the request's deadline; before the body is read."""
        _given_once(request)
        deadline = request_deadline(request, classifier)
        model = classifier.model(query.model, query.views)
        current.get().model = model.name
        return model, deadline

    for path, endpoint, answers, body in (
        ("/classify", classify, examples.CLASSIFY, examples.PHOTO),
        ("/classify/batch", classify_batch, examples.BATCH, examples.PHOTOS),
        ("/features", features, examples.FEATURES, examples.FEATURES_PHOTO),
    ):
        app.router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            responses=answers,
            openapi_extra=body,
        )


def _add_listings(app: FastAPI, classifier: Classifier) -> None:
    @app.get("/labels", responses=examples.LABELS)
    async def labels(request: Request, query: Annotated[NameQuery, Query()]) -> Response:
        """The classes that a model tells apart, in output order."""
        _given_once(request)
        chosen = classifier.model(query.model)
        rows = [{"index": label.index, "wnid": label.wnid, "label": label.words} for label in chosen.labels]
        return JSONResponse({"model": chosen.name, "version": chosen.version, "labels": rows})

    @app.get("/models", responses=examples.MODELS)
    async def models() -> Response:
        """What is loaded: view mode, device, file, precision, preprocess version, accuracy, sha256."""
        rows = [
            {
                "name": model.name,
                "version": model.version,
                "views": model.view_mode,
                "classes": len(model.labels),
                "max_batch_size": model.max_batch_size,
                "device": model.device,
                **model.about,
            }
            for model in classifier.models.values()
        ]
        return JSONResponse({"models": rows})


def _add_operations(app: FastAPI, classifier: Classifier) -> None:
    async def livez() -> Response:
        """200 as long as the event loop turns: whether to restart this process."""
        return JSONResponse({"status": "alive"})

    async def readyz() -> Response:
        """200 when requests should be sent here, else 503 and why not."""
        reason = classifier.problem()
        if reason is None:
            return JSONResponse({"status": "ready"})
        error = Unavailable(f"Not ready: {reason}.", retry_after_s=1.0)
        response = problem_response(error)
        current.get().code = "ok"  # a probe that was answered, not a request that failed
        return response

    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(classifier.metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})

    for path, endpoint in (("/livez", livez), ("/readyz", readyz), ("/metrics", metrics)):
        app.add_api_route(path, endpoint, methods=["GET"], response_class=Response)


def _labels(result: Classification) -> dict[str, Any]:
    predictions = [
        {"rank": p.rank, "index": p.index, "wnid": p.wnid, "label": p.label, "score": round(p.score, 6)}
        for p in result.predictions
    ]
    return {"model": result.model, "version": result.version, "predictions": predictions}


class _KeyMiddleware:
    """Asks for an API key on every path but probes, metrics, documentation and the page itself."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: Callable[[Scope, Receive, Send], Awaitable[None]] = self._app
        path = scope.get("path", "")
        if scope["type"] == "http" and path != "/" and not path.startswith((*_OPEN_PATHS, "/page/")):
            headers = Request(scope).headers
            try:
                self._keys.check(headers.get("authorization"), headers.get("x-api-key"))
            except Unauthenticated as error:
                answer = problem_response(error)
        await answer(scope, receive, send)
