"""ClassifyStream: ids, order, flow control, endings."""

import asyncio

import grpc
import pytest

from alexnet_client.pb import classifier_pb2 as pb
from tests.server.doors import doors, trailers
from tests.server.fakes import FakeEngine, eventually, fake_model
from tests.server.rpc.test_classifier import TEN, prepared, request


def item(number, each=None, **fields):
    return pb.ClassifyStreamRequest(id=str(number), request=each or prepared(int(number) % 256), **fields)


async def collect(call):
    return {answer.id: answer async for answer in call}


async def test_every_photo_is_answered_under_its_id():
    async with doors() as served:
        answers = await collect(served.stub.ClassifyStream(item(number) for number in range(50)))
        assert len(answers) == 50
        for name, answer in answers.items():
            assert answer.response.predictions[0].index == int(name) % 10


async def test_a_bad_photo_fails_alone():
    async with doors() as served:
        bad = {
            "no photo": pb.ClassifyRequest(),
            "not a photo": pb.ClassifyRequest(image=pb.Image(encoded=b"text")),
            "top_k": request(top_k=99),
            "model": request(model="vgg"),
        }
        items = [item(1), *(item(name, each) for name, each in bad.items()), item(2)]
        answers = await collect(served.stub.ClassifyStream(iter(items)))
        assert answers["1"].response.predictions
        assert answers["2"].response.predictions
        codes = {name: answers[name].error.code for name in bad}
        assert codes == {
            "no photo": "invalid_request",
            "not a photo": "unsupported_format",
            "top_k": "invalid_request",
            "model": "unknown_model",
        }
        assert not answers["no photo"].error.HasField("retry_after_ms")


async def test_answers_come_when_ready_not_in_order(engine):
    fast = fake_model("alexnet_10crop", "ten", 1)
    engine = FakeEngine(fake_model(), fast)
    async with doors(engine) as served:
        call = served.stub.ClassifyStream()
        engine.gate.clear()
        await call.write(item("slow", prepared(1)))
        await eventually(engine.entered.is_set)
        await call.write(item("refused", pb.ClassifyRequest()))
        assert (await call.read()).id == "refused"
        engine.gate.set()
        assert (await call.read()).id == "slow"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_a_client_that_writes_on_is_stopped_by_flow_control(engine):
    async with doors(engine, queue_size=8) as served:
        engine.gate.clear()
        written = 0

        async def photos():
            nonlocal written
            for number in range(400):
                yield item(number)
                written = number + 1

        call = served.stub.ClassifyStream(photos())
        answers = asyncio.create_task(collect(call))
        await eventually(engine.entered.is_set)
        await asyncio.sleep(0.5)
        # Half the queue at most, and what gRPC itself holds in its buffers.
        assert served.waiting_views <= 4
        assert written < 200
        engine.gate.set()
        found = await answers
        assert len(found) == 400
        assert {answer.WhichOneof("outcome") for answer in found.values()} == {"response"}


async def test_views_count_against_a_streams_share_of_the_queue():
    engine = FakeEngine(fake_model(), TEN)
    async with doors(engine, queue_size=100) as served:
        engine.gate.clear()
        photos = (item(number, prepared(number, views=pb.VIEWS_TEN)) for number in range(40))
        answers = asyncio.create_task(collect(served.stub.ClassifyStream(photos)))
        await eventually(lambda: served.waiting_views >= 40)
        await asyncio.sleep(0.2)
        assert served.waiting_views <= 50
        engine.gate.set()
        assert {answer.WhichOneof("outcome") for answer in (await answers).values()} == {"response"}


async def test_a_photos_own_deadline(engine):
    async with doors(engine) as served:
        engine.gate.clear()
        items = [item(1), item(2, timeout_ms=100), item(3, timeout_ms=0)]
        call = served.stub.ClassifyStream(iter(items))
        first = [await call.read(), await call.read()]
        assert {(each.id, each.error.code) for each in first} == {
            ("2", "deadline_exceeded"),
            ("3", "deadline_exceeded"),
        }
        engine.gate.set()
        assert (await call.read()).response.predictions


async def test_a_client_that_leaves_an_idle_stream_is_no_error_of_ours(caplog):
    async with doors() as served:
        call = served.stub.ClassifyStream()
        await call.write(item(1))
        assert (await call.read()).response.predictions
        call.cancel()
        metrics = served.http.classifier.metrics
        counted = 'alexnet_requests_total{code="cancelled",door="grpc",model=""} 1.0'
        await eventually(lambda: counted in metrics.render().decode())
        assert "failed" not in caplog.text


async def test_cancelling_the_stream_frees_its_places_within_50_ms(engine):
    async with doors(engine) as served:
        engine.gate.clear()
        call = served.stub.ClassifyStream(item(number) for number in range(20))
        await eventually(engine.entered.is_set)
        await eventually(lambda: served.waiting_views >= 15)
        call.cancel()
        assert await eventually(lambda: served.waiting_views == 0) < 0.05
        engine.gate.set()
        assert (await served.stub.Classify(request())).predictions


async def test_an_old_stream_answers_what_it_has_and_ends(engine):
    async with doors(engine, grpc_max_connection_age_s=1.0) as served:
        engine.gate.clear()
        call = served.stub.ClassifyStream()
        await call.write(item(5))
        await eventually(engine.entered.is_set)
        await asyncio.sleep(1.2)
        engine.gate.set()
        assert (await call.read()).response.predictions
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert trailers(caught.value)["x-error-code"] == "unavailable"


async def test_closing_the_door_ends_streams_once_they_are_answered(engine):
    async with doors(engine) as served:
        engine.gate.clear()
        call = served.stub.ClassifyStream()
        await call.write(item(5))
        await eventually(engine.entered.is_set)
        closing = asyncio.create_task(served.grpc.close(20.0))
        await asyncio.sleep(0.1)
        engine.gate.set()
        assert (await call.read()).response.predictions
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(closing, 5)


async def test_garbage_on_a_stream_ends_it_with_a_reason():
    async with doors() as served:
        call = served.channel.stream_stream("/alexnet.v1.Classifier/ClassifyStream")(iter([b"\xff\xff"]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert trailers(caught.value)["x-error-code"] == "invalid_request"


async def test_a_long_id_is_refused():
    async with doors() as served:
        call = served.stub.ClassifyStream(iter([item("x" * 257, prepared())]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert "256 bytes" in caught.value.details()
