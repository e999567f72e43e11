"""`classify_many` of the blocking client: a window of calls, made by whoever takes the outcomes."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from alexnet_client import _call, errors
from alexnet_client._many import Entry, Many, Outcome
from alexnet_client._progress import Meter
from alexnet_client.pb import classifier_pb2 as pb

Requests: TypeAlias = Iterable[pb.ClassifyRequest | errors.AlexNetError]
Call: TypeAlias = Callable[[pb.ClassifyRequest, float], Any]


class Threads:
    """A thread reads the photos, gRPC's own completes the calls; whoever iterates does all else.

    Those two only leave word in a queue, so nothing here needs a lock that a thread could hold for ever
    while the interpreter ends.

    Args:
        many: the state.
        call: makes the call for a request with this many seconds; a `grpc.Future`, or one of
            `concurrent.futures` that fails with an `AlexNetError`.
        address: where to, for the errors.
    """

    def __init__(self, many: Many, call: Call, address: str) -> None:
        self._many = many
        self._call = call
        self._address = address
        self._news: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._go = threading.Lock()
        """Released for the reader to look whether there is room."""
        self._calls: dict[Entry, Any] = {}
        self._closed = False
        weakref.finalize(self, _cancel, self._calls)  # also at exit, while other threads still run

    def run(self, requests: Requests, meter: Meter) -> Generator[Outcome, None, None]:
        """The outcomes, in the requests' order. Closing the iterator cancels what is in flight."""
        # Never joined: it may be waiting for a photo that never comes.
        threading.Thread(target=self._read, args=(requests,), daemon=True).start()
        try:
            while (outcome := self._outcome()) is not None:
                meter.count(outcome)
                yield outcome
        finally:
            meter.close()
            self._closed = True
            self._wake_reader()
            _cancel(self._calls)

    def _outcome(self) -> Outcome | None:
        """The next outcome; None when all have been taken."""
        wait_s: float | None = 0.0
        while True:
            self._hear(wait_s)
            self._send()
            outcome = self._many.take()
            self._wake_reader()
            if outcome is not None or self._many.done:
                return outcome
            wait_s = self._many.wait_s(time.monotonic())

    def _hear(self, wait_s: float | None) -> None:
        """Take in all the news there is; wait for the first, but not when a retry falls due."""
        try:
            self._news.get(timeout=wait_s)()
            while True:
                self._news.get_nowait()()
        except Empty:
            pass

    def _send(self) -> None:
        for entry, request, timeout_s in self._many.calls(time.monotonic()):
            try:
                call = self._call(request, timeout_s)
            except ValueError:  # gRPC's word for a closed channel
                now = time.monotonic()
                self._many.failed(entry, _call.closed(), now, now)
                continue
            self._calls[entry] = call
            call.add_done_callback(partial(self._leave_word, entry))

    def _leave_word(self, entry: Entry, call: Any) -> None:
        """In gRPC's thread."""
        self._news.put(partial(self._finished, entry, call, time.monotonic()))

    def _finished(self, entry: Entry, call: Any, at: float) -> None:
        del self._calls[entry]
        if call.cancelled():
            self._many.failed(entry, _call.closed(), at, time.monotonic())
        elif (failure := call.exception()) is not None:  # not raised: a traceback would keep the call alive
            known = isinstance(failure, errors.AlexNetError)
            error = failure if known else _call.error_from(failure, self._address)
            self._many.failed(entry, error, at, time.monotonic())
        else:
            self._many.answered(entry, call.result())

    def _wake_reader(self) -> None:
        if self._go.locked():
            self._go.release()

    def _read(self, requests: Requests) -> None:
        error: BaseException | None = None
        try:
            each = iter(requests)
            while True:
                while not (self._many.room.free or self._closed):
                    self._go.acquire()
                if self._closed or (request := next(each, None)) is None:
                    break
                self._many.room.read(request)
                self._news.put(partial(self._many.add, request))
        except BaseException as raised:  # handed to whoever iterates
            error = raised
        self._news.put(partial(self._many.end, error))


def _cancel(calls: dict[Entry, Any]) -> None:
    """Cancel what is unfinished, and let go of it."""
    unfinished = list(calls.values())
    calls.clear()
    for call in unfinished:
        call.cancel()
