"""Listening sockets, bound before anything slow is done, so that a port in use is reported at once."""

from __future__ import annotations

import errno
import socket

from alexnet_server.errors import StartError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_BACKLOG = 2048
_OTHER_FILES = 128
"""Descriptors that are no connections: models, threads' pipes, logs."""
_SELECTED = 512
"""Sockets that Windows' `select` can watch."""
_ALONE = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
"""Bind over the leftovers of closed connections, but not beside a server; Windows has another word for it."""


def affordable(connections: int) -> int:
    """How many of the wanted `connections` a port may have, given the process's limit on open files.

    The soft limit is raised as far as the hard one allows; the two ports share it.
    """
    if resource is None:
        return min(connections, (_SELECTED - _OTHER_FILES) // 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + _OTHER_FILES
    if soft not in (resource.RLIM_INFINITY, -1) and soft < wanted:
        soft = wanted if hard in (resource.RLIM_INFINITY, -1) else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(connections, (soft - _OTHER_FILES) // 2))
    return connections


def listen(host: str, port: int, flag: str, *, shared: bool = False) -> list[socket.socket]:
    """Sockets on every address of `host`, all with one port.

    Args:
        host: A name or an address; `::` is all of both families, `0.0.0.0` all of IPv4.
        port: 0 picks a free one.
        flag: The setting that chooses the port, for the error's message.
        shared: The port is one that our parent has reserved, and other processes of its listen there too.

    Raises:
        StartError: The port is taken or not allowed, or `host` is no address of this machine.
    """
    sockets = _bind(host, port, flag, shared=shared)
    for opened in sockets:
        opened.listen(_BACKLOG)
    return sockets


def reserve(host: str, port: int, flag: str) -> list[socket.socket]:
    """As `listen`, without listening: the port is ours, and only our own processes may share it.

    Nobody else can bind it, whatever options they set, as long as these sockets are open: they were bound
    exclusively, and say only afterwards that others of this user may share the port if those say so too.
    """
    sockets = _bind(host, port, flag, shared=False)
    for opened in sockets:
        # This one is no leftover of a closed connection, over which a new server may bind.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return sockets


def _bind(host: str, port: int, flag: str, *, shared: bool) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartError(f"--host {host}: {error.strerror or error}") from error
    sockets: list[socket.socket] = []
    for family, address in dict.fromkeys((family, address[0]) for family, _, _, _, address in found):
        chosen = sockets[0].getsockname()[1] if sockets else port
        try:
            sockets.append(_bound(family, str(address), chosen, shared=shared))
        except OSError as error:
            if sockets and error.errno == errno.EADDRNOTAVAIL:  # such as ::1 where IPv6 is switched off
                continue
            for opened in sockets:
                opened.close()
            raise StartError(_in_words(error, host, chosen, flag)) from error
    return sockets


def _bound(family: int, address: str, port: int, *, shared: bool) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _ALONE, 1)
        if shared:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            both = address == "::" and socket.has_dualstack_ipv6()
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        opened.bind((address, port))
    except OSError:
        opened.close()
        raise
    return opened


def _in_words(error: OSError, host: str, port: int, flag: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use by another process; stop it or choose another with {flag}"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} may not be opened by this user; choose one above 1023 with {flag}"
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"--host {host} is not an address of this machine; "
            "127.0.0.1 is for this machine only, 0.0.0.0 for all its addresses"
        )
    return f"cannot listen on {host} port {port}: {error.strerror or error}"
