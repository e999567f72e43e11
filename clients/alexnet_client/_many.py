"""`classify_many` without its input and output: what to send next, what an answer means, what comes out.

Pure bookkeeping, told the time by its callers, so that the two clients share all of it: each only moves
messages between a `Many` and one or more gRPC streams. A photo is held from `add` until it is answered, an
answer until those before it have been taken; both count as in the window, so that memory is bounded whoever
is slow.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from alexnet_client import _call, errors, results
from alexnet_client.pb import classifier_pb2 as pb

Outcome: TypeAlias = results.Classification | errors.AlexNetError

WINDOW_BYTES = 64 * 2**20
"""Photos at work hold no more than this together, or one photo if that is larger."""

_GRACE_S = 2.0
"""The server tells a photo's deadline itself; only when it stays silent this much longer does the client."""

_LOOK_AGAIN_S = 1.0
_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 5.0


@dataclass(slots=True, eq=False)
class _Entry:
    """One photo on its way."""

    id: str
    request: pb.ClassifyRequest | None
    size: int
    deadline: float | None = None
    """Clock time, from its first sending; retries do not move it."""
    not_before: float = 0.0
    stream: int | None = None
    """The stream that carries it; None while it waits to be sent."""
    last_error: errors.AlexNetError | None = None
    """Why it is being sent again."""
    outcome: Outcome | None = None

    @property
    def expiry(self) -> float | None:
        """When to give up on it without a word from the server."""
        if self.deadline is None or self.stream is None:
            return self.deadline
        return self.deadline + _GRACE_S


