"""How soon the queue lets go of those who leave, and refuses those it cannot serve in time: measured."""

import asyncio
import statistics
import time

import grpc
import pytest

from alexnet_client.pb import classifier_pb2 as pb
from tests.server.doors import doors, refused, result, trailers
from tests.server.fakes import FakeEngine, eventually, photo, read_reply, request_bytes

PHOTO = photo()
ROUNDS = 20
FREED_S = 0.05
WAITING = 20


async def leave_grpc(served):
    """A call that waits; cancelling it."""
    call = served.stub.Classify(pb.ClassifyRequest(image=pb.Image(encoded=PHOTO)))
    return call.cancel


async def leave_http(served):
    """A request that waits; hanging up."""
    _, writer = await asyncio.open_connection("127.0.0.1", served.http.port)
    writer.write(request_bytes("/classify", PHOTO))
    await writer.drain()
    return writer.close


@pytest.mark.parametrize("join", [leave_grpc, leave_http], ids=["gRPC", "HTTP"])
async def test_leaving_frees_the_place_within_50_ms(engine, join, figure, request):
    async with doors(engine) as served:
        engine.gate.clear()
        busy = asyncio.create_task(served.http.send("/classify", PHOTO))
        await eventually(engine.entered.is_set)
        took_ms = []
        for _ in range(ROUNDS):
            leave = await join(served)
            await eventually(lambda: served.waiting_views == 1)
            leave()
            took_ms.append(1e3 * await eventually(lambda: served.waiting_views == 0))
        engine.gate.set()
        assert (await busy).status == 200
        assert engine.batches == [("alexnet", [7])], "nobody who left reached the engine"
    middle, worst = statistics.median(took_ms), max(took_ms)
    door = request.node.callspec.id
    figure(f"{door}: leaving frees the place in {middle:.1f} ms (p50), {worst:.1f} ms (max)")
    assert middle < 1e3 * FREED_S


async def test_a_deadline_within_the_queue_is_refused_at_once_on_both_doors(figure):
    engine = FakeEngine(seconds=1.0)
    async with doors(engine) as served:
        # From the warm-up it is known that eight photos take a second.
        waiting = [asyncio.create_task(result(served.stub.Classify(ask()))) for _ in range(WAITING)]
        await eventually(lambda: served.waiting_views == WAITING - 1)

        began = time.monotonic()
        error = await refused(served.stub.Classify(ask(), timeout=0.6))
        grpc_s = time.monotonic() - began
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert trailers(error)["x-error-code"] == "deadline_exceeded"
        assert "the queue is" in error.details()

        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", served.http.port)
        writer.write(request_bytes("/classify", PHOTO, {"X-Request-Timeout-Ms": "600"}))
        reply = await read_reply(reader)
        http_s = time.monotonic() - began
        writer.close()
        assert reply.status == 504
        assert b"the queue is" in reply.body

        figure(f"refused for its deadline after {1e3 * grpc_s:.1f} ms (gRPC), {1e3 * http_s:.1f} ms (HTTP)")
        assert max(grpc_s, http_s) < 0.5
        await asyncio.gather(*waiting)
        assert sum(len(values) for _, values in engine.batches) == WAITING


def ask():
    return pb.ClassifyRequest(image=pb.Image(encoded=PHOTO))
