"""The door itself: health, reflection, keys, TLS, ports, hostile bytes."""

import asyncio
import re
import socket
import struct
import zlib
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from alexnet_client.pb import classifier_pb2 as pb
from alexnet_server.access.keys import ApiKeys
from alexnet_server.errors import StartError
from alexnet_server.rpc import GrpcDoor
from alexnet_server.service import Classifier
from alexnet_server.settings import Settings
from alexnet_server.telemetry.metrics import Metrics
from tests.server.doors import doors, refused, result, trailers
from tests.server.fakes import eventually
from tests.server.rpc.test_classifier import request

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def check(served, service=""):
    stub = health_pb2_grpc.HealthStub(served.channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service))


def watch(served, service=""):
    stub = health_pb2_grpc.HealthStub(served.channel)
    return stub.Watch(health_pb2.HealthCheckRequest(service=service))


@pytest.mark.parametrize(
    "service", ["", "alexnet.v1.Classifier", "inference.GRPCInferenceService", "alexnet"]
)
async def test_health_by_name(service):
    async with doors() as served:
        assert (await check(served, service)).status == SERVING
        served.http.classifier.begin_drain()
        assert (await check(served, service)).status == NOT_SERVING


async def test_health_of_what_there_is_not():
    async with doors() as served:
        error = await refused(check(served, "vgg"))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert (await watch(served, "vgg").read()).status == SERVICE_UNKNOWN


async def test_not_serving_while_loading():
    async with doors(load=False) as served:
        assert (await check(served)).status == NOT_SERVING


async def test_watch_tells_changes_and_ends_with_the_door():
    async with doors() as served:
        call = watch(served)
        assert (await call.read()).status == SERVING
        served.http.classifier.begin_drain()
        assert (await asyncio.wait_for(call.read(), 2)).status == NOT_SERVING
        await asyncio.wait_for(served.grpc.close(20.0), 5)
        assert await call.read() is grpc.aio.EOF


async def test_reflection_lists_the_services():
    async with doors() as served:
        stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([asked]))
        names = {each.name for each in (await call.read()).list_services_response.service}
        assert {"alexnet.v1.Classifier", "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
        asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol="alexnet.v1.Classifier")
        call = stub.ServerReflectionInfo(iter([asked]))
        assert (await call.read()).file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("service", ["grpc.reflection.v1alpha", "grpc.reflection.v1"])
@pytest.mark.parametrize(
    ("symbol", "known"),
    [
        ("alexnet.v1.Classifier.Classify", True),
        ("inference.GRPCInferenceService.ModelInfer", True),
        ("alexnet.v1.Prediction.score", True),
        ("alexnet.v1.Classifier.Missing", False),
        ("alexnet.v1.Missing", False),
        ("Missing", False),
    ],
)
async def test_reflection_finds_methods_by_name_under_both_of_its_own(service, symbol, known):
    async with doors() as served:
        method = served.channel.stream_stream(
            f"/{service}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        call = method(iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)]))
        answer = await call.read()
        assert answer.HasField("file_descriptor_response") is known
        assert answer.HasField("error_response") is not known


KEY = "correct-horse-battery"


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer wrong-horse-battery"),),
        (("authorization", KEY),),
        (("x-api-key", "no"),),
    ],
)
async def test_without_a_key_nothing_but_probes(metadata):
    async with doors(api_keys=KEY) as served:
        error = await refused(served.stub.Classify(request(), metadata=metadata))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert trailers(error)["x-error-code"] == "unauthenticated"
        call = served.stub.ClassifyStream(iter([pb.ClassifyStreamRequest()]), metadata=metadata)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
        assert await stub.ServerReflectionInfo(iter([])).code() is grpc.StatusCode.UNAUTHENTICATED
        assert (await check(served)).status == SERVING


