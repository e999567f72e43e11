"""HTTP/1.1 on one connection: uvicorn's protocol over httptools, with bounds and without surprises.

uvicorn bounds neither headers nor the wait for them, loses the body of a request with an `Upgrade` header,
appends trailers to the headers, and closes a connection with data unread, whereupon the kernel may throw away
the answer with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import httptools
from starlette.responses import Response
from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from alexnet_server.errors import InvalidRequest, ServingError, Unavailable
from alexnet_server.http.pieces import Flow, Pieces, Turns
from alexnet_server.http.problems import problem

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 2**10
"""Request line, headers and trailers of one request."""
MAX_FIELDS = 100
_DROP_LIMIT_S = 10.0
_DROP_LIMIT_BYTES = 2**20
"""Behind what is no request; behind one that is, as much as a body may have."""
_TCP_CLOSE = 7
"""The state, first byte of Linux's `TCP_INFO`, of a connection that the other side has reset."""

_HTTP2 = b"PRI * HTTP/2.0"
"""What every client of HTTP/2 without TLS says first, gRPC's too."""


@dataclass(eq=False)
class Connections:
    """The connections of the HTTP port, up to a limit.

    Args:
        limit: Above it the one that has waited longest for a request is closed in favour of the new one.
        drop_bytes: How much of a body is read and dropped behind the answer that refuses it.
        refusal: The answer to a request (its ASGI scope) that needs no application; None where it does.
    """

    limit: int
    drop_bytes: int
    refusal: Callable[[Scope], Response | None]
    waiting: dict[Protocol, None] = field(default_factory=dict)
    """Those between two requests, or before their first; the longest first."""
    turns: Turns = field(default_factory=Turns)
    """Of those that upload."""
    told_of_grpc: bool = False
    """Once is enough; such clients come back again and again."""


