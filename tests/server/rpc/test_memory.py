"""What calls hold in memory: one budget over both ports, waited for rather than overdrawn."""

import asyncio
import weakref

import grpc
import pytest

from alexnet_client.pb import classifier_pb2 as pb
from alexnet_client.pb.classifier_pb2_grpc import ClassifierStub
from alexnet_server.bodies import BodyBudget
from alexnet_server.call import Calls
from alexnet_server.rpc import arrivals
from alexnet_server.rpc.arrivals import COPIES
from alexnet_server.rpc.stream import PhotoStream
from alexnet_server.telemetry.metrics import Metrics
from tests.server.doors import doors, refused, result
from tests.server.fakes import eventually, fake_model
from tests.server.rpc.test_classifier import details, prepared, request
from tests.server.rpc.test_door import SERVING, check
from tests.server.rpc.test_stream import collect, item

SMALL = {"max_body_bytes": 2**20, "max_photo_bytes": 2**20}


async def test_many_streams_hold_no_more_than_the_budget(engine):
    async with doors(engine, **SMALL) as served:
        bodies, one = served.http.classifier.bodies, COPIES * item(11).ByteSize()
        engine.gate.clear()
        streams = [
            asyncio.create_task(collect(served.stub.ClassifyStream(item(n) for n in range(12))))
            for _ in range(6)
        ]
        await eventually(lambda: bodies.waiting == 6 and bodies.held_bytes > bodies.max_bytes // 2)
        # None is taken above a half; the last one counts for its stream and, for a moment, for its reader.
        assert bodies.held_bytes <= bodies.max_bytes // 2 + 2 * one
        assert bodies.max_bytes // 2 + 2 * one < bodies.max_bytes < 6 * 12 * one
        engine.gate.set()
        for answers in await asyncio.gather(*streams):
            assert [answer.WhichOneof("outcome") for answer in answers.values()] == ["response"] * 12
        await eventually(lambda: bodies.held_bytes == 0)


def bulky():
    """A request of a megabyte, of which two are half of the `SMALL` budget and a little more."""
    big = request()
    big.MergeFromString(b"\xfa\x01\x80\x80\x40" + bytes(2**20))  # a field that nobody knows
    return big


async def test_messages_that_have_come_wait_for_room_in_grpcs_memory(engine):
    """Calls that all began to read while there was room, for a third of their messages."""
    async with doors(engine, **SMALL) as served:
        bodies, one = served.http.classifier.bodies, COPIES * bulky().ByteSize()
        engine.gate.clear()
        calls = [asyncio.create_task(result(served.stub.Classify(bulky()))) for _ in range(12)]
        await eventually(lambda: bodies.waiting == 10)
        assert bodies.held_bytes == 2 * one
        assert bodies.max_bytes // 2 < 2 * one < bodies.max_bytes < 12 * one
        engine.gate.set()
        answers = await asyncio.gather(*calls)
        assert [answer.predictions[0].index for answer in answers] == [7] * 12
        await eventually(lambda: bodies.held_bytes == 0)


class Arriving:
    """A context that has one message to read, which is in gRPC's memory once `arrival` is done."""

    def __init__(self, size=10):
        self.arrival = asyncio.get_running_loop().create_future()
        self.taken_at = None
        """The pass of the event loop, if anybody counts them."""
        self.size = size
        self.loop_pass = lambda: 0

    async def read(self):
        if self.taken_at is not None:
            await self._wait_for_the_end()
            return grpc.aio.EOF
        await self.arrival
        self.taken_at = self.loop_pass()
        return bytes(self.size)

    async def _wait_for_the_end(self):
        loop = asyncio.get_running_loop()
        end = loop.create_future()
        loop.call_soon(end.set_result, None)
        await end


@pytest.mark.parametrize(("size", "passes"), [(2**20, 6), (1000, 1)])
async def test_others_have_their_turn_between_two_large_messages(size, passes):
    """gRPC copies a message where its reader goes on: many of them at once would stop the event loop."""
    loop, current = asyncio.get_running_loop(), 0
    bodies, messages = BodyBudget(100 * size), [Arriving(size) for _ in range(6)]

    def count():
        nonlocal current, ticking
        current += 1
        ticking = loop.call_soon(count)

    async def read(message):
        message.loop_pass = lambda: current
        return [len(each) async for each in arrivals.held(message.read, bytes, bodies, None)]

    reading = [asyncio.ensure_future(read(message)) for message in messages]
    await asyncio.sleep(0)
    ticking = loop.call_soon(count)
    for message in messages:
        message.arrival.set_result(None)
    assert await asyncio.gather(*reading) == [[size]] * 6
    ticking.cancel()
    assert len({message.taken_at for message in messages}) == passes


@pytest.mark.parametrize("come", [False, True])
async def test_a_reader_who_leaves_frees_what_has_come(come):
    bodies, requests = BodyBudget(100), Arriving()
    messages = arrivals.held(requests.read, bytes, bodies, None)
    reading = asyncio.ensure_future(anext(messages))
    await asyncio.sleep(0)
    bodies.hold(60)  # by others, meanwhile
    if come:
        requests.arrival.set_result(None)
        await eventually(lambda: bodies.waiting == 1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await eventually(lambda: (requests.taken_at is not None) is come)
    assert (bodies.held_bytes, bodies.waiting) == (60, 0)
    bodies.give_back(60)
    assert not await bodies.turn()  # nobody else has it


class Message:
    """As far as anybody looks at one; its photo is another object."""

    id = "1"
    request = None

    def HasField(self, _):
        return False


async def test_a_call_that_ends_while_its_message_is_taken_does_not_keep_its_turn():
    loop, bodies = asyncio.get_running_loop(), BodyBudget(100)

    async def read():
        arrival = loop.create_future()
        loop.call_soon(arrival.set_result, None)
        await arrival
        raise grpc.aio.UsageError("RPC already finished.")

    with pytest.raises(grpc.aio.UsageError):
        await anext(arrivals.held(read, bytes, bodies, None))
    assert await asyncio.wait_for(bodies.turn(), 10) is False
    assert bodies.held_bytes == 0


async def test_large_messages_of_those_who_leave_together_are_dropped_by_turns():
    """A stream that was cancelled would else have gRPC copy its message at once: of sixty, for seconds."""
    loop, current, messages = asyncio.get_running_loop(), 0, [Arriving(2**20) for _ in range(6)]
    bodies = BodyBudget(100)

    def count():
        nonlocal current, ticking
        current += 1
        ticking = loop.call_soon(count)

    reading = []
    for message in messages:
        message.loop_pass = lambda: current
        reading.append(asyncio.ensure_future(anext(arrivals.held(message.read, bytes, bodies, None))))
    await asyncio.sleep(0)
    bodies.hold(60)
    for message in messages:
        message.arrival.set_result(None)
    await eventually(lambda: bodies.waiting == 6)
    ticking = loop.call_soon(count)
    for each in reading:
        each.cancel()
    await asyncio.wait(reading)
    await eventually(lambda: all(message.taken_at is not None for message in messages))
    ticking.cancel()
    assert len({message.taken_at for message in messages}) == 6


async def test_nobody_holds_a_message_while_the_next_one_is_waited_for():
    """Nothing counts it then: with gRPC's own iterator, sixty idle streams held half a gigabyte."""
    parsed, raw = [], []

    class Context:
        async def read(self):
            loop = asyncio.get_running_loop()
            arrival = loop.create_future()
            if not parsed:
                loop.call_soon(arrival.set_result, None)
            await arrival
            raw.append(weakref.ref(came := Raw(b"a message")))
            return came

        async def write(self, answer):
            pass

        def time_remaining(self):
            return None

    class Raw(bytearray):
        """Bytes know no weak references."""

    def parse(_):
        parsed.append(weakref.ref(message := Message()))
        return message

    async def answer(*_):
        return pb.ClassifyResponse()

    bodies, context, closing = BodyBudget(1000), Context(), asyncio.Event()
    calls = Calls("grpc", Metrics(), access_log=False)
    stream = PhotoStream(
        lambda _: fake_model(), answer, calls, context, max_views=10, bodies=bodies, closing=closing
    )
    with calls.open("stream", {}, "stream", {}):
        reading = asyncio.create_task(stream.run(arrivals.held(context.read, parse, bodies, None), 60.0))
    await eventually(lambda: len(parsed) == 1 and bodies.held_bytes == 0)
    await eventually(lambda: raw[0]() is None and parsed[0]() is None)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_little_is_sent_of_a_message_that_nobody_reads():
    """However fast the line was before: gRPC's own windows grow to megabytes for each call."""
    sent = 0

    async def pump(reader, writer, counted):
        nonlocal sent
        while data := await reader.read(2**16):
            sent += counted * len(data)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def relay(reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", served.grpc.port)
        await asyncio.gather(pump(reader, back, True), pump(there, writer, False))

    async with doors(**SMALL) as served:
        bodies, line = served.http.classifier.bodies, await asyncio.start_server(relay, "127.0.0.1", 0)
        target = "{}:{}".format(*line.sockets[0].getsockname())
        async with line, grpc.aio.insecure_channel(target) as channel:
            stub = ClassifierStub(channel)
            await asyncio.gather(*(stub.Classify(bulky()) for _ in range(16)))
            bodies.hold(bodies.max_bytes)
            sent = 0
            calls = [asyncio.create_task(result(stub.Classify(bulky()))) for _ in range(8)]
            await eventually(lambda: bodies.waiting == 8 and sent >= 8 * 2**16)
            await asyncio.sleep(0.5)  # what would be sent in this time is all of it
            assert sent < 8 * (2**18 + 2**12) < 8 * bulky().ByteSize() / 3
            bodies.give_back(bodies.max_bytes)
            await asyncio.gather(*calls)


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
        await eventually(lambda: bodies.waiting == 4)
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
        assert bodies.waiting == 0


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
