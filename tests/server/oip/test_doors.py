"""The protocol at both doors with requests that no client library would make, and clients that leave."""

import asyncio
import base64
import gzip
import json
import zlib

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.server.doors import doors, refused, result, trailers
from tests.server.fakes import eventually, flat_image, photo

ROW = 256 * 256 * 3
BOMB = bytes(2**21)


def infer_request(value=7, **changes):
    fields = {"model_name": "alexnet", "raw_input_contents": [flat_image(value).tobytes()]} | changes
    entry = pb.ModelInferRequest.InferInputTensor(name="images", datatype="UINT8", shape=[1, 256, 256, 3])
    return pb.ModelInferRequest(**({"inputs": [entry]} | fields))


def entry(**changes):
    fields = {"name": "images", "datatype": "UINT8", "shape": [1, 256, 256, 3]} | changes
    return pb.ModelInferRequest.InferInputTensor(**fields)


UINTS = pb.InferTensorContents(uint_contents=[1, 2, 3])
PHOTO_ENTRY = {"name": "image", "datatype": "BYTES", "shape": [1, 1]}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (infer_request(inputs=[]), "takes one input, 'images'; got none"),
        (infer_request(inputs=[entry(), entry()]), "takes one input"),
        (infer_request(inputs=[entry(name="x" * 500)]), "takes one input"),
        (infer_request(inputs=[entry(datatype="UINT16")]), "expected datatype UINT8, got 'UINT16'"),
        (infer_request(inputs=[entry(shape=[1, 256, 256])]), "expected shape"),
        (infer_request(inputs=[entry(shape=[-1, 256, 256, 3])]), "1 to 32 rows"),
        (infer_request(inputs=[entry(shape=[33, 256, 256, 3])]), "1 to 32 rows"),
        (
            infer_request(inputs=[entry(shape=[2, 256, 256, 3])]),
            "expected 393216 bytes for 2 rows, got 196608",
        ),
        (infer_request(raw_input_contents=[b"123"]), "expected 196608 bytes"),
        (infer_request(raw_input_contents=[bytes(ROW), b""]), "2 entries for one input"),
        (infer_request(inputs=[entry(contents=UINTS)]), "not both"),
        (infer_request(raw_input_contents=[]), "contents.uint_contents; got nothing"),
        (infer_request(inputs=[entry(contents=UINTS)], raw_input_contents=[]), "expected 196608 numbers"),
        (
            infer_request(
                inputs=[entry(contents=pb.InferTensorContents(fp32_contents=[1.0]))], raw_input_contents=[]
            ),
            "contents.uint_contents; got fp32_contents",
        ),
        (
            infer_request(
                inputs=[entry(contents=pb.InferTensorContents(uint_contents=[256] * ROW))],
                raw_input_contents=[],
            ),
            "0 to 255",
        ),
        (
            infer_request(model_name="classify", inputs=[entry(**PHOTO_ENTRY)], raw_input_contents=[b"\x05"]),
            "data ends after 0",
        ),
        (
            infer_request(
                inputs=[entry(parameters={"shared_memory_region": pb.InferParameter(string_param="r")})]
            ),
            "shared memory is not supported",
        ),
        (infer_request(parameters={"timeout": pb.InferParameter(string_param="1 s")}), "microseconds"),
        (
            infer_request(
                outputs=[
                    pb.ModelInferRequest.InferRequestedOutputTensor(
                        name="probabilities", parameters={"classification": pb.InferParameter(int64_param=-1)}
                    )
                ]
            ),
            "whole number from 0",
        ),
    ],
)
async def test_bad_grpc_requests(bad, says):
    async with doors() as served:
        stub = GRPCInferenceServiceStub(served.channel)
        error = await refused(stub.ModelInfer(bad))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert says in error.details()
        assert trailers(error)["x-error-code"] == "invalid_request"
        answer = await stub.ModelInfer(infer_request(3))
        assert np.frombuffer(answer.raw_output_contents[0], np.float32).argmax() == 3


