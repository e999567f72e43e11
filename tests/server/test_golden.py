"""From loading to ready, and what keeps a server from it."""

import asyncio

import numpy as np
import pytest

from alexnet_server.errors import InvalidRequest, Unavailable
from alexnet_server.photos import golden_image
from tests.server.fakes import FakeEngine, Running, fake_model, flat_image, running

BEST = int(golden_image()[128, 128, 0]) % 10
"""What the fake engine calls the photo."""


async def test_the_card_agrees():
    async with running(FakeEngine(fake_model(golden=(BEST, 0.90)))) as server:
        assert server.classifier.problem() is None


@pytest.mark.parametrize("golden", [((BEST + 1) % 10, 0.91), (BEST, 0.80)])
async def test_the_card_disagrees(golden):
    async with running(FakeEngine(fake_model(golden=golden))) as server:
        assert "golden photo" in server.classifier.problem()
        with pytest.raises(Unavailable):
            await server.classifier.classify(flat_image(1), server.classifier.model())


async def test_scores_that_are_no_numbers():
    engine = FakeEngine()
    inner = engine.infer

    def infer(model, images, *, features, alone=True):
        outputs = inner(model, images, features=features)
        outputs.probabilities[:] = np.nan
        return outputs

    engine.infer = infer
    async with running(engine) as server:
        assert "not numbers" in server.classifier.problem()


async def test_an_engine_that_fails():
    engine = FakeEngine()

    def fail(_):
        raise RuntimeError

    engine.fail = fail
    async with running(engine) as server:
        assert "cannot be classified" in server.classifier.problem()


@pytest.fixture
async def server():
    async with running(FakeEngine(fake_model(max_batch_size=4))) as subject:
        yield subject


async def test_ready_images_are_classified_without_decoding(server: Running):
    answer = await server.classifier.classify(flat_image(8), server.classifier.model(), top_k=1)
    assert answer.predictions[0].index == 8
    with pytest.raises(InvalidRequest, match=r"uint8 \[256,256,3\]"):
        await server.classifier.classify(np.zeros((224, 224, 3), np.uint8), server.classifier.model())


async def test_rows(server: Running):
    images = np.stack([flat_image(value) for value in (1, 2, 3)])
    outputs = await server.classifier.infer(list(images), server.classifier.model(), features=True)
    assert outputs.probabilities.argmax(1).tolist() == [1, 2, 3]
    assert outputs.features.shape == (3, 4096)
    for wrong in (images[:0], np.repeat(images, 2, axis=0), images[:, :224], images.astype(np.int8)):
        with pytest.raises(InvalidRequest):
            await server.classifier.infer(list(wrong), server.classifier.model())


async def test_rows_are_all_or_nothing(server: Running):
    def fail(images):
        if (images[:, 128, 128, 0] == 2).any():
            raise RuntimeError

    server.engine.fail = fail
    images = np.stack([flat_image(value) for value in (1, 2, 3)])
    with pytest.raises(Exception, match="The server failed"):
        await server.classifier.infer(list(images), server.classifier.model(), features=True)
    await asyncio.sleep(0)
    assert server.waiting_views == 0
