"""What goes with every HTTP request: its call, its deadline, and a client who may leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alexnet_server.call import Call, Calls
from alexnet_server.errors import InvalidRequest
from alexnet_server.service import Classifier

log = logging.getLogger(__name__)

T = TypeVar("T")


class ClientGone(Exception):
    """The client has disconnected; nobody waits for an answer."""


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


class CallMiddleware:
    """Makes a `Call` of each request, and gives each answer `X-Request-Id` and `Server-Timing`.

    HEAD is answered as GET, without the body; `Content-Length` and all other headers are GET's.

    Plain ASGI: Starlette's `BaseHTTPMiddleware` costs a task and a queue for each request, and hides
    disconnects.

    Args:
        app: What answers.
        calls: Opens and accounts for calls.
        closing: True once clients should not keep their connections.
    """

    def __init__(self, app: ASGIApp, calls: Calls, *, closing: Callable[[], bool]) -> None:
        self._app = app
        self._calls = calls
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers(call)]
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        attributes: dict[str, str | int] = {"http.request.method": method, "url.path": path}
        # Named by its method until the route is known: paths are the caller's, and there is no end of them.
        with self._calls.open(f"{method} {path}", Headers(scope=scope), method, attributes) as call:
            try:
                await self._app(scope, receive, send_with_headers)
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
        headers = [
            (b"x-request-id", call.request_id.encode()),
            (b"server-timing", call.server_timing().encode()),
        ]
        if call.close or self._closing():
            headers.append((b"connection", b"close"))
        return headers


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
