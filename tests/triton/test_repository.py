"""The models that only Triton serves, as files: in step with their sources and with each other."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from alexnet_server.preprocess import prepare
from tests.triton.repositories import CHECKOUT

REPOSITORY = CHECKOUT / "model_repository"


def config(model: str) -> model_config_pb2.ModelConfig:
    text = (REPOSITORY / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_preprocess_is_the_servers_own():
    source = CHECKOUT / "server/alexnet_server/preprocess.py"
    copy = REPOSITORY / "preprocess/1/preprocess.py"
    assert copy.read_bytes() == source.read_bytes(), "run `make format`, which copies it"


def test_ensemble_joins_tensors_that_fit():
    preprocess, classify = config("preprocess"), config("classify")
    first, second = classify.ensemble_scheduling.step
    assert (first.model_name, second.model_name) == ("preprocess", "alexnet")
    assert dict(first.input_map) == {preprocess.input[0].name: classify.input[0].name}
    assert dict(second.input_map) == {"images": first.output_map[preprocess.output[0].name]}
    assert dict(second.output_map) == {"probabilities": classify.output[0].name}
    assert classify.max_batch_size <= preprocess.max_batch_size


class _Tensor:
    def __init__(self, name, array):
        self.name, self.array = name, array

    def as_numpy(self):
        return self.array


class _Response:
    def __init__(self, output_tensors=(), error=None):
        self.tensors, self.error = output_tensors, error


class _TritonError:
    INVALID_ARG = 3
    UNAVAILABLE = 5

    def __init__(self, message, code):
        self.message, self.code = message, code


@pytest.fixture
def execute(monkeypatch):
    """`preprocess/1/model.py` with the few names it uses of Triton's module; lists of photos -> responses."""
    triton = types.ModuleType("triton_python_backend_utils")
    triton.Tensor, triton.InferenceResponse, triton.TritonError = _Tensor, _Response, _TritonError
    triton.get_input_tensor_by_name = lambda request, name: _Tensor(name, request)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    monkeypatch.syspath_prepend(REPOSITORY / "preprocess/1")
    for name in ("model", "preprocess"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import model

    yield lambda *requests: model.TritonPythonModel().execute(
        [np.array(photos, dtype=object).reshape(-1, 1) for photos in requests]
    )
    for name in ("model", "preprocess"):
        sys.modules.pop(name, None)


def test_each_request_gets_its_own_answer(execute):
    photo = (CHECKOUT / "tests/data/cc0/cat.jpg").read_bytes()
    good, bad, mixed = execute([photo], [photo[:1000]], [photo, b"text", photo, b""])
    np.testing.assert_array_equal(good.tensors[0].array, prepare(photo)[None])
    assert bad.error.message.startswith("undecodable: ")
    assert bad.error.code == _TritonError.INVALID_ARG
    assert "row 1: unsupported_format: " in mixed.error.message
    assert "row 3: undecodable: " in mixed.error.message
    assert "row 0" not in mixed.error.message


def test_lack_of_memory_fails_one_request(execute, monkeypatch):
    photo = (CHECKOUT / "tests/data/cc0/cat.jpg").read_bytes()

    def prepare_or_fail(data):
        if data == b"huge":
            raise MemoryError
        return prepare(data)

    monkeypatch.setattr(sys.modules["model"], "prepare", prepare_or_fail)
    huge, good = execute([photo, b"huge"], [photo])
    assert huge.error.code == _TritonError.UNAVAILABLE
    assert good.error is None
