"""A line on standard error that says how far `classify_many` has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO, TypeAlias

from alexnet_client import errors
from alexnet_client._many import Outcome

_SECONDS_BETWEEN = {True: 0.1, False: 10.0}
"""On a terminal the line is drawn over itself; in a log each is a new one."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is.

    Attributes:
        done: photos with a result or an error.
        failed: those with an error.
        total: photos in all, where the source knows its length.
        elapsed_s: seconds since the first was asked for.
    """

    done: int
    failed: int
    total: int | None
    elapsed_s: float

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest will take at the pace so far; None without a total or a pace."""
        if self.total is None or not self.done:
            return None
        return self.elapsed_s / self.done * max(0, self.total - self.done)

    def __str__(self) -> str:
        rate = self.done / self.elapsed_s if self.elapsed_s > 0 else 0.0
        of = f"/{self.total}" if self.total is not None else ""
        failed = f", {self.failed} failed" if self.failed else ""
        left = f", {_duration(self.left_s)} left" if self.left_s else ""
        return f"{self.done}{of} photos, {rate:.0f}/s{failed}{left}"


def _duration(seconds: float) -> str:
    """Such as `8 s`, `2:05` or `1:02:05`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    return f"{hours}:{minutes % 60:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


Report: TypeAlias = Callable[[Progress], None]


class Meter:
    """Counts outcomes and reports them.

    Args:
        progress: True for a line on standard error, or a function to call after every outcome.
        photos: the source; its length is used where it has one.
    """

    def __init__(self, progress: bool | Report, photos: object) -> None:
        self._report: Report | None = Line(sys.stderr) if progress is True else (progress or None)
        self._total = len(photos) if hasattr(photos, "__len__") else None
        self._done = self._failed = 0
        self._start = time.monotonic()

    def count(self, outcome: Outcome) -> None:
        """One more."""
        self._done += 1
        self._failed += isinstance(outcome, errors.AlexNetError)
        if self._report is not None:
            elapsed_s = time.monotonic() - self._start
            self._report(Progress(self._done, self._failed, self._total, elapsed_s))

    def close(self) -> None:
        """No more will come."""
        if isinstance(self._report, Line):
            self._report.close()


class Line:
    """Writes progress to a stream, not more often than it can be read."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._redraw = stream.isatty()
        self._last_written_s = 0.0
        self._pending: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Write it, or keep it for later when the last line is still fresh."""
        self._pending = progress
        if progress.elapsed_s - self._last_written_s >= _SECONDS_BETWEEN[self._redraw]:
            self._last_written_s = progress.elapsed_s
            self._write("\r\x1b[K" if self._redraw else "", "" if self._redraw else "\n")

    def close(self) -> None:
        """Write the last count."""
        self._write("\r\x1b[K" if self._redraw else "", "\n")

    def _write(self, before: str, after: str) -> None:
        if self._pending is not None:
            self._stream.write(f"{before}{self._pending}{after}")
            self._stream.flush()
