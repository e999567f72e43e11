"""OpenTelemetry traces: a span for the request, and inside it decode, queue and engine.

Off unless the standard variables name a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`); that needs the extra
`otel`. When off, a request costs a test of a global. The W3C context comes in with the request's headers and
goes out to Triton. Probes and scrapes are not traced.

OpenTelemetry's own instrumentation of ASGI and gRPC would not do: its interceptor cannot wrap handlers that
write to the context, as streams do here; it records a traceback for every photo that is refused; and it knows
neither the error table's codes nor, before a request is answered, its route.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from alexnet_server.errors import StartError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_QUIET = re.compile(
    r"\S+ /(livez|readyz|healthz|ping|metrics)/?$"
    r"|/grpc\.health\.v1\.Health/|/inference\.GRPCInferenceService/Server"
)
"""Probes and scrapes."""
_tracer: Tracer | None = None
_provider: TracerProvider | None = None


def configure(environ: Mapping[str, str] = os.environ) -> None:
    """Send traces to the collector that the standard `OTEL_...` variables name; do nothing without one.

    Raises:
        StartError: A collector is named without OpenTelemetry.
    """
    global _tracer, _provider
    endpoint = next((environ[name] for name in _ENDPOINTS if environ.get(name)), None)
    disabled = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exporters = (environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")
    if endpoint is None or disabled or "otlp" not in [each.strip() for each in exporters]:
        return
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), "grpc")
    if protocol != "grpc":
        # Often set for every program of a cluster, few of which send traces.
        log.warning("no traces are sent: OTLP over %r is not supported, only over grpc", protocol[:40])
        return
    if importlib.util.find_spec("opentelemetry.sdk") is None:
        raise StartError(f"traces ({endpoint}) need OpenTelemetry: pip install '.[otel]'")
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    release = version("alexnet")
    name = environ.get("OTEL_SERVICE_NAME") or "alexnet"
    _provider = TracerProvider(resource=Resource.create({"service.name": name, "service.version": release}))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("alexnet_server", release)


def close() -> None:
    """Send what has not been sent, and stop."""
    global _tracer, _provider
    if _provider is not None:
        _provider.shutdown()
    _tracer = _provider = None


@contextmanager
def door(call: str, name: str, headers: Mapping[str, str]) -> Iterator[Span | None]:
    """The span of one call, child of its `traceparent`; None where it is not traced.

    Args:
        call: `POST /classify`, `/alexnet.v1.Classifier/Classify`.
        name: Of the span.
        headers: Names in lower case.
    """
    if _tracer is None or _QUIET.match(call):
        yield None
        return
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind

    with _tracer.start_as_current_span(
        name,
        context=extract(headers),
        kind=SpanKind.SERVER,
        record_exception=False,  # the error table's code says it, without a traceback
        set_status_on_exception=False,
    ) as span:
        yield span


def tell(span: Span | None, name: str, attributes: Mapping[str, str | int], error: str | None) -> None:
    """Note how a call was answered: the span's final name, attributes, and the code of a failure of ours."""
    if span is None:
        return
    from opentelemetry.trace import Status, StatusCode

    span.update_name(name)
    span.set_attributes(attributes)
    if error is not None:
        span.set_status(Status(StatusCode.ERROR, error))


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
