"""The bounded queue, counted in views: who may wait, how long the wait is, and who is refused at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from alexnet_server.errors import DeadlineExceeded, Overloaded

_SMOOTHING = 0.2
"""Weight of the newest batch in the running mean of seconds per view."""


class Admission:
    """Counts views that wait, and predicts the wait from measured seconds per view.

    Args:
        queue_size: Views that may wait at a time.
        clock: Monotonic seconds.
    """

    def __init__(self, queue_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.queue_size = queue_size
        self.waiting_views = 0
        self._waiting: dict[str, int] = {}
        self._seconds_per_view: dict[str, float] = {}
        self._largest: dict[str, int] = {}
        self._busy_until = 0.0
        self._clock = clock

    @property
    def full(self) -> bool:
        """True when not one more view may wait."""
        return self.waiting_views >= self.queue_size

    def enter(self, model: str, views: int, deadline: float, *, admitted: bool = False) -> None:
        """Take `views` places in the queue; errors as `check`, which those who were `admitted` passed."""
        if not admitted:
            self.check(model, views, deadline)
        self.waiting_views += views
        self._waiting[model] = self._waiting.get(model, 0) + views

    def check(self, model: str, views: int, deadline: float) -> None:
        """Refuse what could not `enter`.

        An empty queue takes anything: a photo of more views than `queue_size` is not refused for ever.

        Raises:
            Overloaded: There is no room; `retry_after_s` is the predicted wait.
            DeadlineExceeded: There is room, but the queue is longer than the caller will wait.
        """
        wait_s = self.wait_s()
        if self.waiting_views and self.waiting_views + views > self.queue_size:
            raise Overloaded(
                f"The queue is full ({self.waiting_views} of {self.queue_size} views wait); try again later.",
                retry_after_s=wait_s + views * self.seconds_per_view(model),
            )
        if self._clock() + wait_s >= deadline:
            raise DeadlineExceeded(
                f"This request has {1e3 * max(0.0, deadline - self._clock()):.0f} ms left, but the queue is "
                f"{1e3 * wait_s:.0f} ms long; allow more time or try again later.",
                retry_after_s=wait_s,
            )

    def leave(self, model: str, views: int) -> None:
        """Give back places that `enter` took."""
        self.waiting_views -= views
        self._waiting[model] -= views

    def start(self, model: str, views: int) -> None:
        """Note that the engine has been given a batch of `views`."""
        now = self._clock()
        self._busy_until = max(now, self._busy_until) + views * self.seconds_per_view(model)

    def finish(self, model: str, views: int, seconds: float, *, idle: bool) -> None:
        """Learn from a batch: `seconds` is the time by which the queue moved on by `views`.

        A lone request says little about a full queue (a batch of one costs several times as much a view), so
        batches under half the largest seen do not count.
        """
        if idle:
            self._busy_until = 0.0
        largest = self._largest.get(model, 0)
        if views * 2 < largest:
            return
        new = seconds / views
        known = self._seconds_per_view.get(model, new)
        # A batch twice as large as any before says more than all of those.
        self._seconds_per_view[model] = new if views >= 2 * largest else known + _SMOOTHING * (new - known)
        self._largest[model] = max(views, largest)

    def seconds_per_view(self, model: str) -> float:
        """Measured seconds by which one view of `model` lengthens the queue; 0 before the first batch."""
        return self._seconds_per_view.get(model, 0.0)

    def wait_s(self) -> float:
        """Predicted seconds until a photo that came now would reach the engine."""
        queued = sum(views * self.seconds_per_view(model) for model, views in self._waiting.items())
        return queued + max(0.0, self._busy_until - self._clock())
