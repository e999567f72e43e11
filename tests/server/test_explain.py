"""`POST /explain` and `/network`: what they say and refuse, and that others are not kept waiting."""

import asyncio
import io
import json

import httpx
import numpy as np
import pytest
from PIL import Image

from alexnet_server.engines import Outputs
from alexnet_server.loading import batch, open_engine
from alexnet_server.models.anatomy import kernels_picture, layer_seconds, layers
from alexnet_server.models.unpack import default_repository
from alexnet_server.models.weights import read_weights
from alexnet_server.occlusion import GREY, SIZE, STEP, covered
from alexnet_server.service import Classifier
from alexnet_server.settings import Settings
from alexnet_server.telemetry.metrics import Metrics
from tests import hostile
from tests.server.fakes import FakeEngine, eventually, fake_model, photo, running

OBJECT = (slice(120, 168), slice(72, 120))
"""Rows and columns of the planted object: one place of the square, row 5 and column 3 of the grid."""
GROUND, COLOUR = 200, 20


class ObjectEngine(FakeEngine):
    """Is as sure of class 3 as it sees of the object, and of class 4 as it does not."""

    def infer(self, model, images, *, features, alone=True):
        outputs = super().infer(model, images, features=features)
        seen = (images[(slice(None), *OBJECT)] == COLOUR).mean(axis=(1, 2, 3))
        probabilities = np.zeros((len(images), 10), np.float32)
        probabilities[:, 3], probabilities[:, 4] = 0.9 * seen, 0.9 * (1 - seen)
        return Outputs(probabilities, outputs.features)


def planted() -> bytes:
    pixels = np.full((256, 256, 3), GROUND, np.uint8)
    pixels[OBJECT] = COLOUR
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


async def explain(server, query="", body=None):
    reply = await server.send(f"/explain{query}", planted() if body is None else body)
    return reply.status, json.loads(reply.body)


async def test_the_map_points_at_the_object():
    async with running(ObjectEngine()) as server:
        status, answer = await explain(server)
    assert status == 200
    grid = np.array(answer.pop("grid"))
    assert answer.pop("seconds") >= 0
    assert answer == {
        "model": "alexnet",
        "version": "1",
        "index": 3,
        "label": "class 3",
        "score": 0.9,
        "size": 48,
        "step": 24,
        "note": None,
    }
    assert grid.shape == (9, 9)
    assert np.unravel_index(grid.argmax(), grid.shape) == (5, 3)
    assert grid[5, 3] == pytest.approx(0.9, abs=1e-6)
    assert grid[5, 4] == grid[4, 3] == pytest.approx(0.45, abs=1e-6)  # half of it covered
    assert grid[0, 0] == grid[8, 8] == 0


async def test_what_spoke_against_a_label_is_negative():
    async with running(ObjectEngine()) as server:
        _, answer = await explain(server, "?index=4")
    assert (answer["index"], answer["score"]) == (4, 0.0)
    assert np.array(answer["grid"])[5, 3] == pytest.approx(-0.9, abs=1e-6)


async def test_a_photo_of_one_colour_has_a_flat_map_and_says_so():
    """A network sees the square itself, on an even ground; so it is not put there."""
    engine = ObjectEngine()
    async with running(engine) as server:
        _, answer = await explain(server, body=photo(COLOUR))
    assert not np.array(answer["grid"]).any()
    assert (answer["score"], "of a single colour" in answer["note"]) == (0.9, True)
    assert len(engine.batches) == 1


async def test_a_label_that_no_part_made_has_a_flat_map_and_says_so():
    async with running(ObjectEngine()) as server:
        _, answer = await explain(server, "?index=7")
    assert not np.array(answer["grid"]).any()
    assert answer["note"].startswith("No single part of the photo made the label")


