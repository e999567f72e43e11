"""alexnet.v1.Classifier over the wire."""

import asyncio
import logging
import time

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from alexnet_client.pb import classifier_pb2 as pb
from alexnet_server.engines import EngineFailed
from tests.server.doors import doors, refused, result, trailers
from tests.server.fakes import FakeEngine, eventually, fake_model, flat_image, photo


def request(value=7, **fields):
    return pb.ClassifyRequest(image=pb.Image(encoded=photo(value)), **fields)


def prepared(value=7, **fields):
    return pb.ClassifyRequest(image=pb.Image(prepared=flat_image(value).tobytes()), **fields)


def details(error):
    status = Status.FromString(trailers(error)["grpc-status-details-bin"])
    found = {}
    for packed in status.details:
        for kind in (ErrorInfo, RetryInfo, BadRequest):
            if packed.Is(kind.DESCRIPTOR):
                message = kind()
                packed.Unpack(message)
                found[kind] = message
    return status, found


TEN = fake_model("alexnet_10crop", "ten", 10)


async def test_a_photo_is_labelled():
    async with doors() as served:
        call = served.stub.Classify(request(3, top_k=2))
        answer = await call
        assert (answer.model, answer.version) == ("alexnet", "1")
        assert [each.index for each in answer.predictions] == [3, 0]
        best = answer.predictions[0]
        assert (best.rank, best.wnid, best.label) == (1, "n00000003", "class 3")
        assert best.score == pytest.approx(0.91)
        told = dict(await call.trailing_metadata())
        assert len(told["x-request-id"]) == 32
        assert {part.split(";")[0] for part in told["server-timing"].split(", ")} == {
            "decode",
            "queue",
            "engine",
            "total",
        }


async def test_five_labels_unless_told_otherwise_and_a_prepared_image_is_as_good():
    async with doors() as served:
        encoded, ready = await asyncio.gather(
            served.stub.Classify(request(4)), served.stub.Classify(prepared(4))
        )
        assert encoded == ready
        assert len(encoded.predictions) == 5


async def test_the_callers_request_id_comes_back():
    async with doors() as served:
        call = served.stub.Classify(request(), metadata=(("x-request-id", "mine-7"),))
        await call
        assert dict(await call.trailing_metadata())["x-request-id"] == "mine-7"
        error = await refused(
            served.stub.Classify(pb.ClassifyRequest(), metadata=(("x-request-id", "mine-8"),))
        )
        assert trailers(error)["x-request-id"] == "mine-8"


async def test_views_and_models_choose():
    async with doors(FakeEngine(fake_model(), TEN)) as served:
        assert (await served.stub.Classify(request(views=pb.VIEWS_TEN))).model == "alexnet_10crop"
        assert (await served.stub.Classify(request(views=pb.VIEWS_CENTER))).model == "alexnet"
        assert (await served.stub.Classify(request(model="alexnet_10crop"))).model == "alexnet_10crop"
        assert (await served.stub.Classify(request())).model == "alexnet"


async def test_models_and_features_of_views():
    async with doors(FakeEngine(fake_model(), TEN)) as served:
        listed = (await served.stub.ListModels(pb.ListModelsRequest())).models
        assert [(each.name, each.views, each.classes) for each in listed] == [
            ("alexnet", "center", 10),
            ("alexnet_10crop", "ten", 10),
        ]
        assert dict(listed[0].about) == {"precision": "fp32"}
        image = pb.Image(encoded=photo(9))
        found = await served.stub.Features(pb.FeaturesRequest(image=image, views=pb.VIEWS_TEN))
        assert found.model == "alexnet_10crop"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.Features(pb.FeaturesRequest(image=image, views=pb.VIEWS_DENSE))
        assert trailers(caught.value)["x-error-code"] == "unknown_model"


