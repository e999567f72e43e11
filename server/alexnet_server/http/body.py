"""Request bodies, bounded in bytes, in time and in the memory that all of them hold together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from alexnet_server.call import current
from alexnet_server.errors import DeadlineExceeded, Overloaded, ServingError, TooLarge
from alexnet_server.http.context import ClientGone

_DROP_LIMIT_S = 10.0
"""Longest time that the rest of a refused body is read for."""


class BodyBudget:
    """Bounds the bodies held in memory at a time.

    Args:
        max_bytes: Bytes of all bodies together; at least one full body should fit.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0

    def take(self, count: int) -> None:
        """Hold `count` more bytes.

        Raises:
            Overloaded: Too much is held already.
        """
        if self.held_bytes + count > self.max_bytes:
            raise Overloaded("Too many uploads are under way; try again later.", retry_after_s=1.0)
        self.held_bytes += count


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
        self._budget.take(count)
        self.held_bytes += count

    async def read(self) -> bytes:
        """The whole body; errors as for its pieces."""
        chunks = [chunk async for chunk in self]
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

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
    except ServingError:
        await body.refuse()
        raise
    finally:
        budget.held_bytes -= body.held_bytes
