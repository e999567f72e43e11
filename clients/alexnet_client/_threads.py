"""`classify_many` of the blocking client: threads that move messages between a `Many` and its streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeAlias

import grpc

from alexnet_client import _call, errors
from alexnet_client._many import Many, Outcome
from alexnet_client._progress import Meter
from alexnet_client.pb import classifier_pb2 as pb

Requests: TypeAlias = Iterable[pb.ClassifyRequest | errors.AlexNetError]
OpenStream: TypeAlias = Callable[[Iterator[pb.ClassifyStreamRequest]], Any]


class Threads:
    """One feeds photos in, one a stream carries answers back; whoever iterates takes the outcomes.

    All of them touch `many` with `_turn` held, and wake those whom a change concerns: a wake-up for nothing
    costs more than all the rest that happens to a photo here.
    """

    def __init__(self, many: Many, open_stream: OpenStream, streams: int) -> None:
        self._many = many
        self._open_stream = open_stream
        self._turn = threading.Lock()
        self._room = threading.Condition(self._turn)
        """The feeder waits here."""
        self._work = threading.Condition(self._turn)
        """What sends waits here."""
        self._ready = threading.Condition(self._turn)
        """Whoever iterates waits here."""
        self._closed = False
        self._calls: list[Any] = [None] * streams

    def run(self, requests: Requests, meter: Meter) -> Generator[Outcome, None, None]:
        """The outcomes, in the requests' order. Closing the iterator cancels what is at work."""
        workers = [
            threading.Thread(target=self._carry, args=(stream,), daemon=True)
            for stream in range(len(self._calls))
        ]
        # Never joined: it may be waiting for a photo that never comes.
        threading.Thread(target=self._feed, args=(requests,), daemon=True).start()
        for worker in workers:
            worker.start()
        try:
            while outcomes := self._outcomes():
                for outcome in outcomes:
                    meter.count(outcome)
                    yield outcome
        finally:
            meter.close()
            self._close()
            for worker in workers:
                worker.join()

    def _outcomes(self) -> list[Outcome]:
        """The next outcomes; none when all have been taken."""
        with self._turn:
            while not (ready := self._many.take()) and not self._many.done:
                if not self._ready.wait(self._many.expiry_s(time.monotonic())):
                    self._many.expire(time.monotonic())
                    self._tell()
            self._tell()
            return ready

    def _tell(self) -> None:
        """Wake those who have something to do now."""
        if self._over or self._many.has_room:
            self._room.notify_all()
        if self._over or self._many.has_work:
            self._work.notify_all()
        if self._over or self._many.has_outcome:
            self._ready.notify_all()

    def _close(self) -> None:
        with self._turn:
            self._closed = True
            self._tell()
            calls = [call for call in self._calls if call is not None]
        for call in calls:
            call.cancel()

    def _feed(self, requests: Requests) -> None:
        error: BaseException | None = None
        try:
            for request in requests:
                with self._turn:
                    self._many.add(request)
                    self._tell()
                    self._room.wait_for(lambda: self._closed or self._many.has_room)
                    if self._closed:
                        return
        except BaseException as raised:  # handed to whoever iterates
            error = raised
        with self._turn:
            self._many.end(error)
            self._tell()

    def _carry(self, stream: int) -> None:
        """Keep one stream open for as long as there is work, and its answers coming back."""
        while self._wait_for_work():
            failure = self._carry_until_broken(stream)
            with self._turn:
                if self._over:
                    return
                delay_s = self._many.broken(stream, failure, time.monotonic())
                self._tell()
                self._work.wait_for(lambda: self._over, delay_s)

    @property
    def _over(self) -> bool:
        return self._closed or self._many.finished

    def _wait_for_work(self) -> bool:
        """Block until there is a photo to send (True) or nothing left to do (False)."""
        with self._turn:
            self._work.wait_for(lambda: self._over or self._many.at_work)
            return not self._over

    def _carry_until_broken(self, stream: int) -> errors.AlexNetError:
        alive = threading.Event()
        alive.set()
        try:
            call = self._open_stream(self._messages(stream, alive))
            with self._turn:
                self._calls[stream] = call
                if self._closed:
                    call.cancel()
            for response in call:
                with self._turn:
                    self._many.answer(response, time.monotonic())
                    self._tell()
        except grpc.RpcError as failure:
            return _call.error_from(failure)
        except ValueError:  # gRPC's word for a closed channel
            return errors.Unavailable("the client has been closed", code="unavailable")
        finally:
            with self._turn:
                alive.clear()
                self._work.notify_all()
        return errors.Unavailable("the server closed the stream", code="unavailable")

    def _messages(self, stream: int, alive: threading.Event) -> Iterator[pb.ClassifyStreamRequest]:
        """What gRPC's own thread sends on a stream, one at a time as the server takes them."""
        while True:
            with self._turn:
                # Asked first: a photo given to a stream that has ended would be lost.
                while alive.is_set() and not self._over:
                    if (message := self._many.next_request(stream, time.monotonic())) is not None:
                        break
                    self._work.wait(self._many.due_s(time.monotonic()))
                else:
                    return
            yield message
