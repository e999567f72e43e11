"""What goes with every HTTP request: its id, its times, its line in the metrics and the log."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alexnet_server.errors import InvalidRequest
from alexnet_server.service import Classifier
from alexnet_server.telemetry import logs, tracing
from alexnet_server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

_KEY = "alexnet.context"
_GOOD_ID = re.compile(rb"[\x21-\x7e]{1,128}")
T = TypeVar("T")


class ClientGone(Exception):
    """The client has disconnected; nobody waits for an answer."""


@dataclass(slots=True)
class RequestContext:
    """One HTTP request."""

    request_id: str
    started_at: float
    """`time.monotonic` seconds."""
    model: str = ""
    """Name of the model that was asked, for the metrics."""
    code: str = "ok"
    stages: tuple[tuple[str, float], ...] = ()
    """Names and seconds for `Server-Timing`."""
    status: int = 0
    close: bool = False
    """The connection cannot be used again: part of the request's body is still to come."""


def context_of(scope: Scope) -> RequestContext:
    """The context of the request that `scope` belongs to."""
    context: RequestContext = scope[_KEY]
    return context


def request_deadline(request: Request, classifier: Classifier) -> float:
    """`time.monotonic` seconds by which the request wants its answer, from `X-Request-Timeout-Ms`.

    Raises:
        InvalidRequest: The header is not a positive number of milliseconds.
    """
    header = request.headers.get("x-request-timeout-ms")
    if header is None:
        return classifier.deadline()
    if not (header.isascii() and header.isdigit() and len(header) < 10 and int(header) > 0):
        raise InvalidRequest("X-Request-Timeout-Ms must be a whole number of milliseconds above 0.")
    return classifier.deadline(int(header) / 1000)


class RequestContextMiddleware:
    """Gives each request a context, and each answer `X-Request-Id` and `Server-Timing`.

    Plain ASGI: Starlette's `BaseHTTPMiddleware` costs a task and a queue for each request, and hides
    disconnects.

    Args:
        app: What answers.
        metrics: Where requests that were about a model, or failed, are counted.
        closing: True once clients should not keep their connections.
        access_log: Log every request rather than failures of ours alone.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, closing: Callable[[], bool], access_log: bool = False
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._closing = closing
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext(_request_id(scope), time.monotonic())
        scope[_KEY] = context
        token = logs.request_id.set(context.request_id)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers(context)]
            await send(message)

        with tracing.http(scope["method"], scope["path"], scope["headers"], context.request_id) as span:
            try:
                await self._app(scope, receive, send_with_headers)
            except Exception:
                # Answered already, as `internal`; an error after the answer began can only cut it off.
                log.exception("%s %s failed", scope["method"], scope["path"])
                if not context.status:
                    raise
            finally:
                span.end(context.status, context.code, getattr(scope.get("route"), "path", None))
                self._account(scope, context)
                logs.request_id.reset(token)

    def _headers(self, context: RequestContext) -> list[tuple[bytes, bytes]]:
        total = ("total", time.monotonic() - context.started_at)
        timing = ", ".join(f"{name};dur={seconds * 1e3:.2f}" for name, seconds in (*context.stages, total))
        headers = [(b"x-request-id", context.request_id.encode()), (b"server-timing", timing.encode())]
        if context.close or self._closing():
            headers.append((b"connection", b"close"))
        return headers

    def _account(self, scope: Scope, context: RequestContext) -> None:
        took_s = time.monotonic() - context.started_at
        if context.model or context.code != "ok":
            self._metrics.request("http", context.model, context.code, took_s)
        ours = context.status >= 500 and context.code != "ok"  # a probe's 503 is an answer, not a failure
        if self._access_log or ours:
            level = logging.WARNING if ours else logging.INFO
            text = "%s %s %d %s %.1f ms"
            log.log(level, text, scope["method"], scope["path"], context.status, context.code, took_s * 1e3)


def _request_id(scope: Scope) -> str:
    """The caller's `X-Request-Id` where it is printable and short, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _GOOD_ID.fullmatch(value):
            return str(value, "ascii")
    # Unique, not secret: a system call for each would give up the interpreter to the decoders.
    return f"{random.getrandbits(128):032x}"


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, and cancel it when the client disconnects; the request's body must have been read.

    Raises:
        ClientGone: The client disconnected first.
    """
    task = asyncio.current_task()
    assert task is not None
    state = "working"

    def leave(_: asyncio.Task[None]) -> None:
        nonlocal state
        if state == "working":
            state = "gone"
            task.cancel()

    watcher = asyncio.create_task(_disconnect(receive))
    watcher.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if state == "gone":
            task.uncancel()
            raise ClientGone from None
        raise
    finally:
        state = "over"
        watcher.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
