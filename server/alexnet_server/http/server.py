"""The HTTP server process side: uvicorn on our sockets, started and stopped by `main`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from alexnet_server.access.tls import Certificate
from alexnet_server.http.protocol import Connections, Protocol
from alexnet_server.listening import affordable
from alexnet_server.settings import Settings


class HttpDoor(uvicorn.Server):
    """A uvicorn server that leaves signals to `main`.

    Args:
        app: What answers.
        settings: Timeouts.
        certificate: For TLS; plain text without one.
    """

    def __init__(self, app: ASGIApp, settings: Settings, certificate: Certificate | None = None) -> None:
        self._connections = Connections(affordable(settings.max_connections), settings.max_body_bytes)
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; uvicorn's own leaves a TLS handshake a minute, and knows no `Protocol` with arguments."""
        loop = asyncio.get_running_loop()
        handshake_s = Protocol.head_limit_s if self.config.ssl else None
        self.servers = [
            await loop.create_server(
                partial(Protocol, self.config, self.server_state, self._connections),
                sock=listener,
                ssl=self.config.ssl,
                backlog=self.config.backlog,
                ssl_handshake_timeout=handshake_s,
            )
            for listener in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: a signal means draining first, which is not this door's decision alone."""
        yield

    def stop(self) -> None:
        """Close the listeners and let what is in flight finish; `serve` returns when it has."""
        self.should_exit = True


def addresses(sockets: list[socket.socket], scheme: str) -> str:
    """Sockets in words, `http://127.0.0.1:8080`."""
    names = []
    for listener in sockets:
        host, port = listener.getsockname()[:2]
        names.append(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")
    return ", ".join(names)