async def test_features_and_labels():
    async with doors() as served:
        found = await served.stub.Features(pb.FeaturesRequest(image=pb.Image(encoded=photo(9))))
        assert (found.model, found.version) == ("alexnet", "1")
        assert list(found.features) == [9.0] * 4096
        listed = await served.stub.ListLabels(pb.ListLabelsRequest())
        assert [(each.index, each.wnid, each.label) for each in listed.labels][3] == (
            3,
            "n00000003",
            "class 3",
        )
        assert len(listed.labels) == 10


@pytest.mark.parametrize(
    ("bad", "code", "says"),
    [
        (pb.ClassifyRequest(), "invalid_request", "no photo"),
        (pb.ClassifyRequest(image=pb.Image(encoded=b"")), "invalid_request", "no photo"),
        (pb.ClassifyRequest(image=pb.Image(prepared=b"123")), "invalid_request", "196608 bytes"),
        (pb.ClassifyRequest(image=pb.Image(encoded=b"GIF87")), "unsupported_format", ""),
        (pb.ClassifyRequest(image=pb.Image(encoded=photo()[:80])), "undecodable", ""),
        (request(top_k=0), "invalid_request", "top_k"),
        (request(top_k=11), "invalid_request", "top_k"),
        (request(top_k=-(2**31)), "invalid_request", "top_k"),
        (request(views=9), "invalid_request", "views"),
    ],
)
async def test_bad_requests_are_invalid_arguments(bad, code, says):
    async with doors() as served:
        error = await refused(served.stub.Classify(bad))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert says in error.details()
        assert trailers(error)["x-error-code"] == code
        status, found = details(error)
        assert (status.code, status.message) == (3, error.details())
        assert found[ErrorInfo].reason == code.upper()
        assert found[ErrorInfo].domain == "alexnet.v1"
        assert found[ErrorInfo].metadata["code"] == code
        assert found[BadRequest].field_violations[0].description
        assert (await served.stub.Classify(request())).predictions


@pytest.mark.parametrize("call", [request(model="vgg"), request(views=pb.VIEWS_DENSE)])
async def test_an_unknown_model_is_not_found(call):
    async with doors() as served:
        error = await refused(served.stub.Classify(call))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert trailers(error)["x-error-code"] == "unknown_model"


async def test_a_photo_over_the_limit_is_too_large_and_so_is_the_largest_message_that_grpc_lets_in():
    async with doors(max_photo_bytes=2**20, max_body_bytes=4 * 2**20) as served:
        for size in (2**20 + 1, 4 * 2**20 + 100):
            error = await refused(
                served.stub.Classify(pb.ClassifyRequest(image=pb.Image(encoded=bytes(size))))
            )
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert trailers(error)["x-error-code"] == "too_large"


