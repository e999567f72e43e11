"""The HTTP server process side: uvicorn on our sockets, started and stopped by `main`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn

from alexnet_server.access.tls import Certificate
from alexnet_server.http.app import CallMiddleware
from alexnet_server.http.protocol import Connections, Protocol
from alexnet_server.listening import affordable
from alexnet_server.settings import Settings

log = logging.getLogger(__name__)

_ACCEPTS = 100
"""Connections accepted before others have their turn: some 10 ms."""
_REST_S = 1.0
"""How long none is accepted where there are no descriptors left."""


class HttpDoor(uvicorn.Server):
    """A uvicorn server that leaves signals to `main`.

    Args:
        app: What answers.
        settings: Timeouts.
        certificate: For TLS; plain text without one.
    """

    def __init__(
        self, app: CallMiddleware, settings: Settings, certificate: Certificate | None = None
    ) -> None:
        self._connections = Connections(
            affordable(settings.max_connections), settings.max_body_bytes, app.refusal
        )
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=math.ceil(settings.http_keepalive_s),
            timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout_s),
            ssl_context_factory=None if certificate is None else lambda *_: certificate.context(),
        )
        config.load()
        super().__init__(config)
        self.servers = []  # uvicorn's own, which take connections one at a time
        self._listeners: list[Listener] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; uvicorn's own leaves a TLS handshake a minute, and knows no `Protocol` with arguments."""
        protocol = partial(Protocol, self.config, self.server_state, self._connections)
        self._listeners = [Listener(listener, protocol, self.config.ssl) for listener in sockets or ()]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and let those there are finish."""
        for listener in self._listeners:
            listener.close()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: a signal means draining first, which `main` decides for both ports."""
        yield

    def stop(self) -> None:
        """Close the listeners and let what is in flight finish; `serve` returns when it has."""
        self.should_exit = True


class Listener:
    """Accepts all connections that have come, each time the event loop looks.

    uvloop's own server takes one each time (libuv does): thirty a second with a few hundred busy connections,
    while new ones, a probe of `/livez` among them, wait for half a minute.

    Args:
        listening: The socket, which stays the caller's to close.
        protocol: Makes the protocol of a connection.
        tls: For TLS.
    """

    def __init__(
        self, listening: socket.socket, protocol: Callable[[], Protocol], tls: ssl.SSLContext | None
    ) -> None:
        self._listening = listening
        self._protocol = protocol
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._rest: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Accept no more; handshakes that are under way end as they may."""
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._listening)

    def _listen(self) -> None:
        self._rest = None
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors or memory: the loop would come back here at once, and for nothing else.
                log.warning("cannot accept connections for %g s: %s", _REST_S, error.strerror)
                self._loop.remove_reader(self._listening)
                self._rest = self._loop.call_later(_REST_S, self._listen)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        handshake_s = None if self._tls is None else Protocol.head_limit_s
        try:
            await self._loop.connect_accepted_socket(
                self._protocol, connection, ssl=self._tls, ssl_handshake_timeout=handshake_s
            )
        except OSError:  # no TLS, a TLS that we do not speak, or none in time
            connection.close()


def addresses(sockets: list[socket.socket], scheme: str) -> str:
    """Sockets in words, `http://127.0.0.1:8080`."""
    names = []
    for listener in sockets:
        host, port = listener.getsockname()[:2]
        names.append(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")
    return ", ".join(names)
