"""ONNX Runtime with small real graphs."""

import numpy as np
import onnx
import onnxruntime
import pytest

from alexnet_server.engines.onnx import OnnxEngine
from alexnet_server.errors import StartError
from alexnet_server.loading import open_onnx
from alexnet_server.models.repository import read_repository
from alexnet_server.settings import load_settings
from tests.server.fakes import fake_model


@pytest.fixture(scope="module")
def engine(tiny_repository):
    engine = open_onnx(load_settings(["--model-repository", str(tiny_repository), "--engine-threads=1"]))
    yield engine
    engine.close()


def test_it_describes_what_the_repository_holds(engine, tiny_repository):
    entries = read_repository(tiny_repository).models
    assert engine.models.keys() == entries.keys() == {"alexnet", "alexnet_10crop", "alexnet_dense"}
    assert engine.device == "cpu"
    assert engine.shares_cores
    for name, model in engine.models.items():
        assert model.about["precision"] == "int8"
        assert model.about["sha256"]["weights"] == entries[name].weights_sha256
        assert model.max_batch_size == entries[name].max_batch_size
        assert model.device == "cpu"
    assert [engine.models[name].views for name in ("alexnet", "alexnet_10crop", "alexnet_dense")] == [
        1,
        10,
        10,
    ]


@pytest.mark.numerics
@pytest.mark.parametrize("name", ["alexnet", "alexnet_10crop", "alexnet_dense"])
def test_its_answers_are_the_graphs(engine, tiny_repository, photos, name):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the engine's: in another order of sums, a tie in int8 is a step
    session = onnxruntime.InferenceSession(
        str(tiny_repository / name / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    probabilities, features = session.run(["probabilities", "features"], {"images": photos})
    outputs = engine.infer(name, photos, features=True)
    np.testing.assert_array_equal(outputs.probabilities, probabilities)
    np.testing.assert_array_equal(outputs.features, features)
    assert engine.infer(name, photos, features=False).features is None


def test_warming_up_measures_every_model(engine):
    measured = engine.warm_up()
    assert {name: rows for name, (rows, _) in measured.items()} == {
        "alexnet": 8,
        "alexnet_10crop": 1,
        "alexnet_dense": 1,
    }
    assert all(seconds > 0 for _, seconds in measured.values())


def open_file(path, **changes):
    return OnnxEngine([fake_model(**changes)], {"alexnet": path}, device="cpu", threads=1)


def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"hello")
    with pytest.raises(StartError, match=r"cannot load .*model\.onnx"):
        open_file(path)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(StartError, match="cannot load"):
        open_file(tmp_path / "model.onnx")


def test_labels_of_another_model(tiny_repository):
    labels = fake_model().labels[:-1]
    with pytest.raises(StartError, match=r"tells 10 classes apart, its labels\.txt names 9"):
        open_file(tiny_repository / "alexnet" / "1" / "model.onnx", labels=labels)


@pytest.mark.parametrize("key", ["preprocess_version", "labels_sha256", "weights_sha256"])
def test_a_file_of_another_export(tiny_repository, key):
    entry = read_repository(tiny_repository).models["alexnet"]
    about = {
        "preprocess_version": entry.preprocess_version,
        "sha256": {"labels": entry.labels_sha256, "weights": entry.weights_sha256},
    }
    if key == "preprocess_version":
        about["preprocess_version"] = "0"
    else:
        about["sha256"][key.removesuffix("_sha256")] = "f" * 64
    with pytest.raises(StartError, match=rf"does not belong to its config\.pbtxt: {key}"):
        open_file(entry.onnx, about=about)


def test_other_inputs_and_outputs(tmp_path, tiny_repository):
    model = onnx.load(tiny_repository / "alexnet" / "1" / "model.onnx")
    model.graph.output.pop()
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(StartError, match="must give probabilities and features"):
        open_file(tmp_path / "model.onnx")


def test_cuda_where_there_is_none(tiny_repository):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(StartError, match="--device cuda: ONNX Runtime could not load CUDA"):
        open_onnx(load_settings(["--device=cuda", "--model-repository", str(tiny_repository)]))
