"""OpenTelemetry traces: a span for the door, and inside it decode, queue and engine.

Off unless the standard variables name a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`); that needs the extra
`otel`. When off, a request costs a test of a global. The W3C context comes in with the request's headers and
goes out to Triton. Probes and scrapes are not traced.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

from alexnet_server.errors import StartError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_QUIET_PATHS = ("/livez", "/readyz", "/metrics")
_QUIET_SERVICES = ("/grpc.health.v1.Health/", "/inference.GRPCInferenceService/Server")
_OURS = ("internal", "unavailable", "overloaded", "deadline_exceeded")
"""Codes of failures that are ours rather than the caller's."""
_tracer: Tracer | None = None
_provider: TracerProvider | None = None


def configure(environ: Mapping[str, str] = os.environ) -> None:
    """Send traces to the collector that the standard `OTEL_...` variables name; do nothing without one.

    Raises:
        StartError: A collector is named without OpenTelemetry, or another protocol is asked for.
    """
    global _tracer, _provider
    endpoint = next((environ[name] for name in _ENDPOINTS if environ.get(name)), None)
    disabled = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if endpoint is None or disabled or environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return
    protocol = environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    )
    if protocol != "grpc":
        raise StartError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; traces are sent over grpc alone")
    if importlib.util.find_spec("opentelemetry.sdk") is None:
        raise StartError(f"traces are wanted ({endpoint}) without OpenTelemetry: pip install 'alexnet[otel]'")
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    release = version("alexnet")
    name = environ.get("OTEL_SERVICE_NAME", "alexnet")
    _provider = TracerProvider(resource=Resource.create({"service.name": name, "service.version": release}))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("alexnet_server", release)


def close() -> None:
    """Send what has not been sent, and stop."""
    global _tracer, _provider
    if _provider is not None:
        _provider.shutdown()
    _tracer = _provider = None


class Door(Protocol):
    """The span of a request."""

    def end(self, status: int | str, code: str, route: str | None = None) -> None:
        """Note how it was answered.

        Args:
            status: The HTTP status, or the name of the gRPC status.
            code: `ok`, `cancelled`, or one of the error table.
            route: What kind of request it was, where the caller's path does not say.
        """


class _NoDoor:
    def end(self, status: int | str, code: str, route: str | None = None) -> None:
        pass


class _SpanDoor:
    def __init__(self, span: Span, status_attribute: str, method: str = "") -> None:
        self._span = span
        self._status_attribute = status_attribute
        self._method = method

    def end(self, status: int | str, code: str, route: str | None = None) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute(self._status_attribute, status)
        self._span.set_attribute("alexnet.code", code)
        if route is not None:
            self._span.set_attribute("http.route", route)
            self._span.update_name(f"{self._method} {route}")
        if code in _OURS:
            self._span.set_status(Status(StatusCode.ERROR, code))


_NO_DOOR = _NoDoor()


@contextmanager
def http(method: str, path: str, headers: Iterable[tuple[bytes, bytes]], request_id: str) -> Iterator[Door]:
    """The span of one HTTP request, child of its `traceparent`."""
    if _tracer is None or path in _QUIET_PATHS:
        yield _NO_DOOR
        return
    carrier = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
    attributes = {"http.request.method": method, "url.path": path, "alexnet.request_id": request_id}
    # Named by its method until the route is known: paths are the caller's, and there is no end of them.
    with _server_span(_tracer, method, carrier, attributes) as span:
        yield _SpanDoor(span, "http.response.status_code", method)


@contextmanager
def grpc(method: str, metadata: Iterable[tuple[str, str | bytes]], request_id: str) -> Iterator[Door]:
    """The span of one gRPC call, `/package.Service/Method`, child of its `traceparent`."""
    if _tracer is None or method.startswith(_QUIET_SERVICES):
        yield _NO_DOOR
        return
    carrier = {name: value for name, value in metadata if isinstance(value, str)}
    service, _, name = method.strip("/").rpartition("/")
    attributes = {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": name,
        "alexnet.request_id": request_id,
    }
    with _server_span(_tracer, method.strip("/"), carrier, attributes) as span:
        yield _SpanDoor(span, "rpc.grpc.status")


@contextmanager
def _server_span(
    tracer: Tracer, name: str, carrier: Mapping[str, str], attributes: Mapping[str, str]
) -> Iterator[Span]:
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind

    with tracer.start_as_current_span(
        name,
        context=extract(carrier),
        kind=SpanKind.SERVER,
        attributes=attributes,
        record_exception=False,  # the error table's code says it, without a traceback
        set_status_on_exception=False,
    ) as span:
        yield span


def stages(model: str, marks: Iterable[tuple[str, float, float]]) -> None:
    """Spans of one photo inside the current request.

    Args:
        model: Name of the model.
        marks: Name, begin and end of each stage, in `time.monotonic` seconds.
    """
    if _tracer is None:
        return
    wall_ns = time.time_ns() - time.monotonic_ns()
    for name, began_at, ended_at in marks:
        span = _tracer.start_span(
            name, start_time=wall_ns + int(began_at * 1e9), attributes={"alexnet.model": model}
        )
        span.end(wall_ns + int(ended_at * 1e9))


def outgoing() -> tuple[tuple[str, str], ...]:
    """The current W3C context as gRPC metadata; empty when there is none."""
    if _tracer is None:
        return ()
    from opentelemetry.propagate import inject

    carrier: dict[str, str] = {}
    inject(carrier)
    return tuple(carrier.items())


def trace_id() -> str | None:
    """Of the current request, 32 hexadecimal digits; None when it is not traced."""
    if _tracer is None:
        return None
    from opentelemetry.trace import format_trace_id, get_current_span

    context = get_current_span().get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else None
