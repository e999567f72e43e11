"""The same photos through both engines, and straight to Triton: the same answers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as triton_grpc

from alexnet_server.engines import Engine, Images
from alexnet_server.loading import open_onnx, open_triton
from alexnet_server.models.repository import read_repository
from alexnet_server.models.unpack import unpack
from alexnet_server.preprocess import prepare
from alexnet_server.settings import load_settings
from tests.triton.repositories import CHECKOUT, CPU, unpacked
from tests.triton.triton_process import TritonProcess

CC0 = CHECKOUT / "tests/data/cc0"
TOLERANCE = {"fp32": 1e-5, "int8": 1e-2}
MODELS = ("alexnet", "alexnet_10crop", "alexnet_dense")
ROWS = 4


def repository_for(kind: str, precision: str, folder: Path) -> Path:
    if kind == "tiny":
        return unpacked(folder, precision)
    shipped = CHECKOUT / "model_repository"
    if not (shipped / "alexnet").exists():
        pytest.skip("this checkout ships no weights")
    shutil.copytree(shipped, folder, ignore=shutil.ignore_patterns("model.onnx", "__pycache__"))
    unpack(read_repository(folder), precision)
    return folder


class Both:
    """A repository in this process and in Triton."""

    def __init__(self, repository: Path, triton: TritonProcess, precision: str) -> None:
        self.precision = precision
        self.triton = triton
        self._flags = [f"--model-repository={repository}", f"--precision={precision}", "--device=cpu"]
        self.here: Engine = open_onnx(load_settings(self._flags))

    async def there(self, model: str, images: Images):
        """What the gateway's engine says of `ROWS` photos at a time."""
        flags = [*self._flags, "--engine=triton", f"--triton-url={self.triton.url}"]
        engine = open_triton(load_settings(flags))
        parts = [
            await engine.infer(model, images[i : i + ROWS], features=True, timeout_s=60)
            for i in range(0, len(images), ROWS)
        ]
        await engine.close()
        return np.concatenate([part.probabilities for part in parts])


@pytest.fixture(
    scope="module",
    params=[("tiny", "fp32"), ("tiny", "int8"), ("shipped", "fp32"), ("shipped", "int8")],
    ids="-".join,
)
def both(request, tritonserver, tmp_path_factory) -> Iterator[Both]:
    kind, precision = request.param
    folder = tmp_path_factory.mktemp("both")
    repository = repository_for(kind, precision, folder / "models")
    triton = TritonProcess(tritonserver, repository, folder / "log", [CPU])
    triton.start()
    engines = Both(repository, triton, precision)
    yield engines
    engines.here.close()
    triton.clear()


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    """The photos of the repository, and some of TEST_DATA (`tests/outside.py`) where it is set."""
    folder = Path(os.environ.get("TEST_DATA", "/nonexistent")) / "photos"
    more = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:29]
    return [path.read_bytes() for path in [*sorted(CC0.glob("*.jpg")), *more]]


def in_process(engine: Engine, model: str, images: Images) -> np.ndarray:
    parts = [engine.infer(model, images[i : i + ROWS], features=False) for i in range(0, len(images), ROWS)]
    return np.concatenate([part.probabilities for part in parts])


def assert_same(answers: np.ndarray, expected: np.ndarray, precision: str) -> None:
    np.testing.assert_allclose(answers, expected, atol=TOLERANCE[precision], rtol=0)
    np.testing.assert_array_equal(answers.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("model", MODELS)
async def test_both_engines_agree(both, photos, model, figure):
    images = np.stack([prepare(photo) for photo in photos])
    expected = in_process(both.here, model, images)
    answers = await both.there(model, images)
    worst = np.abs(answers - expected).max()
    figure(f"{model} {both.precision}, {len(photos)} photos: engines differ by up to {worst:.1e}")
    assert_same(answers, expected, both.precision)


def test_tritons_own_classify_agrees(both, photos):
    """Encoded photos decoded by Triton's copy of `preprocess`."""
    client = triton_grpc.InferenceServerClient(both.triton.url)
    images = np.stack([prepare(photo) for photo in photos])
    answers = []
    for i in range(0, len(photos), ROWS):
        array = np.array(photos[i : i + ROWS], dtype=object).reshape(-1, 1)
        tensor = triton_grpc.InferInput("image", array.shape, "BYTES")
        tensor.set_data_from_numpy(array)
        answers.append(client.infer("classify", [tensor]).as_numpy("probabilities"))
    assert_same(np.concatenate(answers), in_process(both.here, "alexnet", images), both.precision)
