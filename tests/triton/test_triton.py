"""The repository in the real server, asked with stock `tritonclient`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence

import numpy as np
import onnxruntime
import pytest
from tritonclient import grpc as triton_grpc
from tritonclient.grpc import aio as triton_aio
from tritonclient.utils import InferenceServerException

from alexnet_server.preprocess import prepare
from tests.triton.repositories import CHECKOUT
from tests.triton.triton_process import TritonProcess

PHOTOS = [(CHECKOUT / f"tests/data/cc0/{name}.jpg").read_bytes() for name in ("cat", "coffee", "rocket")]
CONNECTIONS = 64


@pytest.fixture
async def client(triton: TritonProcess) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(triton.url) as client:
        yield client


def photo_input(photos: Sequence[bytes]) -> triton_grpc.InferInput:
    array = np.array(photos, dtype=object).reshape(-1, 1)
    tensor = triton_grpc.InferInput("image", array.shape, "BYTES")
    tensor.set_data_from_numpy(array)
    return tensor


def image_input(images: np.ndarray) -> triton_grpc.InferInput:
    tensor = triton_grpc.InferInput("images", images.shape, "UINT8")
    tensor.set_data_from_numpy(images)
    return tensor


@pytest.fixture(scope="session")
def expected(session_repository):
    """Probabilities of PHOTOS as ONNX Runtime computes them here."""
    session = onnxruntime.InferenceSession(session_repository / "alexnet/1/model.onnx")
    images = np.stack([prepare(photo) for photo in PHOTOS])
    return session.run(["probabilities"], {"images": images})[0]


async def test_classify_agrees_with_in_process(client, expected):
    answer = await client.infer("classify", [photo_input(PHOTOS)])
    np.testing.assert_allclose(answer.as_numpy("probabilities"), expected, atol=1e-5)


async def test_tensors_agree_with_in_process(client, expected):
    images = np.stack([prepare(photo) for photo in PHOTOS])
    answer = await client.infer("alexnet", [image_input(images)])
    np.testing.assert_allclose(answer.as_numpy("probabilities"), expected, atol=1e-5)


async def test_labels_come_with_the_classification_extension(client, expected, session_repository):
    wanted = triton_grpc.InferRequestedOutput("probabilities", class_count=5)
    answer = await client.infer("classify", [photo_input(PHOTOS[:1])], outputs=[wanted])
    rows = [entry.decode().split(":") for entry in answer.as_numpy("probabilities")[0]]
    labels = (session_repository / "alexnet/labels.txt").read_text().splitlines()
    best = np.argsort(-expected[0], kind="stable")[:5]
    assert [int(index) for _, index, _ in rows] == best.tolist()
    assert [label for _, _, label in rows] == [labels[index] for index in best]


async def test_bad_photos_fail_alone(client, expected):
    """Requests under way together, a third of them with a bad photo."""
    bad = [PHOTOS[0][:2000], b"no photo at all", b""]

    async def ask(photo: bytes) -> np.ndarray | str:
        try:
            return (await client.infer("classify", [photo_input([photo])])).as_numpy("probabilities")
        except InferenceServerException as error:
            return f"{error.status()} {error.message()}"

    answers = await asyncio.gather(*(ask(photo) for _ in range(10) for photo in (*PHOTOS, *bad)))
    for i, answer in enumerate(answers):
        if i % 6 < 3:
            np.testing.assert_allclose(answer[0], expected[i % 6], atol=1e-5)
        else:
            assert "INVALID_ARGUMENT" in answer
            assert ("undecodable" if i % 6 != 4 else "unsupported_format") in answer


async def test_a_bad_row_is_named(client):
    with pytest.raises(InferenceServerException, match="row 1: unsupported_format"):
        await client.infer("classify", [photo_input([PHOTOS[0], b"no photo at all", PHOTOS[1]])])


async def counts(client: triton_aio.InferenceServerClient, model: str) -> tuple[int, int]:
    """Rows and executions of a model so far."""
    statistics = (await client.get_inference_statistics(model)).model_stats[0]
    return statistics.inference_count, statistics.execution_count


async def test_rows_of_many_connections_share_batches(triton, client, figure):
    """Triton's own statistics: rows per execution under 64 connections, one row a request.

    The slowest model for each row: the quicker a tiny one is, the more its clients are what is waited for.
    """
    rows_before, runs_before = await counts(client, "alexnet_dense")
    image = prepare(PHOTOS[0])[None]

    async def connection() -> None:
        async with triton_aio.InferenceServerClient(triton.url) as own:
            for _ in range(4):
                await own.infer("alexnet_dense", [image_input(image)])

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    rows, runs = await counts(client, "alexnet_dense")
    mean = (rows - rows_before) / (runs - runs_before)
    figure(f"mean batch {mean:.1f} rows under {CONNECTIONS} connections")
    assert rows - rows_before == 4 * CONNECTIONS
    assert mean > 4


async def test_photos_spread_over_the_decoding_processes(client):
    """Photos that arrive together are not joined to one batch for one process."""
    await asyncio.gather(*(client.infer("classify", [photo_input([photo])]) for photo in PHOTOS * 10))
    statistics = (await client.get_inference_statistics("preprocess")).model_stats[0]
    singles = sum(entry.compute_infer.count for entry in statistics.batch_stats if entry.batch_size == 1)
    assert singles / sum(entry.compute_infer.count for entry in statistics.batch_stats) > 0.8


def test_the_guides_example_runs(triton, tmp_path, monkeypatch, capsys, session_repository):
    guide = (CHECKOUT / "docs/triton.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    (tmp_path / "cat.jpg").write_bytes(PHOTOS[0])
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("localhost:8001", triton.url), "docs/triton.md", "exec"), {})
    labels = (session_repository / "alexnet/labels.txt").read_text().splitlines()
    printed = capsys.readouterr().out
    assert sum(label.replace("\t", "\\t") in printed for label in labels) == 5