async def test_unknown_fields_are_ignored_and_garbage_is_not():
    async with doors() as served:
        infer = served.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        answer = await infer(infer_request(3).SerializeToString() + b"\xfa\x07\x03new")
        assert pb.ModelInferResponse.FromString(answer).model_name == "alexnet"
        error = await refused(infer(b"\xff\xff\xff garbage"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "not a valid request of /inference.GRPCInferenceService/ModelInfer" in error.details()
        async with httpx.AsyncClient(base_url=served.http.url) as client:
            entry = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "later": 1}
            entry |= {"data": [base64.b64encode(photo(4)).decode()]}
            entry |= {"parameters": {"content_type": "base64", "later": 1}}
            asked = {"inputs": [entry], "later": {"version": 3}}
            found = (await client.post("/v2/models/classify/infer", json=asked)).json()["outputs"][0]["data"]
            assert int(np.argmax(found)) == 4


async def test_a_message_over_the_limit_is_too_large():
    async with doors(max_body_bytes=2**18, max_photo_bytes=2**18) as served:
        two = infer_request(inputs=[entry(shape=[2, 256, 256, 3])], raw_input_contents=[bytes(2 * ROW)])
        stub = GRPCInferenceServiceStub(served.channel)
        error = await refused(stub.ModelInfer(infer_request(raw_input_contents=[bytes(2**18 + 1)])))
        assert trailers(error)["x-error-code"] == "too_large"
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        # So far above it that gRPC does not take it in.
        assert (await refused(stub.ModelInfer(two))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.ModelInfer(infer_request(3))).model_name == "alexnet"


async def test_an_unknown_model_or_version_is_not_found():
    async with doors() as served:
        stub = GRPCInferenceServiceStub(served.channel)
        for bad in (infer_request(model_name="vgg"), infer_request(model_version="2")):
            error = await refused(stub.ModelInfer(bad))
            assert error.code() is grpc.StatusCode.NOT_FOUND
        assert (await stub.ModelInfer(infer_request(model_version="1"))).model_version == "1"


async def test_an_unready_server_says_so():
    async with doors(load=False) as served:
        stub = GRPCInferenceServiceStub(served.channel)
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
        assert not (await stub.ModelReady(pb.ModelReadyRequest(name="alexnet"))).ready
        assert (await refused(stub.ModelInfer(infer_request()))).code() is grpc.StatusCode.UNAVAILABLE
        async with httpx.AsyncClient(base_url=served.http.url) as client:
            assert (await client.get("/v2/health/live")).status_code == 200
            assert (await client.get("/v2/health/ready")).status_code == 503
            assert (await client.get("/v2/models/alexnet/ready")).status_code == 503
            assert (await client.post("/v2/models/alexnet/infer", content=b"{}")).status_code == 503


async def test_probes_need_no_key():
    async with doors(api_keys="correct-horse-battery") as served:
        stub = GRPCInferenceServiceStub(served.channel)
        assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
        error = await refused(stub.ModelInfer(infer_request()))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        async with httpx.AsyncClient(base_url=served.http.url) as client:
            assert (await client.get("/v2/health/ready")).status_code == 200
            refusal = await client.get("/v2/models/alexnet")
            assert refusal.status_code == 401
            assert refusal.json()["error"]


@pytest.mark.parametrize(
    ("path", "headers", "content", "status", "says"),
    [
        ("alexnet/infer", {}, b"", 400, "not valid JSON"),
        ("alexnet/infer", {}, b"{}", 400, "takes one input"),
        ("vgg/infer", {}, b"{}", 404, "no model 'vgg'"),
        ("alexnet/versions/2/infer", {}, b"{}", 404, "only version 1"),
        ("alexnet/infer", {"content-encoding": "gzip"}, b"{}", 400, "gzip"),
        ("alexnet/infer", {"content-encoding": "br"}, b"{}", 415, "'br'"),
        (
            "alexnet/infer",
            {"content-encoding": "gzip"},
            gzip.compress(bytes(2**21)),
            413,
            "once decompressed",
        ),
        (
            "alexnet/infer",
            {"content-encoding": "deflate"},
            zlib.compress(bytes(2**21)),
            413,
            "once decompressed",
        ),
        ("alexnet/infer", {"inference-header-content-length": "9"}, b"{}", 400, "Content-Length"),
        ("alexnet/infer", {"inference-header-content-length": "0"}, b"abc", 400, "expected 196608 bytes"),
        ("alexnet/infer", {}, bytes(2**20 + 1), 413, "larger than 1 MiB"),
        ("classify/infer", {"inference-header-content-length": "0"}, b"text", 415, ""),
        ("alexnet/infer", {"x-request-timeout-ms": "0"}, b"{}", 400, "X-Request-Timeout-Ms"),
        ("alexnet/load", {}, b"", 404, "nothing at"),
    ],
)
async def test_bad_http_requests(path, headers, content, status, says):
    limits = {"max_body_bytes": 2**20, "max_photo_bytes": 2**20}
    async with doors(**limits) as served, httpx.AsyncClient(base_url=served.http.url) as client:
        refusal = await client.post(f"/v2/models/{path}", content=content, headers=headers)
        assert refusal.status_code == status
        assert says in refusal.json()["error"]
        assert refusal.headers["content-type"] == "application/problem+json"
        raw = {"inference-header-content-length": "0"}
        good = await client.post("/v2/models/classify/infer", content=photo(6), headers=raw)
        length = int(good.headers["inference-header-content-length"])
        assert json.loads(good.content[:length])["outputs"][0]["shape"] == [1, 10]
        assert np.frombuffer(good.content[length:], np.float32).argmax() == 6


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "alexnet/infer"), ("POST", "alexnet"), ("DELETE", "alexnet")]
)
async def test_other_methods_are_not_allowed(method, path):
    async with doors() as served, httpx.AsyncClient(base_url=served.http.url) as client:
        assert (await client.request(method, f"/v2/models/{path}")).status_code == 405


