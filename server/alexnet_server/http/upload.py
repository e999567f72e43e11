"""What a request brings: its deadline, its body and its photos, all bounded; and a client who may leave."""

from __future__ import annotations

import asyncio
import re
import time
import traceback
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.requests import Request
from starlette.types import Receive

from alexnet_server.bodies import BodyBudget
from alexnet_server.call import current
from alexnet_server.engines import Model
from alexnet_server.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ServingError,
    TooLarge,
    UnsupportedFormat,
)
from alexnet_server.http.form import HINT, Form, Upload
from alexnet_server.http.pieces import Gathered
from alexnet_server.http.schemas import ModelQuery
from alexnet_server.service import Classifier

_DROP_LIMIT_S = 10.0
"""Longest time that the rest of a refused body is read for."""
_STRIPPED = re.compile(rb"[\r\n\0]")
"""What curl's -d removes from a file, and what no photo is without."""

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


def asked(request: Request, query: ModelQuery, classifier: Classifier) -> tuple[Model, float]:
    """The model that is asked, and the request's deadline; errors as `request_deadline` and `model()`."""
    deadline = request_deadline(request, classifier)
    return classifier.model(query.model, query.views), deadline


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


class Body:
    """One request's body: `async for chunk in body`.

    A client that is still sending does not look for an answer. So when a body is refused half-way,
    `open_body` reads the rest and drops it, as much again as is allowed, before the refusal goes out.

    Args:
        request: Whose body; nothing else may read it.
        limit: Most bytes.
        deadline: `time.monotonic` seconds by which it must have arrived.
        budget: What is kept counts towards it.
    """

    def __init__(self, request: Request, limit: int, deadline: float, budget: BodyBudget) -> None:
        self.held_bytes = 0
        self._request = request
        self._limit = limit
        self._too_large = TooLarge.request(limit)
        self._drop_limit = limit
        self._deadline = deadline
        self._budget = budget
        self._received = 0
        self.complete = False

    def is_photo(self, max_photo_bytes: int) -> None:
        """Say before reading that the whole body is one photo, whose limit is another."""
        self._limit = max_photo_bytes
        self._too_large = TooLarge.photo(max_photo_bytes)

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        """The next piece, not empty; stops at the end.

        Raises:
            TooLarge: The body is, or announces itself to be, longer than the limit.
            DeadlineExceeded: It did not arrive in time.
            Overloaded: All bodies together take too much memory.
            ClientGone: The client disconnected.
        """
        self._check_announced()
        while not self.complete:
            chunk = await self._next(self._deadline)
            if self._received > self._limit:
                raise self._too_large
            if chunk:
                self.hold(len(chunk))
                return chunk
        raise StopAsyncIteration

    def hold(self, count: int) -> None:
        """Count `count` more bytes as held, of the body or made from it; raises Overloaded."""
        self._budget.take(count, self.held_bytes)
        self.held_bytes += count

    def release(self) -> None:
        """No longer count what was held."""
        self._budget.give_back(self.held_bytes)
        self.held_bytes = 0

    async def read(self) -> bytes:
        """The whole body; errors as for its pieces."""
        gathered = Gathered()
        async for chunk in self:
            gathered.add(chunk)
        return gathered.whole()

    async def refuse(self) -> None:
        """Drop what is still to come, within bounds; if it does not end, the connection will."""
        if self._request.headers.get("expect", "").lower() != "100-continue" or self._received:
            deadline = time.monotonic() + _DROP_LIMIT_S
            limit = self._received + self._drop_limit
            while not self.complete and self._received <= limit:
                try:
                    await self._next(deadline)
                except DeadlineExceeded:
                    break
        if not self.complete:
            current.get().close = True

    def _check_announced(self) -> None:
        announced = self._request.headers.get("content-length", "") if not self._received else ""
        if announced.isdigit() and int(announced) > self._limit:
            raise self._too_large

    async def _next(self, deadline: float) -> bytes:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                message = await self._request.receive()
        except TimeoutError:
            raise DeadlineExceeded("The request's time ran out while its body was arriving.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        self._received += len(chunk)
        self.complete = not message.get("more_body", False)
        return chunk


@asynccontextmanager
async def open_body(request: Request, limit: int, deadline: float, budget: BodyBudget) -> AsyncIterator[Body]:
    """A request's body, whose memory counts until the context ends; arguments as `Body`."""
    body = Body(request, limit, deadline, budget)
    try:
        yield body
    except DeadlineExceeded:
        current.get().close = not body.complete
        raise
    except ServingError as error:
        # What was read is of no more use; others need the room while the rest is dropped.
        traceback.clear_frames(error.__traceback__)
        body.release()
        await body.refuse()
        raise
    finally:
        body.release()


async def read_photo(request: Request, body: Body, *, max_photo_bytes: int) -> bytes:
    """The one photo of a request.

    Raises:
        InvalidRequest: There is none, or several, or the body is not what its headers say.
        ServingError: Any that reading a `Body` raises.
    """
    photos = await read_photos(request, body, max_photo_bytes=max_photo_bytes)
    if len(photos) != 1:
        raise InvalidRequest(
            f"Found {len(photos)} `image` parts, expected one; /classify/batch takes several."
        )
    if isinstance(photos[0], ServingError):
        raise photos[0]
    return photos[0]


async def read_photos(request: Request, body: Body, *, max_photo_bytes: int) -> list[Upload]:
    """The photos of a request, 1 to 32, in order.

    Raises:
        InvalidRequest: There is none, or too many, or the body is not what its headers say.
        UnsupportedFormat: The body is compressed.
        ServingError: Any that reading a `Body` raises.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedFormat(
            f"Content-Encoding {encoding[:40]!r} is not supported: send photos as they are."
        )
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        form = Form(options.get(b"boundary", b""), max_photo_bytes)
        async for chunk in body:
            form.write(chunk)
        return form.finish()
    if kind.startswith(b"multipart/"):
        raise InvalidRequest(
            f"{kind[:40].decode('latin-1')} is not supported: send multipart/form-data, as `curl -F` does."
        )
    body.is_photo(max_photo_bytes)
    photo = await body.read()
    if not photo:
        raise InvalidRequest(f"The request has no photo: {HINT}.")
    if kind == b"application/x-www-form-urlencoded" and not _STRIPPED.search(photo):
        raise InvalidRequest(
            "The body is a form or text, or a photo from which `curl -d` has removed line breaks and "
            "zeros. Send the photo with `-F image=@photo.jpg` or `--data-binary @photo.jpg` instead."
        )
    if kind == b"application/json" and photo.lstrip()[:1] in (b"{", b"["):
        raise InvalidRequest(f"The body is JSON, not a photo: {HINT}; /v2 takes tensors as JSON.")
    return [photo]
