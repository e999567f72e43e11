"""Messages on their way from gRPC's own memory to a handler, counted and one large one at a time.

gRPC makes Python's bytes of a message, through two copies, in the step in which its reader goes on. Of sixty
that have come together it would do so in one turn of the event loop, before any of them can be counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from typing import Any

from alexnet_server.bodies import BodyBudget

COPIES = 2
"""Of a message in memory: as it came or parsed, and the photo that was taken out of it."""
_LARGE_BYTES = 2**18
"""After one that is longer, the event loop does what else there is to do."""
_NEXT_S = 0.01
"""Between two that waited for room: the time in which a message that is on its way arrives."""


async def held(
    requests: AsyncIterator[bytes], parse: Callable[[bytes], Any], bodies: BodyBudget, wait_s: float | None
) -> AsyncGenerator[Any]:
    """Messages, each counted as held from when it is read until the next one is asked for.

    None is asked for while half of the budget is spent, so that gRPC's flow control stops the client. One
    that has been asked for and has come since then stays in gRPC's memory until half is free again: the other
    half is room for any message, whose length shows only when it is taken, since it may have been compressed.

    Raises:
        Overloaded: no room within ``wait_s`` seconds.
    """
    received: AsyncIterator[bytes] | None = None
    while True:
        waited = await bodies.turn(wait_s)
        bodies.next_turn(_NEXT_S if waited else None)
        received = received or aiter(requests)  # not before: gRPC warns of one that nothing is read from
        if (raw := await _taken(anext(received, None), bodies, wait_s)) is None:
            return
        count = COPIES * len(raw)
        try:
            message = parse(raw)
            del raw
            yield message
        finally:
            bodies.give_back(count)


async def _taken(reading: Awaitable[bytes | None], bodies: BodyBudget, wait_s: float | None) -> bytes | None:
    """What is read, counted; None at the end. Errors as for `held`."""
    steps: Generator[Any, None, bytes | None] = reading.__await__()
    try:
        arrival: asyncio.Future[None] = next(steps)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    try:
        await asyncio.wait((arrival,))
        await bodies.turn(wait_s)
    except BaseException as error:
        if arrival.cancel():  # nothing has come
            steps.throw(error)
        _finish(steps)  # or gRPC would never free what it has received
        raise
    raw = _finish(steps)
    size = 0 if raw is None else len(raw)
    bodies.hold(COPIES * size)
    bodies.next_turn(0 if size > _LARGE_BYTES else None)
    return raw


def _finish(steps: Generator[Any, None, bytes | None]) -> bytes | None:
    """What has come, made into Python's."""
    try:
        next(steps)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("gRPC waits once for a message")
