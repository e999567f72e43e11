"""`classify_many` of the asyncio client: a window of calls, each in a task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

from alexnet_client import errors
from alexnet_client._many import Entry, Many, Outcome
from alexnet_client._progress import Meter
from alexnet_client.pb import classifier_pb2 as pb

Requests: TypeAlias = AsyncIterator[pb.ClassifyRequest | errors.AlexNetError]
Call: TypeAlias = Callable[[pb.ClassifyRequest, float], Awaitable[pb.ClassifyResponse]]


class Tasks:
    """One reads the photos, one a call waits for its answer; whoever iterates takes the outcomes.

    Args:
        many: the state.
        call: makes the call for a request with this many seconds; raises `AlexNetError`.
    """

    def __init__(self, many: Many, call: Call) -> None:
        self._many = many
        self._call = call
        self._outcome_ready = asyncio.Event()
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None

    async def run(self, requests: Requests, meter: Meter) -> AsyncGenerator[Outcome, None]:
        """The outcomes, in the requests' order. Closing the iterator cancels what is in flight."""
        self._start(self._read(requests))
        try:
            while True:
                self._outcome_ready.clear()
                if (outcome := self._many.take()) is not None:
                    self._room.set()
                    meter.count(outcome)
                    yield outcome
                elif self._many.done:
                    return
                else:
                    await self._outcome_ready.wait()
        finally:
            meter.close()
            if self._retry is not None:
                self._retry.cancel()
            unfinished = list(self._tasks)
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.gather(*unfinished, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, requests: Requests) -> None:
        error: BaseException | None = None
        try:
            while True:
                while not self._many.room.free:
                    self._room.clear()
                    await self._room.wait()
                if (request := await anext(requests, None)) is None:
                    break
                self._many.room.read(request)
                self._many.add(request)
                self._moved_on()
        except Exception as raised:  # handed to whoever iterates
            error = raised
        self._many.end(error)
        self._moved_on()

    def _moved_on(self) -> None:
        """Something has come or gone: make what calls there are to make, now or when the first falls due."""
        now = time.monotonic()
        for entry, request, timeout_s in self._many.calls(now):
            self._start(self._make(entry, request, timeout_s))
        if self._retry is not None:
            self._retry.cancel()
        wait_s = self._many.wait_s(now)
        loop = asyncio.get_running_loop()
        self._retry = None if wait_s is None else loop.call_later(wait_s, self._moved_on)
        self._outcome_ready.set()
        self._room.set()

    async def _make(self, entry: Entry, request: pb.ClassifyRequest, timeout_s: float) -> None:
        try:
            answer = await self._call(request, timeout_s)
        except errors.AlexNetError as error:
            now = time.monotonic()
            self._many.failed(entry, error.with_traceback(None), now, now)
        else:
            self._many.answered(entry, answer)
        self._moved_on()
