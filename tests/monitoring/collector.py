"""A stand-in for an OpenTelemetry collector: receives spans over OTLP/gRPC and keeps them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(TraceServiceServicer):
    """`spans` holds what has come, `resources` who sent it."""

    def __init__(self) -> None:
        self.port = 0
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self._came = threading.Condition()

    def Export(self, request: Any, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        with self._came:
            for resource in request.resource_spans:
                self.resources.append({a.key: a.value.string_value for a in resource.resource.attributes})
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            self._came.notify_all()
        return ExportTraceServiceResponse()

    def trace(self, trace_id: str, spans: int, timeout_s: float = 30) -> list[Span]:
        """The spans of a trace, once there are so many, by their beginnings."""
        until = time.monotonic() + timeout_s
        with self._came:
            while len(found := [s for s in self.spans if s.trace_id.hex() == trace_id]) < spans:
                assert self._came.wait(until - time.monotonic()), f"{len(found)} of {spans} spans came"
        return sorted(found, key=lambda span: span.start_time_unix_nano)


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    add_TraceServiceServicer_to_server(collector, server)
    collector.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector
    server.stop(None).wait()
