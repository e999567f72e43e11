"""One `ClassifyStream`: photos in, answers out as they are ready, and never more in flight than is useful."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from alexnet_client.pb import classifier_pb2 as pb
from alexnet_server.bodies import BodyBudget
from alexnet_server.call import Call, Calls, current
from alexnet_server.engines import Model
from alexnet_server.errors import DeadlineExceeded, Internal, InvalidRequest, ServingError, Unavailable
from alexnet_server.rpc import errors
from alexnet_server.rpc.arrivals import COPIES
from alexnet_server.rpc.guard import timeout_s

log = logging.getLogger(__name__)

_MAX_PHOTOS = 96
"""Photos of one stream in flight: a batch of 32 in the engine, one ready, one being decoded."""
_MAX_ID_BYTES = 256


class PhotoStream:
    """Reads the next photo only while there is room for it, so that gRPC's flow control stops the client.

    Args:
        choose: The model that a request asks for.
        answer: Classifies the photo of a request within this many seconds.
        calls: Accounts for each photo as for a call.
        context: The call, written to by one task at a time.
        max_views: Views that photos of this stream may hold in the queue.
        bodies: Photos in flight count towards it.
        closing: Set when the port closes.
    """

    def __init__(
        self,
        choose: Callable[[pb.ClassifyRequest], Model],
        answer: Callable[[pb.ClassifyRequest, Model, float | None], Awaitable[pb.ClassifyResponse]],
        calls: Calls,
        context: Any,
        *,
        max_views: int,
        bodies: BodyBudget,
        closing: asyncio.Event,
    ) -> None:
        self._choose = choose
        self._classify = answer
        self._calls = calls
        self._context = context
        self._max_views = max_views
        self._bodies = bodies
        self._closing = closing
        self._writing = asyncio.Lock()
        self._at_work: dict[asyncio.Task[None], int] = {}

    async def run(self, requests: AsyncIterator[pb.ClassifyStreamRequest], age_s: float) -> None:
        """Serve the stream until its client ends it.

        Raises:
            InvalidRequest: a message that is none, or an id that is too long.
            Overloaded: a message for which there is no room.
            Unavailable: the port is closing or the stream has reached its age.

            All that was read before is answered.
        """
        end = asyncio.create_task(self._end(age_s))
        failure: ServingError | None = None
        try:
            try:
                if await self._read(requests, end):
                    failure = Unavailable(
                        "This stream has ended; send the photos that it left unanswered on another one."
                    )
            except ServingError as error:
                failure = error
            # A call cannot fail while an answer is still being written.
            if self._at_work:
                await asyncio.wait(self._at_work)
        finally:
            end.cancel()
            for task in self._at_work:
                task.cancel()
        if failure is not None:
            raise failure

    async def _end(self, age_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(age_s):
                await self._closing.wait()

    async def _read(self, requests: AsyncIterator[pb.ClassifyStreamRequest], end: asyncio.Task[None]) -> bool:
        """Take photos until there are no more (False) or the stream must end (True)."""
        while True:
            read = asyncio.ensure_future(anext(requests, None))
            try:
                await asyncio.wait((read, end), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not read.done():
                    read.cancel()
                    await asyncio.wait((read,))  # or whoever closes what it reads from finds it running
            if read.cancelled():
                return True
            if (request := read.result()) is None:
                return False
            await self._take(request)
            del read, request  # or they hold the message, uncounted, while the next one is waited for

    async def _take(self, request: pb.ClassifyStreamRequest) -> None:
        """Put a photo to work once there is room for it."""
        if len(request.id.encode()) > _MAX_ID_BYTES:
            raise InvalidRequest(f"`id` must be at most {_MAX_ID_BYTES} bytes.")
        model: Model | ServingError
        try:
            model = self._choose(request.request)
            views = model.views
        except ServingError as error:  # reported in the photo's answer
            model, views = error, 1
        while self._at_work and (
            len(self._at_work) >= _MAX_PHOTOS or sum(self._at_work.values()) + views > self._max_views
        ):
            await asyncio.wait(self._at_work, return_when=asyncio.FIRST_COMPLETED)
        held = COPIES * current.get().message_bytes
        self._bodies.hold(held)  # a while longer than whoever read it
        task = asyncio.create_task(self._answer(request, model))
        self._at_work[task] = views

        def finished(task: asyncio.Task[None]) -> None:
            del self._at_work[task]
            self._bodies.give_back(held)

        task.add_done_callback(finished)

    async def _answer(self, request: pb.ClassifyStreamRequest, model: Model | ServingError) -> None:
        stream = current.get()
        call = Call(stream.name, stream.request_id, kind="stream")
        answer = pb.ClassifyStreamResponse(id=request.id)
        try:
            if isinstance(model, ServingError):
                raise model
            call.model = model.name
            labels = await self._classify(request.request, model, self._timeout_s(request))
            answer.response.CopyFrom(labels)
        except asyncio.CancelledError:
            call.code = "cancelled"
            raise
        except ServingError as error:
            call.code = error.code
            answer.error.CopyFrom(_message(error))
        except Exception:
            log.exception("a photo of a stream failed")
            call.code = "internal"
            answer.error.CopyFrom(_message(Internal()))
        finally:
            call.status = errors.status_name(call.code)
            self._calls.account(call)
        async with self._writing:
            await self._context.write(answer)

    def _timeout_s(self, request: pb.ClassifyStreamRequest) -> float | None:
        """The photo's own, within the stream's."""
        limits = [limit for limit in (timeout_s(self._context),) if limit is not None]
        if request.HasField("timeout_ms"):
            limits.append(request.timeout_ms / 1000)
        if limits and min(limits) <= 0:
            raise DeadlineExceeded("The photo's time had already run out when it arrived.")
        return min(limits) if limits else None


def _message(error: ServingError) -> pb.Error:
    return pb.Error(
        code=error.code, message=errors.message(error), retry_after_ms=errors.retry_after_ms(error)
    )
