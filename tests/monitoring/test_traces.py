"""One request's trace, at a real OTLP receiver: door, decode, queue and engine, with times that add up."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable

import grpc
import httpx
import numpy as np
import pytest

from alexnet_client.pb import classifier_pb2
from alexnet_client.pb.classifier_pb2_grpc import ClassifierStub
from alexnet_server.engines.triton import TritonEngine
from alexnet_server.errors import StartError, Unavailable
from alexnet_server.telemetry import tracing
from tests.monitoring.collector import collecting
from tests.server.fakes import fake_model, photo
from tests.server.test_process import start

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
ENGINE_S = 0.05


def collector_variables(port: int) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "FAKE_SECONDS": str(ENGINE_S),
    }


def seconds(span: object) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9  # type: ignore[attr-defined]


async def test_a_request_over_http() -> None:
    with collecting() as collector:
        async with start(
            "--log-format=json", "--access-log", **collector_variables(collector.port)
        ) as server:
            await server.ready()
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "request-1"}
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
                answer = await client.post("/classify", content=photo(), headers=headers)
            assert answer.status_code == 200
            spans = await asyncio.to_thread(collector.trace, TRACE, 5)
    check_spans(spans, "POST /classify")
    door = next(span for span in spans if span.name == "POST /classify")
    attributes = {a.key: a.value.string_value or a.value.int_value for a in door.attributes}
    assert attributes["alexnet.request_id"] == "request-1"
    assert attributes["http.response.status_code"] == 200
    assert attributes["alexnet.code"] == "ok"
    assert collector.resources[0]["service.name"] == "alexnet"
    (line,) = [json.loads(line) for line in server.lines if "POST /classify" in line]
    assert (line["request_id"], line["trace_id"]) == ("request-1", TRACE)


async def test_a_call_over_grpc() -> None:
    with collecting() as collector:
        async with start(**collector_variables(collector.port)) as server:
            await server.ready()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
                call = ClassifierStub(channel).Classify(
                    classifier_pb2.ClassifyRequest(image=classifier_pb2.Image(encoded=photo())),
                    metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),),
                )
                assert len((await call).predictions) == 5
            spans = await asyncio.to_thread(collector.trace, TRACE, 5)
    check_spans(spans, "alexnet.v1.Classifier/Classify")


def check_spans(spans: list[object], name: str) -> None:
    """One door, and in it queue, decode, queue and engine, one after another and without gaps to speak of."""
    door, *stages = sorted(spans, key=lambda span: (span.name != name, span.start_time_unix_nano))
    assert door.name == name
    assert door.parent_span_id.hex() == PARENT
    assert [span.name for span in stages] == ["queue", "decode", "queue", "engine"]
    assert all(span.parent_span_id == door.span_id for span in stages)
    assert door.start_time_unix_nano <= stages[0].start_time_unix_nano
    assert stages[-1].end_time_unix_nano <= door.end_time_unix_nano
    for before, after in itertools.pairwise(stages):
        assert before.end_time_unix_nano == pytest.approx(after.start_time_unix_nano, abs=2000)
    assert seconds(stages[-1]) >= ENGINE_S
    total = sum(seconds(span) for span in stages)
    assert ENGINE_S <= total <= seconds(door)


async def test_failures_of_ours_are_marked_and_probes_left_out() -> None:
    with collecting() as collector:
        async with start(**collector_variables(collector.port)) as server:
            await server.ready()
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
                late = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-timeout-ms": "20"}
                assert (await client.post("/classify", content=photo(), headers=late)).status_code == 504
                assert (await client.get("/readyz")).status_code == 200
                assert (await client.get("/metrics")).status_code == 200
            (door,) = await asyncio.to_thread(collector.trace, TRACE, 1)
            server.process.terminate()
            assert await server.end() == 0  # and everything that was to be sent has been
        names = {span.name for span in collector.spans}
    assert door.status.code == door.status.STATUS_CODE_ERROR
    assert door.status.message == "deadline_exceeded"
    assert not [name for name in names if "readyz" in name or "metrics" in name]


async def test_without_a_collector_nothing_is_traced() -> None:
    async with start("--log-format=json", "--access-log") as server:
        await server.ready()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            assert (await client.post("/classify", content=photo())).status_code == 200
    assert not [line for line in server.lines if "trace_id" in line]


def test_variables_as_clusters_set_them(caplog: pytest.LogCaptureFixture) -> None:
    collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"}
    tracing.configure(collector | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})
    assert "no traces are sent: OTLP over 'http/protobuf'" in caplog.text
    assert tracing.trace_id() is None
    for environ in (
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "", "OTEL_SERVICE_NAME": "", "OTEL_TRACES_EXPORTER": ""},
        {"OTEL_TRACES_EXPORTER": "console, otlp"},
    ):
        try:
            tracing.configure(collector | environ)
            assert tracing._tracer is not None
        finally:
            tracing.close()
    for environ in ({"OTEL_TRACES_EXPORTER": "console"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}):
        tracing.configure(collector | environ)
        assert tracing._tracer is None


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"find_spec": "none"}, r"pip install '\.\[otel\]'"),
    ],
)
def test_what_cannot_be_had_is_refused_at_start(
    environ: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environ.pop("find_spec", None):
        absent: Callable[[str], None] = lambda _name: None  # noqa: E731
        monkeypatch.setattr(tracing.importlib.util, "find_spec", absent)
    with pytest.raises(StartError, match=words):
        tracing.configure({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"} | environ)


async def test_the_context_goes_on_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the headers of the call, whatever Triton then says."""
    seen: list[dict[str, str]] = []

    async def infer(_request: bytes, context: grpc.aio.ServicerContext) -> None:
        seen.append(
            {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        )
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")

    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    triton = grpc.aio.server()
    triton.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),)
    )
    port = triton.add_insecure_port("127.0.0.1:0")
    await triton.start()
    engine = TritonEngine(f"127.0.0.1:{port}", [fake_model()], {"alexnet": ""}, probe_timeout_s=5)
    row = np.zeros((1, 256, 256, 3), np.uint8)
    with collecting() as collector:
        for name, value in collector_variables(collector.port).items():
            monkeypatch.setenv(name, value)
        tracing.configure()
        try:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            with tracing.door("POST /classify", "POST", headers), pytest.raises(Unavailable):
                await engine.infer("alexnet", row, features=False, timeout_s=10)
            tracing.close()
            (door,) = await asyncio.to_thread(collector.trace, TRACE, 1)
        finally:
            tracing.close()
            await engine.close()
            await triton.stop(None)
    assert seen[0]["traceparent"] == f"00-{TRACE}-{door.span_id.hex()}-01"


@pytest.mark.parametrize("off", [{}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_off(off: dict[str, str]) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"} if off else {}
    tracing.configure(endpoint | off)
    assert tracing.outgoing() == ()
