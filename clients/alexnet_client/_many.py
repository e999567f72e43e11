"""`classify_many` without its input and output: what to send next, what an answer means, what comes out.

Pure bookkeeping, whose callers pass in the time, so that the two clients share all of it: each only moves
photos from their source into a `Many` and makes the calls that it asks for. A photo is held from `add` until
it is answered, an answer until those before it have been taken; both count as in the window, so that memory
is bounded whoever is slow.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from alexnet_client import _call, errors, results
from alexnet_client.pb import classifier_pb2 as pb

Outcome: TypeAlias = results.Classification | errors.AlexNetError

WINDOW_BYTES = 64 * 2**20
"""Photos in flight hold no more than this together, or one photo if that is larger."""

_GROWTH = 0.125
"""Calls by which one answer raises the number allowed at a time, after the server has refused some."""


@dataclass(slots=True, eq=False)
class Entry:
    """One photo on its way."""

    number: int
    request: pb.ClassifyRequest | None
    size: int
    deadline: float | None = None
    """Clock time, from its first sending; retries do not move it."""
    tries: int = 0
    not_before: float = 0.0
    outcome: Outcome | None = None


class Many:
    """The state of one `classify_many`.

    Args:
        window: photos that may be in flight or waiting to be taken.
        timeout_s: for each photo, from its first sending to its answer, all tries together; and how long to
            go on without any server before giving up on the photos in the window.
        retry: whether to send again what was `overloaded` or `unavailable`.
    """

    def __init__(self, *, window: int, timeout_s: float, retry: bool) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, not {timeout_s}")
        self._timeout_s = timeout_s
        self._retry = retry
        self._window = window
        self.room = Room(window)
        self._count = 0
        self._limit = float(window)
        """Calls at a time: fewer than the window while a server has room for fewer."""
        self._order: deque[Entry] = deque()
        self._to_send: list[Entry] = []
        self._in_flight = 0
        self._source_ended = False
        self._source_error: BaseException | None = None
        self._silent_since: float | None = None

    # -- the photos

    def add(self, request: pb.ClassifyRequest | errors.AlexNetError) -> None:
        """Take the next photo, or the reason why it cannot be sent."""
        self._count += 1
        if isinstance(request, errors.AlexNetError):
            self._order.append(Entry(self._count, None, 0, outcome=request))
            return
        entry = Entry(self._count, request, request.ByteSize())
        self._order.append(entry)
        self._to_send.append(entry)

    def end(self, error: BaseException | None = None) -> None:
        """There are no more photos; `error` is what their source raised, passed on after the last outcome."""
        self._source_ended = True
        self._source_error = error

    # -- the calls

    def calls(self, now: float) -> Iterator[tuple[Entry, pb.ClassifyRequest, float]]:
        """The calls to make now: whose, with what request, in how many seconds."""
        for entry in [each for each in self._to_send if each.not_before <= now]:
            if self._in_flight >= int(self._limit):
                return
            self._to_send.remove(entry)
            self._in_flight += 1
            entry.tries += 1
            if entry.deadline is None:
                entry.deadline = now + self._timeout_s
            assert entry.request is not None  # what waits to be sent is not settled
            yield entry, entry.request, max(0.001, entry.deadline - now)

    def wait_s(self, now: float) -> float | None:
        """Seconds until a retry falls due; None when nothing waits for the time."""
        if not self._to_send or self._in_flight >= int(self._limit):
            return None
        return max(0.0, min(each.not_before for each in self._to_send) - now)

    def answered(self, entry: Entry, response: pb.ClassifyResponse) -> None:
        """A call has succeeded."""
        self._in_flight -= 1
        self._silent_since = None
        self._limit = min(self._window, self._limit + _GROWTH)
        self._settle(entry, results.classification(response))

    def failed(self, entry: Entry, error: errors.AlexNetError, at: float, now: float) -> None:
        """A call has failed, `at` a time since when its caller may have been busy elsewhere."""
        self._in_flight -= 1
        if entry.deadline is not None:
            entry.deadline += now - at
        if not isinstance(error, errors.Unavailable):
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        if isinstance(error, errors.Overloaded):
            self._limit = min(self._limit, max(1, self._in_flight))  # what it has room for
        delay_s = self._delay_s(entry, error, now)
        if delay_s is None or entry.deadline is None or now + delay_s >= entry.deadline:
            self._settle(entry, error)
            return
        entry.not_before = now + delay_s
        insort(self._to_send, entry, key=lambda each: each.number)

    def _delay_s(self, entry: Entry, error: errors.AlexNetError, now: float) -> float | None:
        """How long to wait before another try; None when there is to be none."""
        if self._silent_since is not None and now - self._silent_since >= self._timeout_s:
            return None  # nobody has come back: later photos get one quick try each
        return _call.retry_delay_s(error, entry.tries) if self._retry else None

    # -- the outcomes

    def take(self) -> Outcome | None:
        """The next outcome, in the photos' order; None when it is not there yet, or all have been taken.

        Raises:
            BaseException: what the source of the photos raised, once all before it have been taken.
        """
        if self._order and self._order[0].outcome is not None:
            self.room.taken()
            return self._order.popleft().outcome
        if self.done and self._source_error is not None:
            error, self._source_error = self._source_error, None
            raise error
        return None

    @property
    def done(self) -> bool:
        """Everything has been taken."""
        return self._source_ended and not self._order

    def _settle(self, entry: Entry, outcome: Outcome) -> None:
        """Keep the outcome, let go of the photo."""
        self.room.settled(entry.size)
        entry.request, entry.outcome = None, outcome


class Room:
    """How far the reader of the photos may go ahead of whoever takes the outcomes.

    Each count has one writer, so that a reader in another thread needs no lock.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._read = self._taken = 0
        self._bytes_read = self._bytes_settled = 0

    @property
    def free(self) -> bool:
        """Whether another photo may be read."""
        held = self._bytes_read - self._bytes_settled
        return self._read - self._taken < self._window and held < WINDOW_BYTES

    def read(self, request: pb.ClassifyRequest | errors.AlexNetError) -> None:
        """The reader has one more."""
        self._read += 1
        if not isinstance(request, errors.AlexNetError):
            self._bytes_read += request.ByteSize()

    def settled(self, size: int) -> None:
        """A photo of `size` bytes has its outcome."""
        self._bytes_settled += size

    def taken(self) -> None:
        """An outcome has been taken."""
        self._taken += 1
