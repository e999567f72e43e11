"""`engines.triton` against the real server."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import numpy as np
import onnxruntime
import pytest

from alexnet_server.engines import Images
from alexnet_server.engines.triton import TritonEngine
from alexnet_server.errors import DeadlineExceeded, Unavailable
from alexnet_server.loading import open_triton
from alexnet_server.settings import load_settings
from tests.triton.triton_process import TritonProcess

MODELS = ("alexnet", "alexnet_10crop", "alexnet_dense")


def engine_for(triton: TritonProcess) -> TritonEngine:
    settings = load_settings(
        ["--engine=triton", f"--triton-url={triton.url}", f"--model-repository={triton.repository}"]
    )
    return open_triton(settings)


@pytest.fixture
async def engine(triton: TritonProcess) -> AsyncIterator[TritonEngine]:
    engine = engine_for(triton)
    yield engine
    await engine.close()


@pytest.fixture(scope="session")
def images() -> Images:
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (4, 16, 16, 3)).repeat(16, 1).repeat(16, 2)
    return np.clip(coarse + rng.integers(-60, 61, (4, 256, 256, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("model", MODELS)
async def test_answers_what_onnxruntime_answers(engine, session_repository, images, model):
    session = onnxruntime.InferenceSession(session_repository / model / "1/model.onnx")
    probabilities, features = session.run(["probabilities", "features"], {"images": images})
    outputs = await engine.infer(model, images, features=True, timeout_s=30)
    np.testing.assert_allclose(outputs.probabilities, probabilities, atol=1e-5)
    np.testing.assert_allclose(outputs.features, features, atol=1e-4)


async def test_features_only_when_wanted(engine, images):
    outputs = await engine.infer("alexnet", images[:1], features=False, timeout_s=30)
    assert outputs.features is None
    assert outputs.probabilities.shape == (1, 10)


async def test_models_say_where_they_run(engine, triton, images):
    await engine.infer("alexnet", images[:1], features=False, timeout_s=30)
    assert engine.models["alexnet"].device == f"triton {triton.url}"
    assert engine.models["alexnet"].version == "1"


async def test_problem_is_none_when_it_works(engine):
    assert await engine.problem() is None


async def test_deadline_is_passed_on(engine, images):
    with pytest.raises(DeadlineExceeded):
        await engine.infer("alexnet", images, features=False, timeout_s=0.0005)
    with pytest.raises(DeadlineExceeded):
        await engine.infer("alexnet", images, features=False, timeout_s=0)


@pytest.mark.parametrize("wrong", ["labels_sha256", "preprocess_version"])
async def test_refuses_another_model(triton, images, monkeypatch, wrong):
    engine = engine_for(triton)
    if wrong == "labels_sha256":
        engine._labels_sha256 = {name: "0" * 64 for name in MODELS}
    else:
        monkeypatch.setattr("alexnet_server.engines.triton.PREPROCESS_VERSION", "other")
    with pytest.raises(Unavailable, match=wrong) as refused:
        await engine.infer("alexnet", images, features=False, timeout_s=30)
    assert refused.value.retry_after_s
    assert wrong in (await engine.problem() or "")
    await engine.close()


async def test_a_cancelled_caller_harms_no_neighbour(engine, images):
    tasks = [
        asyncio.create_task(engine.infer("alexnet", images, features=False, timeout_s=30)) for _ in range(20)
    ]
    await asyncio.sleep(0.005)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
    assert all(not isinstance(answer, BaseException) for answer in answers[1::2])


async def test_callers_are_answered_when_it_hangs_up(triton, images):
    engine = engine_for(triton)
    await engine.infer("alexnet", images, features=False, timeout_s=30)
    tasks = [
        asyncio.create_task(engine.infer("alexnet_10crop", images, features=False, timeout_s=30))
        for _ in range(5)
    ]
    await asyncio.sleep(0.01)
    await engine.close()
    for answer in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(answer, Unavailable)
    with pytest.raises(Unavailable):
        await engine.infer("alexnet", images, features=False, timeout_s=30)


async def test_a_model_that_triton_lacks_is_unavailable(triton, images):
    engine = engine_for(triton)
    engine._models["absent"] = dataclasses.replace(engine.models["alexnet"], name="absent")
    engine._labels_sha256 = {**engine._labels_sha256, "absent": "0" * 64}
    with pytest.raises(Unavailable):
        await engine.infer("absent", images, features=False, timeout_s=30)
    assert await engine.problem() is None
    await engine.close()
