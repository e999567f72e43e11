"""The models that only Triton serves, as files: in step with their sources and with each other."""

from __future__ import annotations

import hashlib
import shutil
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from alexnet_server.models.unpack import write_preprocess
from alexnet_server.preprocess import prepare
from tests.repositories import write_repository
from tests.triton.repositories import CHECKOUT

REPOSITORY = CHECKOUT / "model_repository"


def config(model: str) -> model_config_pb2.ModelConfig:
    text = (REPOSITORY / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8"}
"""ONNX's numbers of the element types we use, in Triton's words."""


def tensors(infos: Iterable[onnx.ValueInfoProto]) -> dict[str, tuple[str, list[int]]]:
    """Type and shape behind the batch dimension, by name, of a graph's inputs or outputs."""
    return {
        info.name: (
            TYPES[info.type.tensor_type.elem_type],
            [dim.dim_value for dim in info.type.tensor_type.shape.dim][1:],
        )
        for info in infos
    }


def configured(tensors: Iterable[Any]) -> dict[str, tuple[str, list[int]]]:
    return {
        tensor.name: (model_config_pb2.DataType.Name(tensor.data_type), list(tensor.dims))
        for tensor in tensors
    }


def configs(model: Path) -> dict[str, model_config_pb2.ModelConfig]:
    files = [model / "config.pbtxt", *(model / "configs").glob("*.pbtxt")]
    return {file.stem: text_format.Parse(file.read_text(), model_config_pb2.ModelConfig()) for file in files}


@pytest.mark.parametrize("name", ["alexnet", "alexnet_10crop", "alexnet_dense"])
def test_shipped_configs_fit_their_graphs(name):
    found = configs(REPOSITORY / name)
    assert set(found) == {"config", "cpu", "tensorrt"}
    graphs = [onnx.load(path, load_external_data=False).graph for path in (REPOSITORY / name).glob("*.onnx")]
    assert graphs
    for config in found.values():
        assert config.name == name
        for graph in graphs:
            assert configured(config.input) == tensors(graph.input)
            assert configured(config.output) == tensors(graph.output)
        labels = (REPOSITORY / name / config.output[0].label_filename).read_text().splitlines()
        assert [len(labels)] == config.output[0].dims
        policy = config.dynamic_batching.default_queue_policy
        assert policy.max_queue_size >= config.max_batch_size
        assert policy.default_timeout_microseconds > 0
        assert policy.timeout_action == policy.REJECT
        assert config.model_warmup


@pytest.mark.parametrize("name", ["alexnet", "alexnet_10crop", "alexnet_dense"])
def test_variants_differ_in_where_they_run_alone(name):
    found = configs(REPOSITORY / name)
    kinds = {key: config.instance_group[0].kind for key, config in found.items()}
    group = model_config_pb2.ModelInstanceGroup
    assert kinds == {"config": group.KIND_GPU, "cpu": group.KIND_CPU, "tensorrt": group.KIND_GPU}
    for config in found.values():
        config.ClearField("instance_group")
        config.ClearField("optimization")
    assert found["cpu"] == found["config"] == found["tensorrt"]


@pytest.fixture(params=["shipped", "exported"])
def repository(request) -> Path:
    """The model that ships, and one as training has just written it."""
    return REPOSITORY if request.param == "shipped" else request.getfixturevalue("exported_repository")


def test_classify_has_the_labels_of_alexnet(repository):
    labels = (repository / "alexnet/labels.txt").read_bytes()
    assert (repository / "classify/labels.txt").read_bytes() == labels
    config = configs(repository / "alexnet")["config"]
    assert config.parameters["labels_sha256"].string_value == hashlib.sha256(labels).hexdigest()


def test_every_version_folder_would_survive_git_and_the_wheel(repository):
    """Neither keeps an empty folder, and Triton wants one for each model."""
    assert any((repository / "classify/1").iterdir())


def test_exporting_again_keeps_what_an_operator_set(tmp_path):
    write_repository(tmp_path, golden=None, views=("center",))
    config = tmp_path / "preprocess/config.pbtxt"
    config.write_text(config.read_text().replace("count: 4", "count: 8"))
    write_repository(tmp_path, golden=None, views=("center",), classes=7)
    assert "count: 8" in config.read_text()
    assert len((tmp_path / "classify/labels.txt").read_text().splitlines()) == 7


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
def execute(monkeypatch, tmp_path):
    """`preprocess/1/model.py` with the few names it uses of Triton's module; lists of photos -> responses."""
    triton = types.ModuleType("triton_python_backend_utils")
    triton.Tensor, triton.InferenceResponse, triton.TritonError = _Tensor, _Response, _TritonError
    triton.get_input_tensor_by_name = lambda request, name: _Tensor(name, request)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    shutil.copytree(REPOSITORY / "preprocess", tmp_path / "preprocess")
    write_preprocess(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "preprocess/1")
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
