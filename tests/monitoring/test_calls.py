"""Single photos are told from streams and batches, and views apart: an alert asks for the first."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
import tritonclient.grpc.aio as oip_aio
from tritonclient import grpc as oip

from alexnet_client import AsyncClient, HttpClient
from tests.server.doors import Doors, doors
from tests.server.fakes import FakeEngine, fake_model, photo
from tests.server.rpc.test_classifier import request
from tests.server.rpc.test_stream import collect, item


def counted(served: Doors) -> dict[tuple[str, str, str], int]:
    """Answers by door, views and kind of call."""
    registry = served.http.classifier.metrics.registry
    return {
        (sample.labels["door"], sample.labels["views"], sample.labels["call"]): int(sample.value)
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "alexnet_request_seconds_count"
    }


def rows(count: int) -> oip.InferInput:
    tensor = oip.InferInput("images", [count, 256, 256, 3], "UINT8")
    tensor.set_data_from_numpy(np.zeros((count, 256, 256, 3), np.uint8))
    return tensor


async def test_each_kind_of_call_is_counted_as_what_it_is() -> None:
    engine = FakeEngine(fake_model(), fake_model("alexnet_10crop", "ten", 10))
    async with doors(engine) as served:
        async with httpx.AsyncClient(base_url=served.http.url) as client:
            assert (await client.post("/classify", content=photo())).is_success
            assert (await client.post("/classify?views=ten", content=photo())).is_success
            parts = [("image", photo()), ("image", photo())]
            assert (await client.post("/classify/batch", files=parts)).is_success
            assert (await client.post("/explain", content=photo())).is_success
            for count in (1, 2):
                tensor = {"name": "images", "datatype": "UINT8", "shape": [count, 256, 256, 3]}
                tensor["data"] = [0] * (count * 256 * 256 * 3)
                assert (await client.post("/v2/models/alexnet/infer", json={"inputs": [tensor]})).is_success
        await served.stub.Classify(request())
        answers = await collect(served.stub.ClassifyStream(item(number) for number in range(3)))
        assert len(answers) == 3
        with HttpClient(served.http.url) as blocking:
            outcomes = await asyncio.to_thread(lambda: list(blocking.classify_many([photo(3)] * 2)))
        assert [each.top.index for each in outcomes] == [3, 3]
        async with AsyncClient(served.target) as shipped:
            assert [each.top.index async for each in shipped.classify_many([photo(3)] * 4)] == [3] * 4
        async with oip_aio.InferenceServerClient(served.target) as stock:
            await stock.infer("alexnet", [rows(1)])
            await stock.infer("alexnet", [rows(2)])
        assert counted(served) == {
            ("http", "center", "unary"): 2,
            ("http", "ten", "unary"): 1,
            (
                "http",
                "center",
                "batch",
            ): 5,  # a form, an explanation, two rows, two of HttpClient
            ("grpc", "center", "unary"): 2,
            ("grpc", "center", "stream"): 3,
            ("grpc", "center", "batch"): 5,  # four of the shipped client, and two rows in one
        }