async def test_a_client_that_leaves_frees_its_place_within_50_ms_on_both_doors(engine):
    async with doors(engine) as served:
        engine.gate.clear()
        stub = GRPCInferenceServiceStub(served.channel)
        busy = asyncio.create_task(result(stub.ModelInfer(infer_request())))
        await eventually(engine.entered.is_set)

        over_grpc = asyncio.create_task(result(stub.ModelInfer(infer_request())))
        await eventually(lambda: served.waiting_views == 1)
        over_grpc.cancel()
        assert await eventually(lambda: served.waiting_views == 0) < 0.05

        async with httpx.AsyncClient(base_url=served.http.url) as client:
            headers = {"Inference-Header-Content-Length": "0"}
            over_http = asyncio.create_task(
                client.post("/v2/models/alexnet/infer", content=bytes(ROW), headers=headers)
            )
            await eventually(lambda: served.waiting_views == 1)
            over_http.cancel()
            assert await eventually(lambda: served.waiting_views == 0) < 0.05
        engine.gate.set()
        await busy
        await asyncio.gather(over_grpc, over_http, return_exceptions=True)


async def test_rows_that_do_not_fit_the_queue_are_refused_together(engine):
    async with doors(engine, queue_size=4) as served:
        engine.gate.clear()
        stub = GRPCInferenceServiceStub(served.channel)
        busy = asyncio.create_task(result(stub.ModelInfer(infer_request())))
        await eventually(engine.entered.is_set)
        waiting = asyncio.create_task(result(stub.ModelInfer(infer_request())))
        await eventually(lambda: served.waiting_views == 1)
        four = infer_request(inputs=[entry(shape=[4, 256, 256, 3])], raw_input_contents=[bytes(4 * ROW)])
        error = await refused(stub.ModelInfer(four))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert served.waiting_views == 1
        engine.gate.set()
        await asyncio.gather(busy, waiting)


async def test_stages_are_counted_for_tensors_too(engine):
    async with doors(engine) as served:
        stub = GRPCInferenceServiceStub(served.channel)
        await stub.ModelInfer(infer_request())
        stats = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="alexnet"))).model_stats[0]
        assert stats.inference_stats.success.count == 1
        assert stats.inference_stats.compute_infer.count >= 1
        assert stats.inference_stats.compute_infer.ns > 0
        await refused(stub.ModelInfer(infer_request(raw_input_contents=[b""])))
        stats = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="alexnet"))).model_stats[0]
        assert stats.inference_stats.fail.count == 1


async def test_each_request_of_a_stream_is_counted_and_says_that_it_is_the_last():
    async with doors() as served:
        stub = GRPCInferenceServiceStub(served.channel)
        requests = [
            infer_request(1),
            infer_request(2, raw_input_contents=[b"123"]),
            infer_request(model_name="vgg"),
        ]
        answers = [answer async for answer in stub.ModelStreamInfer(iter(requests))]
        assert [bool(answer.error_message) for answer in answers] == [False, True, True]
        for answer in answers:
            assert answer.infer_response.parameters["triton_final_response"].bool_param
        stats = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="alexnet"))).model_stats[0]
        assert stats.inference_stats.success.count == 1
        assert stats.inference_stats.fail.count == 1
        total = served.http.classifier.metrics.registry.get_sample_value
        assert total("alexnet_requests_total", {"door": "grpc", "model": "", "code": "unknown_model"}) == 1


async def test_a_slash_behind_v2_and_statistics_of_no_cache():
    async with doors() as served, httpx.AsyncClient(base_url=served.http.url) as http:
        assert (await http.get("/v2/")).json() == (await http.get("/v2")).json()
        (stats,) = (await http.get("/v2/models/alexnet/stats")).json()["model_stats"]
        for name in ("cache_hit", "cache_miss"):
            assert stats["inference_stats"][name] == {"count": 0, "ns": 0}


async def test_a_deadline_within_the_queue_is_refused_with_both_times(engine):
    async with doors(engine) as served:
        stub = GRPCInferenceServiceStub(served.channel)
        request = infer_request()
        request.parameters["timeout"].int64_param = 1
        error = await refused(stub.ModelInfer(request))
        assert trailers(error)["x-error-code"] == "deadline_exceeded"
        assert "This request has 0 ms left" in error.details()
