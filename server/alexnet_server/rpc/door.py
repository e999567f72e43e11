"""Opens and closes the gRPC port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

from alexnet_client.pb import classifier_pb2
from alexnet_client.pb.classifier_pb2_grpc import add_ClassifierServicer_to_server
from alexnet_server.access.keys import ApiKeys
from alexnet_server.access.tls import Certificate
from alexnet_server.call import Calls
from alexnet_server.errors import StartError
from alexnet_server.listening import affordable, listen
from alexnet_server.rpc.classifier import ClassifierRpc
from alexnet_server.rpc.guard import Guard
from alexnet_server.rpc.health import Health
from alexnet_server.rpc.oip import InferenceRpc
from alexnet_server.rpc.reflection import add_reflection
from alexnet_server.service import Classifier
from alexnet_server.settings import Settings

_CLASSIFIER: str = classifier_pb2.DESCRIPTOR.services_by_name["Classifier"].full_name
_INFERENCE: str = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_HEALTH: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_ABOVE_OUR_LIMIT = 1.25
"""What is a little too large gets our own answer and its code; the rest gRPC's, RESOURCE_EXHAUSTED."""
_AHEAD_BYTES = 2**18
"""Of each call, sent before it is read: most photos, so that they need not wait for leave to be sent."""
_FASTEST_PINGS_S = 5
_HANDSHAKE_S = 10
"""From a connection's opening to HTTP/2's first frames, TLS included."""


class GrpcDoor:
    """One server on the running event loop.

    Args:
        classifier: What answers.
        settings: Host, port, limits.
        keys: Who may call.
        certificate: For TLS; plain text without one.
    """

    def __init__(
        self,
        classifier: Classifier,
        settings: Settings,
        keys: ApiKeys,
        certificate: Certificate | None = None,
    ) -> None:
        self.port = 0
        """The port it listens on, once opened."""
        self._settings = settings
        self._certificate = certificate
        self._closing = asyncio.Event()
        self._aborting: asyncio.Future[None] | None = None
        calls = Calls("grpc", classifier.metrics, access_log=settings.access_log)
        guard = Guard(keys, calls, classifier.bodies, settings.request_timeout_s)
        self._server = grpc.aio.server(interceptors=(guard,), options=_options(settings))
        servicer = ClassifierRpc(
            classifier,
            calls,
            queue_size=settings.queue_size,
            stream_age_s=settings.grpc_max_connection_age_s,
            closing=self._closing,
        )
        add_ClassifierServicer_to_server(servicer, self._server)
        add_GRPCInferenceServiceServicer_to_server(InferenceRpc(classifier, calls, settings), self._server)
        add_HealthServicer_to_server(
            Health(classifier, (_CLASSIFIER, _INFERENCE), self._closing), self._server
        )
        add_reflection((_CLASSIFIER, _INFERENCE, _HEALTH), self._server)

    @property
    def address(self) -> str:
        """Where it listens, in words."""
        scheme = "grpc" if self._certificate is None else "grpcs"
        return f"{scheme}://{_bracketed(self._settings.host)}:{self.port}"

    async def open(self) -> None:
        """Listen.

        Raises:
            StartError: the port is taken.
        """
        # A port in use is reported in our own words: gRPC adds a line of its own to stderr.
        shared = self._settings.workers > 1
        for free in listen(self._settings.host, self._settings.grpc_port, "--grpc-port", shared=shared):
            free.close()
        with _no_ipv6(self._settings) as address:
            self._listen(address)
        await self._server.start()

    def _listen(self, address: str) -> None:
        try:
            if self._certificate is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, self._certificate.grpc_credentials())
        except RuntimeError:
            raise StartError(
                f"cannot listen on {address} (gRPC): the port is in use or the address is not this "
                "machine's; choose another with --grpc-port or --host"
            ) from None

    async def close(self, grace_s: float) -> None:
        """Take no new calls, end streams once what they sent is answered, and wait for the rest.

        Args:
            grace_s: Longest wait; calls that still run then are cancelled.
        """
        self._closing.set()
        await self._server.stop(grace_s)

    def abort(self) -> None:
        """Cancel what still runs, while `close` waits for it."""
        self._aborting = asyncio.ensure_future(self._server.stop(None))


@contextmanager
def _no_ipv6(settings: Settings) -> Iterator[str]:
    """The address to give to gRPC, for which `0.0.0.0` would be all of IPv6 too, unless that is taken."""
    host, port = settings.host, settings.grpc_port
    if host != "0.0.0.0":
        yield f"{_bracketed(host)}:{port}"
        return
    with socket.socket(socket.AF_INET) as free:
        free.bind((host, port))
        port = free.getsockname()[1]
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # no IPv6 here, or taken by others already
            blocker = held.enter_context(socket.socket(socket.AF_INET6))
            blocker.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            blocker.bind(("::", port))
        yield f"{host}:{port}"


def _options(settings: Settings) -> list[tuple[str, Any]]:
    # A stream lives as long as a connection; one opened on an old connection must still reach its end.
    grace_s = settings.grpc_max_connection_age_s + settings.request_timeout_s
    return [
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.max_allowed_incoming_connections", affordable(settings.max_connections)),
        ("grpc.server_handshake_timeout_ms", _ms(_HANDSHAKE_S)),
        ("grpc.max_receive_message_length", min(2**31 - 1, int(settings.max_body_bytes * _ABOVE_OUR_LIMIT))),
        ("grpc.max_send_message_length", -1),
        # By itself gRPC lets a client send megabytes ahead that nobody has asked for, if the line is fast.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _AHEAD_BYTES),
        # 60 kB may unpack to 60 MB, and nobody knows before they are in memory: only identity, or everything.
        ("grpc.compression_enabled_algorithms_bitset", 0b111 if settings.grpc_compression else 0b1),
        ("grpc.max_connection_age_ms", _ms(settings.grpc_max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", _ms(grace_s)),
        ("grpc.keepalive_time_ms", _ms(settings.grpc_keepalive_s)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(_FASTEST_PINGS_S)),
    ]


def _ms(seconds: float) -> int:
    return min(2**31 - 1, round(seconds * 1000))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