async def test_the_strongest_place_lies_in_the_object():
    """The middle of the square, in a box around what the photo shows.

    Those of the cup and of the cat's face (its head fills the photo and would hold every square) were drawn
    by eye, without the maps.
    """
    settings = Settings()
    classifier = Classifier(settings, Metrics(), decode_threads=1)
    await classifier.load(lambda: batch(open_engine(settings), settings, classifier.metrics))
    try:
        for name, (left, top, right, bottom) in json.loads((hostile.CC0 / "boxes.json").read_text()).items():
            answer = await classifier.explain((hostile.CC0 / name).read_bytes(), classifier.model())
            row, column = np.unravel_index(answer.grid.argmax(), answer.grid.shape)
            # The grid tells a place to half a step: the rocket is narrower than one.
            y, x = row * STEP + SIZE / 2, column * STEP + SIZE / 2
            assert top - STEP / 2 <= y <= bottom + STEP / 2, (name, row, column)
            assert left - STEP / 2 <= x <= right + STEP / 2, (name, row, column)
    finally:
        await classifier.close()


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("?views=ten", 400, "Ten crops cannot be explained"),
        ("?model=alexnet_10crop", 400, "Ten crops cannot be explained"),
        ("?index=10", 400, "from 0 to 9"),
        ("?index=-1", 400, "index"),
        ("?top_k=3", 400, "no parameter `top_k`"),
        ("?views=dense", 404, "dense"),
    ],
)
async def test_what_cannot_be_explained_is_refused(query, status, words):
    engine = ObjectEngine(fake_model(), fake_model("alexnet_10crop", "ten", 10))
    async with running(engine) as server:
        found, answer = await explain(server, query)
    assert (found, words in answer["detail"]) == (status, True), answer


async def test_a_queue_without_room_for_82_views_refuses():
    engine = ObjectEngine()
    async with running(engine, queue_size=82) as server:
        engine.gate.clear()
        first = asyncio.create_task(server.send("/classify", photo()))
        await eventually(engine.entered.is_set)
        second = asyncio.create_task(server.send("/classify", photo()))  # waits in the queue
        await eventually(lambda: server.waiting_views >= 1)
        status, answer = await explain(server)
        engine.gate.set()
        assert (status, answer["code"]) == (429, "overloaded")
        assert [(await reply).status for reply in (first, second)] == [200, 200]
        assert (await explain(server))[0] == 200
        assert server.waiting_views == 0


async def test_others_go_between_its_batches():
    engine = ObjectEngine()
    async with running(engine) as server:
        engine.gate.clear()
        slow = asyncio.create_task(explain(server))
        await eventually(engine.entered.is_set)
        assert server.waiting_views == 81  # held at once; nothing but the first row was handed in
        other = asyncio.create_task(server.send("/classify", photo(77)))
        await eventually(lambda: server.waiting_views >= 82)
        engine.gate.set()
        assert (await other).status == 200
        assert (await slow)[0] == 200
    at = next(i for i, (_, values) in enumerate(engine.batches) if 77 in values)
    rows = [len(values) for _, values in engine.batches]
    assert max(rows) <= 33  # a batch of the map's, and the other photo where it fitted
    assert sum(rows[:at]) <= 1 + 32
    assert sum(rows) == 83