class Protocol(HttpToolsProtocol):
    """One connection; see the module's text.

    Args:
        config: uvicorn's.
        server_state: uvicorn's.
        door: The other connections.
    """

    head_limit_s: ClassVar[float] = 10.0
    """Longest wait for the first headers, or from the first byte of later ones to their end."""

    def __init__(self, config: Config, server_state: ServerState, door: Connections) -> None:
        super().__init__(config, server_state, {})
        self._door = door
        self._in_body = False
        self._upgrade = False  # the parser is about to stop, since the client offers another protocol
        self._last = False  # nothing that follows the present request is one
        self._extra = False  # something has followed it
        self._eof = False
        self._head_bytes = self._fields = self._hosts = 0
        self._unparsed = 0  # bytes since the parser got anywhere
        self._refusal: tuple[int, ServingError] | None = None
        self._may_refuse = False  # the request whose headers are just complete is the next to be answered
        self._refused = b""  # what it is answered then
        self._drop_bytes: int | None = None  # once the answer is out: how much more is read and dropped
        self._timer: asyncio.TimerHandle | None = None

    # -- asyncio -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self.flow = Flow(transport, self._door.turns)
        self._timer = self.loop.call_later(self.head_limit_s, self._too_slow)
        if len(self.connections) > self._door.limit:
            oldest = next(iter(self._door.waiting), None)
            if oldest is None:
                self._refuse(503, Unavailable("Too many connections are open; try again later."))
                return
            oldest.transport.abort()
            oldest.gone()
        self._door.waiting[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever is answering, and let go."""
        self._stop_timer()
        self.gone()
        for cycle in (self.cycle, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None:
                cycle.disconnected = cycle.disconnected or not cycle.response_complete
                cycle.transport = self.transport  # instead of this object, which refers to it
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer a client that has sent all it will, and waits; close on others."""
        self._eof = True
        answering = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if not answering or self.scheme == "https" or self._drop_bytes is not None or sys.platform != "linux":
            return None
        self.cycle.keep_alive = False
        # A client that has left looks the same, until something is sent to it: then its kernel resets.
        if not (self.pipeline or self.cycle.response_started) and self.cycle.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._watch(0.004)
        return True

    def data_received(self, data: bytes) -> None:
        """Parse, or drop."""
        self._unset_keepalive_if_required()
        if self._drop_bytes is not None:
            self._drop_bytes -= len(data)
            if self._drop_bytes < 0:
                self.transport.close()
            return
        view = memoryview(data)
        for start in range(0, len(data), MAX_HEAD_BYTES):
            if self._last and not self._in_body:
                self._extra = True
                return
            try:
                self._feed(view[start : start + MAX_HEAD_BYTES])
            except httptools.HttpParserError:
                if data.startswith(_HTTP2) and not self._door.told_of_grpc:
                    self._door.told_of_grpc = True
                    log.warning(
                        "a gRPC client has connected to the HTTP port; it must use the one of --grpc-port"
                    )
                known = self._refusal or (400, InvalidRequest("This is not a valid HTTP request."))
                self._refuse(*known)
                return
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._timer is None and self.timeout_keep_alive_task is None:
            self._timer = self.loop.call_later(self.head_limit_s, self._too_slow)

    # -- httptools ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request line has begun."""
        self._head_bytes = self._fields = self._hosts = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or a trailer, which is counted and dropped: it came after the key was asked for."""
        self._fields += 1
        self._count(len(name) + len(value) + 4)
        if not self._in_body:
            self._hosts += name.lower() == b"host"
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Answer the request while its body arrives."""
        version = self.parser.get_http_version()
        if self._hosts > 1 or (self._hosts == 0 and version == "1.1"):
            how = "no `Host` header" if self._hosts == 0 else "more than one `Host` header"
            self._stop(400, f"The request has {how}; HTTP/1.1 requires exactly one.")
        self._upgrade = self.parser.should_upgrade()
        self._may_refuse = not self._upgrade and self.parser.should_keep_alive()
        super().on_headers_complete()
        self._may_refuse = False
        self.cycle.transport = _Answering(self)  # type: ignore[assignment]
        self._stop_timer()
        self.gone()
        self._unparsed = 0
        self._in_body = True
        if self._refused:
            self.transport.write(self._refused)
            self._refused = b""
            self.on_response_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._unparsed = 0
        if not self.cycle.body:
            self.cycle.body = Pieces()  # type: ignore[assignment]
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has ended, unless the parser only wants to make way for another protocol."""
        if self._upgrade:
            return
        self._unparsed = 0
        self._in_body = False
        super().on_message_complete()
        if self.cycle.response_complete:  # long ago: what was left of its body has been dropped
            self._stop_timer()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """Go on to the next request, or wait for it."""
        if self._drop_bytes is not None:
            return
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete:
            self._door.waiting[self] = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Have a request answered: at once where it is refused whatever its body says, else by the app."""
        response = self._door.refusal(cast("Scope", cycle.scope)) if self._may_refuse else None
        if response is None:
            super()._start_asgi_task(cycle, app)
            return
        cycle.response_started = cycle.response_complete = True
        headers = [*self.server_state.default_headers, *response.raw_headers]
        head = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        self._refused = b"%b%b\r\n%b" % (STATUS_LINE[response.status_code], head, bytes(response.body))

    # -- our own -----------------------------------------------------------------------------------------

    def gone(self) -> None:
        """No longer waiting for a request."""
        self._door.waiting.pop(self, None)

    def close_answered(self) -> None:
        """Close after an answer; a client that still sends is first given time to read it."""
        if (self._in_body or self._extra) and not self._eof and not self.transport.is_closing():
            self._linger(_DROP_LIMIT_S, self._door.drop_bytes)
        else:
            self.transport.close()

    def _feed(self, piece: memoryview) -> None:
        before = self._unparsed = self._unparsed + len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as stopped:
            self._read_framed(piece[stopped.args[0] :])
        if before == self._unparsed > MAX_HEAD_BYTES:
            self._stop_head()

    def _read_framed(self, rest: memoryview) -> None:
        """Read the body of a request that offers another protocol, as its own headers frame it.

        We speak no other, so the offer means nothing (RFC 9110, 7.8). But no request may follow: whoever
        stands between might take what comes for that protocol, and us for tricked.
        """
        self._upgrade, self._last = False, True
        self.cycle.keep_alive = False
        framing = [b"POST / HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name in (b"content-length", b"transfer-encoding"):
                framing += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(_Framed(self))
        self.parser.feed_data(b"".join(framing) + b"\r\n")
        if self._in_body and rest:
            self.parser.feed_data(rest)
        elif rest:
            self._extra = True

    def _count(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > MAX_HEAD_BYTES or self._fields > MAX_FIELDS:
            self._stop_head()

    def _stop_head(self) -> None:
        self._stop(
            431,
            f"A request may have {MAX_FIELDS} headers, and {MAX_HEAD_BYTES // 1024} KiB of URL and headers.",
        )

    def _stop(self, status: int, message: str) -> None:
        """End parsing, with this answer; HttpParserError."""
        self._refusal = (status, InvalidRequest(message))
        raise httptools.HttpParserError(message)

    def _refuse(self, status: int, error: ServingError) -> None:
        """Answer what is not a request, and close; but first let the requests before it finish."""
        cycle, answered = self.cycle, self._in_body and self.cycle.response_complete
        self._last, self._in_body = True, False
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False
                self._extra = True
                return
            cycle.disconnected = True
            cycle.message_event.set()
            answered = cycle.response_started or bool(self.pipeline)
        if answered:
            self.transport.close()
            return
        document = json.dumps({**problem(error), "status": status}).encode()
        head = b"content-type: application/problem+json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head % len(document) + document)
        self._linger(_DROP_LIMIT_S / 5, _DROP_LIMIT_BYTES)

    def _linger(self, seconds: float, count: int) -> None:
        """Say that no more will come, and read and drop what does, within bounds."""
        self._stop_timer()
        self._drop_bytes = count
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(seconds, self.transport.close)

    def _too_slow(self) -> None:
        if self._unparsed and not self._in_body:
            error = InvalidRequest(f"The headers did not arrive within {self.head_limit_s:g} seconds.")
            self._refuse(408, error)
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self, wait_s: float) -> None:
        """Cancel the work for a client that has sent all and then turned out to have left."""
        self._timer = None
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        connection: Any = self.transport.get_extra_info("socket")
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(wait_s, self._watch, min(0.25, 2 * wait_s))


class _Answering:
    """The transport as a response knows it, which closes it when it is the last."""

    def __init__(self, protocol: Protocol) -> None:
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing
        self.close = protocol.close_answered


class _Framed:
    """Gives the body behind a head of our own to the connection; httptools calls it."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._in_body = False

    def on_headers_complete(self) -> None:
        self._in_body = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            self._protocol.on_header(name, value)

    def on_body(self, body: bytes) -> None:
        if self._in_body:
            self._protocol.on_body(body)

    def on_message_complete(self) -> None:
        if self._in_body:
            self._in_body = False
            self._protocol.on_message_complete()

    def on_message_begin(self) -> None:
        if not self._protocol._in_body:  # of what follows the one request
            raise httptools.HttpParserError
