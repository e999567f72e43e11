"""Messages on their way from gRPC's own memory to a handler, counted and one large one at a time.

gRPC makes Python's bytes of a message, through two copies, in the step in which its reader goes on. Of sixty
that have come together it would do so in one turn of the event loop, before any of them can be counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any

import grpc

from alexnet_server.bodies import BodyBudget

COPIES = 2
"""Of a message in memory: as it came or parsed, and the photo that was taken out of it."""
_LARGE_BYTES = 2**18
"""After one that is longer, the event loop does what else there is to do."""
_NEXT_S = 0.01
"""Between two that waited for room: the time in which a message that is on its way arrives."""

_dropping: set[asyncio.Task[None]] = set()


async def held(
    read: Callable[[], Awaitable[Any]],
    parse: Callable[[bytes], Any],
    bodies: BodyBudget,
    wait_s: float | None,
) -> AsyncGenerator[Any]:
    """Messages that a call's context reads, each counted as held until the next one is asked for.

    (gRPC's iterator of them would hold the last one while it waits for the next.)

    None is asked for while half of the budget is spent, so that gRPC's flow control stops the client. One
    that has been asked for and has come since then stays in gRPC's memory until half is free again: the other
    half is room for any message, whose length shows only when it is taken, since it may have been compressed.

    Raises:
        Overloaded: no room within ``wait_s`` seconds.
    """
    while True:
        waited = await bodies.turn(wait_s)
        bodies.next_turn(_NEXT_S if waited else None)
        if (raw := await _taken(read(), bodies, wait_s)) is None:
            return
        count = COPIES * len(raw)
        try:
            message = parse(raw)
            del raw
            yield message
            del message
        finally:
            bodies.give_back(count)


async def _taken(reading: Awaitable[Any], bodies: BodyBudget, wait_s: float | None) -> bytes | None:
    """What is read, counted; None at the end. Errors as for `held`."""
    steps: Generator[asyncio.Future[None], None, Any] = reading.__await__()
    arrival = next(steps)
    try:
        await asyncio.wait((arrival,))
        await bodies.turn(wait_s)
    except BaseException as error:
        if arrival.cancel():  # nothing has come
            steps.throw(error)
        dropping = asyncio.create_task(_drop(steps, bodies))
        _dropping.add(dropping)
        dropping.add_done_callback(_dropping.discard)
        raise
    size = 0
    try:
        if (raw := _finish(steps)) is not None:
            size = len(raw)
            bodies.hold(COPIES * size)
        return raw
    finally:
        bodies.next_turn(0 if size > _LARGE_BYTES else None)


async def _drop(steps: Generator[Any, None, Any], bodies: BodyBudget) -> None:
    """Take what has come for one who has left; gRPC would never free it, and many leave together."""
    await bodies.turn(room=False)
    try:
        with suppress(Exception, asyncio.CancelledError):  # the call is over
            _finish(steps)
    finally:
        bodies.next_turn(0)


def _finish(steps: Generator[Any, None, Any]) -> bytes | None:
    """What has come, made into Python's; None at the end."""
    try:
        next(steps)
    except StopIteration as end:
        return None if end.value is grpc.aio.EOF else end.value
    raise AssertionError("gRPC waits once for a message")
