"""A value that comes from files, read again when they change: no restart for a renewal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from alexnet_server.errors import StartError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Reloaded(Generic[T]):
    """The value of files; where they are half written or wrong, the last good one stays.

    Args:
        what: Its name, for the log.
        files: Looked at whenever the value is asked for, from any thread.
        load: Reads them; StartError or OSError where they are wrong, also from here the first time.
    """

    def __init__(self, what: str, files: Sequence[Path], load: Callable[[], T]) -> None:
        self._what, self._files, self._load = what, files, load
        self._lock = threading.Lock()
        self._stamps = self._stamps_now()
        self._value = load()

    def get(self) -> T:
        """The newest good value."""
        with self._lock:
            stamps = self._stamps_now()
            if stamps != self._stamps:
                self._stamps = stamps
                try:
                    self._value = self._load()
                    log.info("now using the new %s", self._what)
                except (StartError, OSError) as error:
                    log.warning("the new %s cannot be used; keeping the old ones: %s", self._what, error)
            return self._value

    def _stamps_now(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(file) for file in self._files]


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        state = file.stat()
    except OSError:
        return None
    # The inode too: Kubernetes renews by swapping a link, and a copy may keep its times.
    return state.st_ino, state.st_mtime_ns, state.st_size
