"""`classify_many` of the asyncio client: tasks that move messages between a `Many` and its streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc

from alexnet_client import _call, errors
from alexnet_client._many import Many, Outcome
from alexnet_client.pb import classifier_pb2 as pb

Requests: TypeAlias = AsyncIterator[pb.ClassifyRequest | errors.AlexNetError]
OpenStream: TypeAlias = Callable[[AsyncIterator[pb.ClassifyStreamRequest]], Any]


class Tasks:
    """One feeds photos in, one a stream carries answers back; whoever iterates takes the outcomes."""

    def __init__(self, many: Many, open_stream: OpenStream, streams: int) -> None:
        self._many = many
        self._open_stream = open_stream
        self._streams = streams
        self._changed = asyncio.Event()

    async def run(self, requests: Requests) -> AsyncIterator[Outcome]:
        """The outcomes, in the requests' order. Closing the iterator cancels what is at work."""
        tasks = [asyncio.create_task(self._feed(requests))]
        tasks += [asyncio.create_task(self._carry(stream)) for stream in range(self._streams)]
        try:
            while not self._many.done:
                while ready := self._many.take():
                    self._wake()
                    for outcome in ready:
                        yield outcome
                if not self._many.done and not await self._change(self._many.expiry_s(time.monotonic())):
                    self._many.expire(time.monotonic())
                    self._wake()
            self._many.take()  # raises what the source raised
        finally:
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
        while True:
            while not self._many.at_work and not self._many.finished:
                await self._change()
            if self._many.finished:
                return
            failure = await self._carry_until_broken(stream)
            if self._many.finished:
                return
            delay_s = self._many.broken(stream, failure, time.monotonic())
            self._wake()
            await asyncio.sleep(delay_s)

    async def _carry_until_broken(self, stream: int) -> errors.AlexNetError:
        alive = asyncio.Event()
        alive.set()
        call = None
        try:
            call = self._open_stream(self._messages(stream, alive))
            async for response in call:
                self._many.answer(response, time.monotonic())
                self._wake()
        except grpc.RpcError as failure:
            return _call.error_from(failure)
        except grpc.aio.UsageError:  # its word for a closed channel
            return errors.Unavailable("the client has been closed", code="unavailable")
        finally:
            alive.clear()
            self._wake()
            if call is not None:
                call.cancel()
        return errors.Unavailable("the server closed the stream", code="unavailable")

    async def _messages(self, stream: int, alive: asyncio.Event) -> AsyncIterator[pb.ClassifyStreamRequest]:
        """What gRPC sends on a stream, one at a time as the server takes them."""
        while alive.is_set():
            message = self._many.next_request(stream, time.monotonic())
            if message is not None:
                yield message
            elif self._many.finished:
                return
            else:
                await self._change(self._many.due_s(time.monotonic()))