async def test_a_client_that_leaves_takes_its_rows_along():
    engine = ObjectEngine()
    async with running(engine) as server:
        engine.gate.clear()
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = planted()
        writer.write(b"POST /explain HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await eventually(lambda: server.waiting_views == 81)
        writer.close()
        await eventually(lambda: not server.waiting_views)
        engine.gate.set()
        assert (await server.send("/classify", photo())).status == 200
    assert sum(len(values) for _, values in engine.batches) == 2


def test_the_square_covers_each_place_once():
    image = np.zeros((256, 256, 3), np.uint8)
    whole = covered(image, 0, 81)
    assert (whole == GREY).all(axis=3).sum(axis=(1, 2)).tolist() == [48 * 48] * 81
    assert (whole[80, 192:240, 192:240] == GREY).all()
    assert np.array_equal(covered(image, 30, 33), whole[30:33])
    assert not image.any()


def test_layers_are_the_papers():
    found = layers(default_repository() / "alexnet" / "graph.fp32.onnx")
    assert [layer.name for layer in found] == [
        "conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8",
    ]  # fmt: skip
    assert [layer.output for layer in found[:2]] == [(96, 55, 55), (256, 27, 27)]
    assert sum(layer.parameters for layer in found[:-1]) == 60_965_224 - 1000 * 4097  # all but the classes
    assert found[1].kind == "5 x 5 convolution, 2 towers"
    assert found[0].multiply_adds == 96 * 3 * 11 * 11 * 55 * 55


def test_kernels_lie_apart_by_tower():
    weight = np.zeros((96, 3, 11, 11), np.float32)
    weight[0, 0] = 2.0  # red
    weight[95, 2] = -1.0  # yellow
    with Image.open(io.BytesIO(kernels_picture(weight))) as image:
        width, height = image.size
        assert (width, height) == (4 * (16 * 12 - 1), 4 * (2 * (3 * 12 - 1) + 4))
        assert image.getpixel((0, 0)) == (255, 128, 128)
        assert image.getpixel((width - 1, height - 1)) == (128, 128, 0)
        assert image.getpixel((0, height // 2)) == (255, 255, 255)


def test_operators_count_with_the_layer_before_them():
    operators = {
        "view": 1,  # the crop, before the first layer
        "Convolution_847": 2,  # named by the engine
        "conv1_nchwc": 4,
        "conv1.lrn.pool_bf16_conv2.in.codes": 8,
        "conv2/WithoutBiases": 16,
        "ReorderOutput_token_20": 32,
        "fc8.in.codes": 64,
        "probabilities": 128,
    }
    assert layer_seconds(["conv1", "conv2", "fc8"], operators) == {"conv1": 15, "conv2": 48, "fc8": 192}


async def test_layers_are_timed_once_and_only_where_the_engine_tells():
    folder, asked = default_repository() / "alexnet", []

    def profile():
        asked.append(1)
        return {"conv1": 0.002, "fc8": 0.001}

    engine = FakeEngine(fake_model(folder=folder, profile=profile))
    async with running(engine) as server, httpx.AsyncClient() as client:
        answers = await asyncio.gather(*(client.get(f"{server.url}/network") for _ in range(3)))
    for answer in answers:
        seconds = [layer["seconds"] for layer in answer.json()["layers"]]
        assert seconds == [0.002, 0, 0, 0, 0, 0, 0, 0.001]
    assert len(asked) == 1


async def test_the_network_tells_of_itself():
    folder = default_repository() / "alexnet"
    async with running(FakeEngine(fake_model(folder=folder))) as server, httpx.AsyncClient() as client:
        told = (await client.get(f"{server.url}/network")).json()
        assert told["parameters"] == sum(layer["parameters"] for layer in told["layers"])
        assert [layer["name"] for layer in told["layers"]][-1] == "fc8"
        assert {layer["seconds"] for layer in told["layers"]} == {None}
        picture = await client.get(f"{server.url}/network/kernels.png")
        assert picture.headers["content-type"] == "image/png"
        weight = read_weights(folder.parent / "alexnet.weights")["conv1.weight"]
        assert picture.content == kernels_picture(weight)


async def test_a_server_without_the_files_says_so():
    async with running(FakeEngine()) as server, httpx.AsyncClient() as client:
        reply = await client.get(f"{server.url}/network")
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
        assert "does not have the files" in reply.json()["detail"]


async def test_a_full_queue_refuses_before_the_photo_has_arrived():
    """82 views are asked for, not the one of a photo: the answer comes while the body is still to come."""
    engine = ObjectEngine()
    async with running(engine, queue_size=82) as server:
        engine.gate.clear()
        waiting = [asyncio.create_task(server.send("/classify", photo())) for _ in range(2)]
        await eventually(lambda: engine.entered.is_set() and server.waiting_views == 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST /explain HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\nexpect: 100-continue\r\n\r\n"
        )
        assert (await reader.readline()).split()[1] == b"429"
        writer.close()
        engine.gate.set()
        assert [(await reply).status for reply in waiting] == [200, 200]