async def test_overload_says_how_long_to_wait(engine):
    async with doors(engine, queue_size=1) as served:
        engine.gate.clear()
        running = [asyncio.create_task(result(served.stub.Classify(request())))]
        await eventually(engine.entered.is_set)
        running.append(asyncio.create_task(result(served.stub.Classify(request()))))
        await eventually(lambda: served.waiting_views == 1)
        error = await refused(served.stub.Classify(request()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        told = trailers(error)
        assert told["x-error-code"] == "overloaded"
        assert int(told["grpc-retry-pushback-ms"]) >= 1
        _, found = details(error)
        assert found[RetryInfo].retry_delay.ToMilliseconds() == int(told["grpc-retry-pushback-ms"])
        engine.gate.set()
        assert [answer.model for answer in await asyncio.gather(*running)] == ["alexnet"] * 2


async def test_an_unready_server_is_unavailable_without_pushback():
    async with doors(load=False) as served:
        error = await refused(served.stub.Classify(request()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert trailers(error)["x-error-code"] == "unavailable"
        # gRPC's own retry, and so another server, at once.
        assert "grpc-retry-pushback-ms" not in trailers(error)
        assert RetryInfo in details(error)[1]


async def test_our_failures_tell_a_request_id_and_nothing_else(engine, caplog):
    def fail(images):
        raise RuntimeError("secret path /srv/model")

    async with doors(engine) as served:
        engine.fail = fail
        error = await refused(served.stub.Classify(request()))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(error)
        assert trailers(error)["x-request-id"]
        engine.fail = lambda images: None
        assert (await served.stub.Classify(request())).predictions


async def test_a_lost_engine_is_unavailable(engine):
    def fail(images):
        raise EngineFailed("gone")

    async with doors(engine) as served:
        engine.fail = fail
        error = await refused(served.stub.Classify(request()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_deadline_shorter_than_the_queue_is_refused_at_once(engine):
    async with doors(engine) as served:
        engine.seconds = 0.3
        await asyncio.gather(*(result(served.stub.Classify(prepared())) for _ in range(96)))
        engine.gate.clear()  # its speed is known now
        waiting = [asyncio.create_task(result(served.stub.Classify(prepared()))) for _ in range(200)]
        await eventually(lambda: served.waiting_views > 130, 30)
        started = time.monotonic()
        error = await refused(served.stub.Classify(request(), timeout=1.0))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # By the server, not by the client's clock.
        assert trailers(error)["x-error-code"] == "deadline_exceeded"
        assert time.monotonic() - started < 0.9
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_cancelling_a_call_frees_its_place_within_50_ms(engine):
    async with doors(engine) as served:
        engine.gate.clear()
        busy = asyncio.create_task(result(served.stub.Classify(request())))
        await eventually(engine.entered.is_set)
        waiting = asyncio.create_task(result(served.stub.Classify(request())))
        await eventually(lambda: served.waiting_views == 1)
        waiting.cancel()
        assert await eventually(lambda: served.waiting_views == 0) < 0.05
        engine.gate.set()
        assert (await busy).predictions
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_a_deadline_that_passes_frees_the_place(engine):
    async with doors(engine) as served:
        engine.gate.clear()
        busy = asyncio.create_task(result(served.stub.Classify(request())))
        await eventually(engine.entered.is_set)
        error = await refused(served.stub.Classify(request(), timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await eventually(lambda: served.waiting_views == 0) < 0.05
        engine.gate.set()
        await busy


async def test_requests_are_counted(engine):
    async with doors(engine) as served:
        await served.stub.Classify(request())
        await refused(served.stub.Classify(request(top_k=99)))
        await refused(served.stub.Classify(request(model="vgg")))
        metrics = served.http.classifier.metrics.render().decode()
        assert 'alexnet_requests_total{code="ok",door="grpc",model="alexnet"} 1.0' in metrics
        assert 'alexnet_requests_total{code="invalid_request",door="grpc",model="alexnet"} 1.0' in metrics
        assert 'alexnet_requests_total{code="unknown_model",door="grpc",model=""} 1.0' in metrics


async def test_messages_of_another_making_are_refused_and_unknown_fields_ignored():
    async with doors() as served:
        classify = served.channel.unary_unary("/alexnet.v1.Classifier/Classify")
        error = await refused(classify(b"\xff\xff\xff garbage"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "not a valid request of /alexnet.v1.Classifier/Classify" in error.details()
        error = await refused(classify(request().SerializeToString() + b"\x1a\x02\xff\xfe"))  # not UTF-8
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        later_version = request().SerializeToString() + b"\xfa\x07\x03new"
        assert pb.ClassifyResponse.FromString(await classify(later_version)).predictions


async def test_an_unknown_method_is_unimplemented():
    async with doors() as served:
        error = await refused(served.channel.unary_unary("/alexnet.v1.Classifier/Train")(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert trailers(error)["x-error-code"] == "method_not_allowed"


async def test_nothing_is_logged_for_callers_faults(engine, caplog):
    caplog.set_level(logging.INFO)
    async with doors(engine) as served:
        await refused(served.stub.Classify(pb.ClassifyRequest()))
        await refused(served.channel.unary_unary("/alexnet.v1.Classifier/Classify")(b"\xff"))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
