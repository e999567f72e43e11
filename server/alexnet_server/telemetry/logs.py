"""Log lines, plain or JSON, each with the id of the request it belongs to."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar

from alexnet_server.telemetry import tracing

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request being answered; set by `http` and `rpc`."""

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    code: f"\\u{code:04x}" for code in (0x2028, 0x2029)
}
"""What ends a line or moves a terminal's cursor, as it is written: a path is the caller's."""
_IN_TRACEBACKS = {code: text for code, text in _CONTROL.items() if chr(code) not in "\n\t"}

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class _RequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        record.trace_id = tracing.trace_id()
        return True


def _utc(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"


class _Plain(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO alexnet_server.main: text [request id]`."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = record.message.translate(_CONTROL)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        text = f"{_utc(record)} {super().format(record)}".translate(_IN_TRACEBACKS)
        identity = getattr(record, "request_id", None)
        return f"{text} [{identity}]" if identity else text


class _Json(logging.Formatter):
    """One object per line; everything that a call passes as `extra` is a member."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {
            key: value for key, value in vars(record).items() if key not in _STANDARD and value is not None
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(level: str, form: str) -> None:
    """Send the root logger's lines to stderr.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        form: `plain` or `json`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Plain())
    handler.addFilter(_RequestId())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # One line for each upload that is cut off, and per-chunk chatter: our own lines say what matters.
    for name in ("uvicorn.error", "uvicorn.access", "python_multipart", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("python_multipart.multipart").setLevel(logging.ERROR)
