"""The HTTP server process side: uvicorn on our sockets, started and stopped by `main`."""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from alexnet_server.errors import StartError
from alexnet_server.settings import Settings


class HttpDoor(uvicorn.Server):
    """A uvicorn server that leaves signals to `main`.

    Args:
        app: What answers.
        settings: TLS files and timeouts.

    Raises:
        StartError: The certificate or its key cannot be used.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=math.ceil(settings.http_keepalive_s),
            timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout_s),
            ssl_certfile=settings.tls_cert_file,
            ssl_keyfile=str(settings.tls_key_file) if settings.tls_key_file else None,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise StartError(
                f"--tls-cert-file {settings.tls_cert_file}, --tls-key-file {settings.tls_key_file}: "
                f"{_tls_problem(error)}"
            ) from error
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: a signal means draining first, which is not this door's decision alone."""
        yield

    def stop(self) -> None:
        """Close the listeners and let what is in flight finish; `serve` returns when it has."""
        self.should_exit = True


def _tls_problem(error: OSError) -> str:
    """In words; OpenSSL's own are `[SSL] PEM lib` and the like."""
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key is not the certificate's; give the pair that was issued together"
    return f"not a certificate and its unencrypted key in PEM format ({error.reason or error})"


def addresses(sockets: list[socket.socket], scheme: str) -> str:
    """Sockets in words, `http://127.0.0.1:8080`."""
    names = []
    for listener in sockets:
        host, port = listener.getsockname()[:2]
        names.append(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")
    return ", ".join(names)
