"""What calls hold in memory: one budget over both ports, waited for rather than overdrawn."""

import asyncio

import grpc

from alexnet_client.pb import classifier_pb2 as pb
from alexnet_server.rpc.guard import COPIES
from tests.server.doors import doors, refused, result
from tests.server.fakes import eventually
from tests.server.rpc.test_classifier import details, prepared, request
from tests.server.rpc.test_door import SERVING, check
from tests.server.rpc.test_stream import collect, item

SMALL = {"max_body_bytes": 2**20, "max_photo_bytes": 2**20}


def waiting(bodies):
    """Calls that wait for room."""
    return len(bodies._waiting)


async def test_many_streams_hold_no_more_than_the_budget(engine):
    async with doors(engine, **SMALL) as served:
        bodies, one = served.http.classifier.bodies, COPIES * item(11).ByteSize()
        engine.gate.clear()
        streams = [
            asyncio.create_task(collect(served.stub.ClassifyStream(item(n) for n in range(12))))
            for _ in range(6)
        ]
        await eventually(lambda: waiting(bodies) == 6)
        # None begins to read above a half, so each stream is at most one photo over it.
        assert bodies.max_bytes // 2 < bodies.held_bytes <= bodies.max_bytes // 2 + 6 * one
        assert bodies.max_bytes // 2 + 6 * one < bodies.max_bytes < 6 * 12 * one
        engine.gate.set()
        for answers in await asyncio.gather(*streams):
            assert [answer.WhichOneof("outcome") for answer in answers.values()] == ["response"] * 12
        await eventually(lambda: bodies.held_bytes == 0)


async def test_messages_that_do_not_fit_are_dropped(engine, monkeypatch):
    """Calls that all began to read while there was room, and each of whose messages is a quarter of it."""
    async with doors(engine, **SMALL) as served:
        bodies, began = served.http.classifier.bodies, asyncio.Barrier(20)
        monkeypatch.setattr(bodies, "room", lambda _: began.wait())
        engine.gate.clear()
        big = request()
        big.MergeFromString(b"\xfa\x01\x80\x80\x40" + bytes(2**20))  # a field that nobody knows
        calls = [asyncio.create_task(result(served.stub.Classify(big))) for _ in range(20)]
        await eventually(lambda: sum(call.done() for call in calls) == 17)
        assert bodies.held_bytes == 3 * COPIES * big.ByteSize()
        assert bodies.held_bytes <= bodies.max_bytes < bodies.held_bytes + COPIES * big.ByteSize()
        engine.gate.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        errors = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
        assert [error.code() for error in errors] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 17
        assert [answer.predictions[0].index for answer in answers if answer not in errors] == [7] * 3
        await eventually(lambda: bodies.held_bytes == 0)


async def test_a_compressed_message_is_not_taken_unless_it_may_be():
    """Its length says nothing, and it is in memory before anybody can count it."""
    async with doors() as served:
        error = await refused(served.stub.Classify(request(), compression=grpc.Compression.Gzip))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    async with doors(grpc_compression=True) as served:
        assert (await served.stub.Classify(request(), compression=grpc.Compression.Gzip)).predictions


async def test_a_call_waits_for_room():
    async with doors(**SMALL) as served:
        bodies = served.http.classifier.bodies
        bodies.hold(bodies.max_bytes)
        calls = [asyncio.create_task(result(served.stub.Classify(request(n)))) for n in range(4)]
        await eventually(lambda: waiting(bodies) == 4)
        assert not any(call.done() for call in calls)
        assert (await check(served)).status == SERVING  # a probe asks for no room
        bodies.give_back(bodies.max_bytes)
        assert [answer.predictions[0].index for answer in await asyncio.gather(*calls)] == [0, 1, 2, 3]
        await eventually(lambda: bodies.held_bytes == 0)


async def test_a_call_that_finds_no_room_in_time_is_refused():
    async with doors(**SMALL, request_timeout_s=0.2) as served:
        bodies = served.http.classifier.bodies
        bodies.hold(bodies.max_bytes)
        error = await refused(served.stub.Classify(request()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "Too many uploads are in progress" in error.details()
        assert len(details(error)[1]) >= 2  # the code, and when to try again
        assert waiting(bodies) == 0


async def test_those_who_leave_give_back_what_they_held(engine):
    async with doors(engine, **SMALL) as served:
        bodies = served.http.classifier.bodies
        engine.gate.clear()
        stream = served.stub.ClassifyStream(item(n) for n in range(3))
        call = served.stub.Classify(prepared())
        calls = [asyncio.create_task(each) for each in (collect(stream), result(call))]
        await eventually(lambda: bodies.held_bytes >= 4 * COPIES * prepared().ByteSize())
        stream.cancel()
        call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        engine.gate.set()
        await eventually(lambda: bodies.held_bytes == 0)


async def test_a_call_without_a_message_is_told_so():
    async with doors() as served:
        empty = served.channel.stream_unary(
            "/alexnet.v1.Classifier/Classify", pb.ClassifyRequest.SerializeToString
        )
        error = await refused(empty(iter(())))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "has no message" in error.details()
