"""`classify_many` of the asyncio client: tasks that move messages between a `Many` and its streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc

from alexnet_client import _call, errors
from alexnet_client._many import Many, Outcome
from alexnet_client._progress import Meter
from alexnet_client.pb import classifier_pb2 as pb

Requests: TypeAlias = AsyncIterator[pb.ClassifyRequest | errors.AlexNetError]
OpenStream: TypeAlias = Callable[[AsyncIterator[pb.ClassifyStreamRequest]], Any]


_SENDING_FAILED = "Internal error from Core"
"""grpc.aio's word when the server ends a stream during a send; the server's reason is lost."""
_LISTEN_FIRST_S = 0.5
"""So the next stream sends nothing for this long: where there is a reason to refuse it, it is heard then."""


class _Line:
    """Whether one stream may be sent on: not before `opened`, nor when no longer `alive`."""

    def __init__(self) -> None:
        self.alive = True
        self.opened = asyncio.Event()


class Tasks:
    """One feeds photos in, one a stream carries answers back; whoever iterates takes the outcomes."""

    def __init__(self, many: Many, open_stream: OpenStream, streams: int) -> None:
        self._many = many
        self._open_stream = open_stream
        self._streams = streams
        self._changed = asyncio.Event()

    async def run(self, requests: Requests, meter: Meter) -> AsyncGenerator[Outcome, None]:
        """The outcomes, in the requests' order. Closing the iterator cancels what is at work."""
        tasks = [asyncio.create_task(self._feed(requests))]
        tasks += [asyncio.create_task(self._carry(stream)) for stream in range(self._streams)]
        try:
            while not self._many.done:
                while ready := self._many.take():
                    self._wake()
                    for outcome in ready:
                        meter.count(outcome)
                        yield outcome
                if not self._many.done and not await self._change(self._many.expiry_s(time.monotonic())):
                    self._many.expire(time.monotonic())
                    self._wake()
            self._many.take()  # raises what the source raised
        finally:
            meter.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self, timeout_s: float | None = None) -> bool:
        """Sleep until something has changed; False when the time ran out first."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._changed.wait()
        except TimeoutError:
            return False

    async def _feed(self, requests: Requests) -> None:
        error: BaseException | None = None
        try:
            async for request in requests:
                self._many.add(request)
                self._wake()
                while not self._many.has_room:
                    await self._change()
        except Exception as raised:  # handed to whoever iterates
            error = raised
        self._many.end(error)
        self._wake()

    async def _carry(self, stream: int) -> None:
        """Keep one stream open for as long as there is work, and its answers coming back."""
        reason_lost = False
        while True:
            while not self._many.at_work and not self._many.finished:
                await self._change()
            if self._many.finished:
                return
            try:
                await self._carry_until_broken(stream, listen_first=reason_lost)
                failure: errors.AlexNetError = _unavailable("the server closed the stream")
            except grpc.aio.UsageError:  # its word for a closed channel
                failure = _unavailable("the client has been closed")
            except grpc.RpcError as broken:
                reason_lost = broken.details() == _SENDING_FAILED
                failure = _unavailable("the stream broke") if reason_lost else _call.error_from(broken)
            if self._many.finished:
                return
            delay_s = self._many.broken(stream, failure, time.monotonic())
            self._wake()
            await asyncio.sleep(delay_s)

    async def _carry_until_broken(self, stream: int, *, listen_first: bool) -> None:
        line = _Line()
        call = self._open_stream(self._messages(stream, line))
        try:
            if listen_first:
                await asyncio.wait((asyncio.ensure_future(call.code()),), timeout=_LISTEN_FIRST_S)
            line.opened.set()
            async for response in call:
                self._many.answer(response, time.monotonic())
                self._wake()
        finally:
            line.alive = False
            line.opened.set()
            self._wake()
            call.cancel()

    async def _messages(self, stream: int, line: _Line) -> AsyncIterator[pb.ClassifyStreamRequest]:
        """What gRPC sends on a stream, one at a time as the server takes them."""
        await line.opened.wait()
        while line.alive and not self._many.finished:
            message = self._many.next_request(stream, time.monotonic())
            if message is not None:
                yield message
            else:
                await self._change(self._many.due_s(time.monotonic()))


def _unavailable(message: str) -> errors.Unavailable:
    return errors.Unavailable(message, code="unavailable")
