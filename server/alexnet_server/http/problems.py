"""Errors as HTTP answers: RFC 9457 problem documents with a stable `code`."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from alexnet_server.call import current
from alexnet_server.errors import (
    Internal,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ServingError,
    Unauthenticated,
    did_you_mean,
)
from alexnet_server.http.upload import ClientGone

_CLIENT_CLOSED_REQUEST = 499
"""Seen by no client: the connection is gone. nginx's number, for the access log."""


def problem(error: ServingError) -> dict[str, Any]:
    """RFC 9457's members, our `code`, and the `error` that the Open Inference Protocol asks for."""
    document: dict[str, Any] = {
        "type": f"/docs#{error.code}",
        "title": error.title,
        "status": error.http_status,
        "detail": error.message,
        "code": error.code,
        "error": error.message,
    }
    if error.retry_after_s is not None:
        document["retry_after_s"] = round(error.retry_after_s, 3)
    if error.errors:
        document["errors"] = [dict(item) for item in error.errors]
    return document


def problem_response(error: ServingError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to the current call, which failed."""
    call = current.get()
    call.code = error.code
    document = {**problem(error), "request_id": call.request_id}
    extra = dict(headers or {})
    if error.retry_after_s is not None and error.retryable:
        extra["retry-after"] = str(retry_after(error.retry_after_s))
    if isinstance(error, Unauthenticated):
        extra["www-authenticate"] = "Bearer"
    return Response(
        # A message may quote what is no character.
        json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace"),
        status_code=error.http_status,
        media_type="application/problem+json",
        headers=extra,
    )


def retry_after(seconds: float) -> int:
    """Whole seconds for `Retry-After`, at least 1."""
    return max(1, math.ceil(seconds))


async def _on_serving_error(_: Request, error: Exception) -> Response:
    return problem_response(cast("ServingError", error))


async def _on_validation_error(_: Request, error: Exception) -> Response:
    items = [
        {"field": str(item["loc"][-1]), "message": str(item["msg"])}
        for item in cast("RequestValidationError", error).errors()
    ]
    words = "; ".join(f"`{item['field']}`: {item['message']}" for item in items)
    return problem_response(InvalidRequest(f"{words}.", errors=items))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    cause = cast("HTTPException", error)
    path, method, headers = request.url.path[:200], request.method, dict(cause.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"  # see `app.CallMiddleware`
    answers: dict[int, ServingError] = {
        404: NotFound(f"There is nothing at {path}; {_nearest(request)}/docs lists all paths."),
        405: MethodNotAllowed(f"{path} takes {headers.get('Allow', 'no method')}, not {method}."),
    }
    fallback = InvalidRequest(str(cause.detail)) if cause.status_code < 500 else Internal()
    return problem_response(answers.get(cause.status_code, fallback), headers)


def _nearest(request: Request) -> str:
    """A question after the path that was meant, where one is near."""
    paths = [route.path for route in request.app.routes if hasattr(route, "path")]
    near = did_you_mean(request.url.path[:200].lower(), paths, cutoff=0.8)
    return f"did you mean {near}? " if near and "{" not in near else ""


async def _on_client_gone(_: Request, __: Exception) -> Response:
    current.get().code = "cancelled"
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _on_exception(_: Request, __: Exception) -> Response:
    # `app.CallMiddleware` logs it.
    return problem_response(Internal())


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    ServingError: _on_serving_error,
    RequestValidationError: _on_validation_error,
    HTTPException: _on_http_exception,
    ClientGone: _on_client_gone,
    Exception: _on_exception,
}
FORESEEN = tuple(_HANDLERS)[:-1]
"""Errors that are answers; any other is a fault of ours."""


def install(app: FastAPI) -> None:
    """Answer every failure of `app` with a problem document, FastAPI's and Starlette's own included."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)


async def failed(request: Request, error: Exception) -> Response:
    """The answer to a request that ended in `error`."""
    kind = next(kind for kind in type(error).__mro__ if kind in _HANDLERS)
    return await _HANDLERS[kind](request, error)
