"""Where the server is: what an address may be, and what it means when nobody answers there."""

from __future__ import annotations

import os
import re
from typing import Any, Final

ADDRESS_VARIABLE: Final = "ALEXNET_CLIENT_ADDRESS"
DEFAULT: Final = "localhost:8081"

_HOST_AND_PORT: Final = re.compile(r"(?P<host>\[[0-9a-fA-F:.%\w]+\]|[^:/\s\[\]]+):(?P<port>\d{1,5})")
_OF_GRPC: Final = ("unix:", "unix-abstract:", "vsock:", "xds:", "passthrough:", "ipv4:", "ipv6:")
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
"""gRPC's own, in its order."""


def target(address: str | None) -> str:
    """What gRPC gets: the address, or the environment's, or this machine's default port.

    Raises:
        ValueError: it is a URL, or has no port.
    """
    address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT
    if address.startswith(_OF_GRPC):
        return address
    name = re.sub(r"^dns:(//[^/]*/)?", "", address)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        raise ValueError(
            f"{address!r} is a URL, but an address is host:port; the gRPC port is usually 8081 "
            "(for HTTP, use HttpClient)"
        )
    parts = _HOST_AND_PORT.fullmatch(name)
    if parts is None or not 1 <= int(parts["port"]) <= 65535:
        raise ValueError(
            f"{address!r} is not host:port, such as localhost:8081; the gRPC port is usually 8081"
        )
    return address


def options(address: str) -> list[tuple[str, Any]]:
    """Channel options that follow from the address: no proxy leads to this machine."""
    return [("grpc.enable_http_proxy", 0)] if _is_here(address) else []


def explained(details: str, address: str) -> str:
    """What to do about it where nobody was reached, from gRPC's reason; that itself where it is a new one."""
    if "http1.x" in details or "Failed parsing HTTP/2" in details:
        return f"{address} speaks HTTP, not gRPC; the gRPC port is usually 8081"
    if "Tls handshake failed" in details or "TSI_" in details:
        question = "does the server use TLS, and is its certificate authority trusted?"
        return f"TLS failed with {address} ({question}): {details}"
    proxy = next((name for name in _PROXY_VARIABLES if os.environ.get(name)), None)
    if proxy is not None and not _is_here(address) and "connect" in f"{details} proxy".lower():
        return f"{details} (through ${proxy}={os.environ[proxy]}; to bypass it, add the host to $no_proxy)"
    if "Connection refused" in details:
        start = (
            "; start one with alexnet-server" if _is_here(address) else "; is it running, and on this port?"
        )
        return f"no server at {address}{start}"
    return details


def _is_here(address: str) -> bool:
    return address.rpartition(":")[0].rpartition("/")[2] in _LOOPBACK
