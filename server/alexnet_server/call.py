"""One call over either protocol: its id and times, its line in metrics, log and trace."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from alexnet_server.errors import TABLE
from alexnet_server.telemetry import logs, tracing
from alexnet_server.telemetry.metrics import CallKind, Metrics

log = logging.getLogger(__name__)

_OURS = frozenset(code for code, row in TABLE.items() if row.http_status >= 500)
"""Codes of failures that are logged: ours rather than the caller's."""
_KIND_HEADER = "x-alexnet-call"
"""`batch`: one of many photos that the caller sent at once, as `classify_many` does."""
_GOOD_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class Call:
    """A request over HTTP, a call over gRPC, or one photo of a stream."""

    name: str
    """What was asked: `POST /classify`, `/alexnet.v1.Classifier/Classify`."""
    request_id: str
    started_at: float = field(default_factory=time.monotonic)
    """`time.monotonic` seconds."""
    model: str = ""
    """Name of the model that was asked, for the metrics."""
    kind: CallKind = "unary"
    """For the metrics: only single photos say how fast the service is."""
    code: str = "ok"
    """`ok`, `cancelled`, or one of the error table."""
    status: int | str = ""
    """The HTTP status, or the name of the gRPC status."""
    stages: tuple[tuple[str, float], ...] = ()
    """Names and seconds for `Server-Timing`."""
    span_name: str = ""
    """In the trace: the kind of request, of which there are few."""
    attributes: dict[str, str | int] = field(default_factory=dict)
    """What the trace says of it, besides its id and its code."""
    message_bytes: int = 0
    """gRPC: length of the message received last; asking the parsed one would write it out again to count."""
    close: bool = False
    """HTTP: the connection cannot be used again, since part of the request's body is still to come."""

    def server_timing(self) -> str:
        """The value of `Server-Timing` as of now."""
        total = ("total", time.monotonic() - self.started_at)
        return ", ".join(f"{name};dur={seconds * 1e3:.2f}" for name, seconds in (*self.stages, total))

    def http_headers(self) -> list[tuple[bytes, bytes]]:
        """`X-Request-Id` and `Server-Timing`, which every answer over HTTP has."""
        return [
            (b"x-request-id", self.request_id.encode()),
            (b"server-timing", self.server_timing().encode()),
        ]


current: ContextVar[Call] = ContextVar("call")
"""The call being answered: each has a task of its own."""


class Calls:
    """Opens the calls of one protocol, and accounts for them.

    Args:
        door: `http` or `grpc`.
        metrics: Where calls that were about a model, or failed, are counted.
        access_log: Log every call, not just the server's own failures.
    """

    def __init__(self, door: str, metrics: Metrics, *, access_log: bool = False) -> None:
        self._door = door
        self._metrics = metrics
        self._access_log = access_log

    @contextmanager
    def open(
        self, name: str, headers: Mapping[str, str], span_name: str, attributes: dict[str, str | int]
    ) -> Iterator[Call]:
        """A call from its headers to its answer, which sets its code and status.

        Args:
            name: As `Call.name`.
            headers: Names in lower case. An `x-request-id` that is printable and short is kept.
            span_name: As `Call.span_name`.
            attributes: As `Call.attributes`.
        """
        given = headers.get("x-request-id", "")
        # Unique, not secret: a system call for each would give up the interpreter to the decoders.
        request_id = given if _GOOD_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        call = Call(name, request_id, span_name=span_name, attributes=attributes)
        if headers.get(_KIND_HEADER) == "batch":
            call.kind = "batch"
        opened, named = current.set(call), logs.request_id.set(request_id)
        with tracing.door(name, span_name, headers) as span:
            try:
                yield call
            finally:
                told = {"alexnet.request_id": request_id, "alexnet.code": call.code}
                error = call.code if call.code in _OURS or call.code == "overloaded" else None
                tracing.tell(span, call.span_name, call.attributes | told, error)
                self.account(call)
                logs.request_id.reset(named)
                current.reset(opened)

    def account(self, call: Call) -> None:
        """Count a call that has been answered, and log it where it failed by our fault."""
        took_s = time.monotonic() - call.started_at
        if call.model or call.code != "ok":
            self._metrics.request(self._door, call.model, call.code, took_s, call.kind)
        ours = call.code in _OURS
        if self._access_log or ours:
            level = logging.WARNING if ours else logging.INFO
            log.log(level, "%s %s %s %.1f ms", call.name, call.status, call.code, took_s * 1e3)