class Many:
    """The state of one `classify_many`.

    Args:
        window: photos that may be at work or waiting to be taken.
        timeout_s: for each photo, from its first sending to its answer, all tries together; and how long to
            go on without any server before giving up on the photos in the window.
        retry: whether to send again what was `overloaded` or lost with its stream.
        streams: how many streams will carry them.
    """

    def __init__(self, *, window: int, timeout_s: float, retry: bool, streams: int = 1) -> None:
        if streams < 1:
            raise ValueError(f"streams must be at least 1, not {streams}")
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, not {timeout_s}")
        self._window = window
        self._timeout_s = timeout_s
        self._retry = retry
        self._order: deque[_Entry] = deque()
        self._at_work: dict[str, _Entry] = {}
        self._to_send: deque[_Entry] = deque()
        self._bytes = 0
        self._count = 0
        self._source_ended = False
        self._source_error: BaseException | None = None
        self._failures = 0
        self._silent_since: float | None = None

    # -- the photos

    @property
    def has_room(self) -> bool:
        """Whether another photo may be added."""
        if not self._order:
            return True
        return len(self._order) < self._window and self._bytes < WINDOW_BYTES

    def add(self, request: pb.ClassifyRequest | errors.AlexNetError) -> None:
        """Take the next photo, or the reason why it cannot be sent."""
        entry = _Entry(id=str(self._count), request=None, size=0)
        self._count += 1
        self._order.append(entry)
        if isinstance(request, errors.AlexNetError):
            entry.outcome = request
            return
        entry.request, entry.size = request, request.ByteSize()
        self._bytes += entry.size
        self._at_work[entry.id] = entry
        self._to_send.append(entry)

    def end(self, error: BaseException | None = None) -> None:
        """There are no more photos; `error` is what their source raised, passed on after the last outcome."""
        self._source_ended = True
        self._source_error = error

    # -- the streams

    @property
    def has_work(self) -> bool:
        """Whether any photo waits to be sent, now or later."""
        return bool(self._to_send)

    @property
    def at_work(self) -> bool:
        """Whether any photo waits for its answer."""
        return bool(self._at_work)

    @property
    def finished(self) -> bool:
        """No photo is at work and none will come: streams may be closed."""
        return self._source_ended and not self._at_work

    def next_request(self, stream: int, now: float) -> pb.ClassifyStreamRequest | None:
        """The next message for a stream; None when there is none now (`due_s` tells when to ask again)."""
        for entry in self._to_send:
            if entry.not_before <= now:
                break
        else:
            return None
        self._to_send.remove(entry)
        entry.stream = stream
        if entry.deadline is None:
            entry.deadline = now + self._timeout_s
        left_ms = max(1, int((entry.deadline - now) * 1000))
        return pb.ClassifyStreamRequest(id=entry.id, request=entry.request, timeout_ms=left_ms)

    def answer(self, response: pb.ClassifyStreamResponse, now: float) -> None:
        """Take an answer from a stream; one that nobody waits for any more is dropped."""
        self._failures, self._silent_since = 0, None
        entry = self._at_work.get(response.id)
        if entry is None or entry.stream is None:
            return
        if response.WhichOneof("outcome") == "response":
            self._settle(entry, results.classification(response.response))
            return
        wait_s = response.error.retry_after_ms / 1000 if response.error.HasField("retry_after_ms") else None
        error = errors.from_code(response.error.code, response.error.message, retry_after_s=wait_s)
        if wait_s is not None and isinstance(error, errors.Overloaded | errors.Unavailable):
            self._again(entry, error, now + _call.jittered(wait_s))
        else:
            self._settle(entry, error)

    def broken(self, stream: int, error: errors.AlexNetError, now: float) -> float:
        """A stream has ended with photos at work; they go back to be sent on another.

        Returns:
            Seconds to wait before opening the next stream.
        """
        self._failures += 1
        if self._silent_since is None:
            self._silent_since = now
        worth_a_wait = isinstance(error, errors.Unavailable | errors.Overloaded)
        if not worth_a_wait or now - self._silent_since >= self._timeout_s:
            # None of those waiting would fare better. Later photos get one quick try for each window of them.
            for entry in list(self._at_work.values()):
                self._settle(entry, error)
            return _FIRST_BACKOFF_S
        for entry in reversed([each for each in self._at_work.values() if each.stream == stream]):
            self._again(entry, error, now, first=True)
        backoff_s = min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(self._failures - 1, 10))
        return _call.jittered(error.retry_after_s or backoff_s)

    def expire(self, now: float) -> None:
        """Give up on photos whose deadline has passed with no word from the server."""
        for entry in list(self._at_work.values()):
            if (expiry := entry.expiry) is not None and now >= expiry:
                message = f"no answer within {self._timeout_s:g} s"
                silence = errors.DeadlineExceeded(message, code="deadline_exceeded")
                self._settle(entry, entry.last_error or silence)

    def due_s(self, now: float) -> float | None:
        """Seconds until the next retry falls due; None when none waits."""
        moments = [entry.not_before for entry in self._to_send]
        return max(0.0, min(moments) - now) if moments else None

    def expiry_s(self, now: float) -> float:
        """Seconds until `expire` should look at the first photo; soon again while that has not been sent."""
        if not self._order or (expiry := self._order[0].expiry) is None:
            return _LOOK_AGAIN_S
        return max(0.0, expiry - now)

    # -- the outcomes

    def take(self) -> list[Outcome]:
        """The outcomes whose turn has come, in the photos' order.

        Raises:
            BaseException: what the source of the photos raised, once all before it have been taken.
        """
        ready = []
        while self._order and self._order[0].outcome is not None:
            ready.append(self._order.popleft().outcome)
        if not ready and not self._order and self._source_error is not None:
            error, self._source_error = self._source_error, None
            raise error
        return [outcome for outcome in ready if outcome is not None]

    @property
    def has_outcome(self) -> bool:
        """Whether there is anything to take, or never will be."""
        return self.done or (bool(self._order) and self._order[0].outcome is not None)

    @property
    def done(self) -> bool:
        """Everything has been taken."""
        return self._source_ended and not self._order

    def _again(
        self, entry: _Entry, error: errors.AlexNetError, moment: float, *, first: bool = False
    ) -> None:
        """Queue a sent photo for another try at `moment`, or settle it where none is allowed or left."""
        if not self._retry or (entry.deadline is not None and moment >= entry.deadline):
            self._settle(entry, error)
            return
        entry.stream, entry.not_before, entry.last_error = None, moment, error
        if first:
            self._to_send.appendleft(entry)
        else:
            self._to_send.append(entry)

    def _settle(self, entry: _Entry, outcome: Outcome) -> None:
        """Keep the outcome, let go of the photo."""
        del self._at_work[entry.id]
        if entry.stream is None:
            self._to_send.remove(entry)
        self._bytes -= entry.size
        entry.request, entry.outcome = None, outcome
