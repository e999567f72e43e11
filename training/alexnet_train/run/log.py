"""The JSONL log of a run, one record a line, which curves are drawn from."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexnet_train.run.schedule import Rates


def append(path: Path, record: Mapping[str, object]) -> None:
    """Add one record; a run that is killed loses at most the line it was writing.

    Raises:
        LogError: it cannot be written.
    """
    try:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise LogError(
            f"{path}: cannot be written ({error.strerror}); free some space and run it again, and it resumes"
        ) from error


class Log:
    """Appends to ``folder/log.jsonl``, and to TensorBoard where that is asked for.

    Args:
        folder: the run's folder.
        leads: False makes every call do nothing.
        header: the first line of this (part of the) run; ``step`` is where it begins.
        tensorboard: also write event files to ``folder/tensorboard`` (needs the tensorboard package).
    """

    def __init__(self, folder: Path, leads: bool, header: dict[str, Any], tensorboard: bool = False) -> None:
        self.began = time.monotonic()
        self.since = int(header["step"])
        self.path = folder / "log.jsonl" if leads else None
        self.board = _board(folder / "tensorboard") if leads and tensorboard else None
        self.write(header)

    def interval(self, done: int, loss: float, rates: Rates, images: int) -> dict[str, object]:
        """The line of an interval that ends after ``done`` updates of ``images`` images."""
        now = time.monotonic()
        updates, seconds = done - self.since, now - self.began
        self.since, self.began = done, now
        return {
            "step": done,
            "loss": round(loss / updates, 4),
            "rate": rates.weights,
            "images_per_s": round(updates * images / seconds, 1),
        }

    def write(self, record: Mapping[str, object]) -> None:
        """Append one line, unless it is empty."""
        if self.path is None or not record:
            return
        append(self.path, record)
        if self.board is not None:
            for name, value in record.items():
                if isinstance(value, int | float) and name != "step":
                    self.board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Close TensorBoard's files."""
        if self.board is not None:
            self.board.close()


def _board(folder: Path) -> Any:
    """TensorBoard's writer.

    Raises:
        LogError: the tensorboard package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise LogError("--tensorboard needs the package: pip install tensorboard") from error
    return SummaryWriter(folder)


class LogError(RuntimeError):
    """A log that cannot be written or read; the message says what to do."""


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that was cut short is left out.

    Raises:
        LogError: there is no such log, or a line inside it is broken.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise LogError(f"{path}: {error}; give the folder of a run") from error
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise LogError(f"{path}:{number}: not JSON; delete the line") from error
    return records