@pytest.mark.parametrize("metadata", [("authorization", f"Bearer {KEY}"), ("x-api-key", KEY)])
async def test_with_the_key(metadata):
    async with doors(api_keys=f"another-long-key,{KEY}") as served:
        assert (await served.stub.Classify(request(), metadata=(metadata,))).predictions


async def test_a_large_message_without_a_key_is_refused_unread():
    async with doors(api_keys=KEY) as served:
        large = pb.ClassifyRequest(image=pb.Image(encoded=bytes(32 * 2**20)))
        error = await refused(served.stub.Classify(large))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def opened(**changes):
    settings = Settings(**changes)
    classifier = Classifier(settings, Metrics(), decode_threads=1)
    door = GrpcDoor(classifier, settings, ApiKeys())
    try:
        await door.open()
    except StartError:
        await classifier.close()
        raise
    return door, classifier


async def test_a_taken_port_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(StartError, match="--grpc-port"):
        await opened(grpc_port=taken.getsockname()[1])
    door, classifier = await opened(grpc_port=0)
    with pytest.raises(StartError, match="is in use"):  # by another gRPC server too
        await opened(grpc_port=door.port)
    await door.close(0)
    await classifier.close()


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 1000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff" * 9]
)
async def test_garbage_on_the_port_harms_nobody(garbage):
    async with doors() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.grpc.port)
        writer.write(garbage)
        await writer.drain()
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert (await served.stub.Classify(request())).predictions


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def header(name, value):
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def opened_with(encoding):
    """A connection's first bytes and a call's headers."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/alexnet.v1.Classifier/Classify",
        ":authority": "test",
        "te": "trailers",
        "content-type": "application/grpc",
        "grpc-encoding": encoding,
    }
    headers = b"".join(header(name.encode(), value.encode()) for name, value in fields.items())
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, headers)


async def test_a_4_gib_length_prefix_is_refused_by_its_announcement():
    async with doors() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.grpc.port)
        writer.write(opened_with("identity") + frame(0, 0, 1, b"\x00\xff\xff\xff\xff" + bytes(1000)))
        await writer.drain()
        answer = await asyncio.wait_for(reader.readuntil(b"larger than max"), 10)
        assert b"grpc-status" in answer
        writer.close()
        assert (await served.stub.Classify(request())).predictions


async def test_a_compressed_bomb_does_not_go_off():
    async with doors(max_body_bytes=12 * 2**20, grpc_compression=True) as served:
        assert (await served.stub.Classify(request(), compression=grpc.Compression.Gzip)).predictions
        squeeze = zlib.compressobj(wbits=31)
        bomb = b"".join(squeeze.compress(bytes(2**20)) for _ in range(55)) + squeeze.flush()
        reader, writer = await asyncio.open_connection("127.0.0.1", served.grpc.port)
        before = peak_resident_bytes()
        message = b"\x01" + struct.pack(">I", len(bomb)) + bomb
        pieces = [message[start : start + 16384] for start in range(0, len(message), 16384)]
        writer.write(opened_with("gzip") + b"".join(frame(0, 0, 1, piece) for piece in pieces))
        await writer.drain()
        await asyncio.wait_for(reader.readuntil(b"Decompressed message larger than max"), 10)
        writer.close()
        assert peak_resident_bytes() - before < 40 * 2**20
        assert (await served.stub.Classify(request())).predictions


def peak_resident_bytes():
    """Since the last time it was asked."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


async def test_a_broken_connection_frees_the_queue(engine):
    async with doors(engine) as served:
        engine.gate.clear()
        channel = grpc.aio.insecure_channel(served.target)
        stub = type(served.stub)(channel)
        tasks = [asyncio.ensure_future(result(stub.Classify(request()))) for _ in range(5)]
        await eventually(engine.entered.is_set)
        await eventually(lambda: served.waiting_views >= 3)
        await channel.close()
        await eventually(lambda: served.waiting_views == 0, 2)
        await asyncio.gather(*tasks, return_exceptions=True)
