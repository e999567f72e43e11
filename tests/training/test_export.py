import dataclasses
import hashlib
import json
import os
import shutil

import numpy as np
import onnx
import pytest
import torch_reference

from alexnet_server.models.export.graph import MODEL_NAMES, VIEWS
from alexnet_server.models.export.quantize import fit
from alexnet_server.models.export.triton_config import MAX_BATCH
from alexnet_server.models.export.weights import random_weights, scaled
from alexnet_server.models.export.write import ExportError, Plan, Reference, export, packed_weights
from alexnet_server.models.repository import read_config, read_repository
from alexnet_server.models.unpack import unpack
from alexnet_server.models.variants import VARIANTS
from tests.numerics import probability_rounding, terms
from tests.repositories import CARD, write_repository


@pytest.fixture(scope="module")
def weights():
    return random_weights(scaled(VARIANTS["2012"], 8, 96), 10, mean="pixel")


@pytest.fixture(scope="module")
def quantised(weights):
    return fit(weights.served(), budget=100_000)


def reference(weights, quantised, photos):
    """The network as PyTorch computes it, from the weights as packed."""
    served = packed_weights(weights, quantised)
    rows = [torch_reference.classify(photo, served)[0] for photo in photos]
    return Reference(photos, {"center": np.stack(rows).astype(np.float32)})


@pytest.mark.numerics
def test_exported_graphs_compute_what_the_network_computes(weights, quantised, photos, tmp_path, run_onnx):
    plan = Plan(weights, CARD, quantised, reference=reference(weights, quantised, photos))
    export(plan, tmp_path / "models")
    paths = unpack(read_repository(tmp_path / "models"), "fp32")
    found = run_onnx(onnx.load(paths["alexnet"]), photos, ["probabilities"])[0]
    expected = plan.reference.probabilities["center"]
    atol = probability_rounding(terms(weights.tensors), expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    assert not (tmp_path / "models" / "alexnet" / "graph.int8.onnx").exists(), "nothing was calibrated"
    assert [p.name for p in tmp_path.iterdir()] == ["models"]


def test_a_volume_is_written_from_within(weights, tmp_path, monkeypatch):
    """A container's volume: beside it is another file system, which the user may not even write."""
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "volume")
    (tmp_path / "volume").mkdir()
    moved, move = [], shutil.move
    monkeypatch.setattr(shutil, "move", lambda source, target: moved.append(source) or move(source, target))
    export(Plan(weights, CARD, {}, ["center"]), tmp_path / "volume")
    assert moved
    assert all(source.is_relative_to(tmp_path / "volume") for source in moved)
    assert read_repository(tmp_path / "volume").models.keys() == {"alexnet"}
    assert not any(path.name.startswith(".") for path in (tmp_path / "volume").iterdir())


def test_an_export_that_differs_from_the_network_is_refused(weights, quantised, photos, tmp_path):
    expected = reference(weights, quantised, photos)
    wrong = dataclasses.replace(expected, probabilities={"center": expected.probabilities["center"][::-1]})
    with pytest.raises(ExportError, match="differs from the network by up to"):
        export(Plan(weights, CARD, quantised, reference=wrong), tmp_path / "models")
    not_a_number = dataclasses.replace(
        expected, probabilities={"center": expected.probabilities["center"] * np.nan}
    )
    with pytest.raises(ExportError, match="differs"):
        export(Plan(weights, CARD, quantised, reference=not_a_number), tmp_path / "models")
    assert not any(tmp_path.iterdir()), "nothing was written"


def test_what_is_packed_is_what_is_served(weights, quantised):
    caffe = random_weights(scaled(VARIANTS["caffe"], 8, 96), 10, mean="pixel")
    caffe = dataclasses.replace(caffe, std=np.array([50.0, 60.0, 70.0], np.float32))
    packed = packed_weights(caffe, {})
    assert packed.variant.channel_order == "RGB"
    expected = caffe.tensors["conv1.weight"][:, ::-1] / caffe.std.reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(packed.tensors["conv1.weight"], expected)
    np.testing.assert_array_equal(packed_weights(weights, quantised).mean, weights.mean)


@pytest.fixture(scope="module")
def repository(exported_repository):
    return read_repository(exported_repository)


@pytest.mark.parametrize("view", VIEWS)
def test_configs_agree_with_graphs(repository, view):
    entry = repository.models[MODEL_NAMES[view]]
    config = read_config(entry.folder / "config.pbtxt")
    types = {"TYPE_UINT8": onnx.TensorProto.UINT8, "TYPE_FP32": onnx.TensorProto.FLOAT}
    kind = config.input[0].DESCRIPTOR.fields_by_name["data_type"].enum_type
    for precision in ("fp32", "fp16", "int8"):
        graph = onnx.load(entry.graph(precision), load_external_data=False)
        declared = [*config.input, *config.output]
        values = [*graph.graph.input, *graph.graph.output]
        assert [v.name for v in declared] == [v.name for v in values]
        for value, tensor in zip(declared, values, strict=True):
            shape = tensor.type.tensor_type
            assert types[kind.values_by_number[value.data_type].name] == shape.elem_type
            assert list(value.dims) == [d.dim_value for d in shape.shape.dim[1:]]
            assert shape.shape.dim[0].dim_param == "N"
        metadata = {prop.key: prop.value for prop in graph.metadata_props}
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        assert metadata == {**parameters, "precision": precision}


@pytest.mark.parametrize("view", VIEWS)
def test_configs_bound_queues_and_warm_up(repository, view):
    folder = repository.models[MODEL_NAMES[view]].folder
    configs = {
        p.stem: read_config(p) for p in [folder / "config.pbtxt", *sorted((folder / "configs").iterdir())]
    }
    assert set(configs) == {"config", "cpu", "tensorrt"}
    for config in configs.values():
        assert config.name == MODEL_NAMES[view]
        assert config.max_batch_size == MAX_BATCH[view] == entry_batch(repository, view)
        policy = config.dynamic_batching.default_queue_policy
        assert policy.max_queue_size >= config.max_batch_size
        assert policy.default_timeout_microseconds > 0
        assert [w.batch_size for w in config.model_warmup] == [1, config.max_batch_size]
        assert config.output[0].label_filename == "labels.txt"
    kinds = {name: config.instance_group[0].kind for name, config in configs.items()}
    group = configs["cpu"].instance_group[0]
    assert kinds == {"config": group.KIND_GPU, "cpu": group.KIND_CPU, "tensorrt": group.KIND_GPU}
    accelerators = configs["tensorrt"].optimization.execution_accelerators.gpu_execution_accelerator
    assert [a.name for a in accelerators] == ["tensorrt"]


def entry_batch(repository, view):
    return repository.models[MODEL_NAMES[view]].max_batch_size


def test_card_and_page(repository):
    card = json.loads((repository.path / "card.json").read_text())
    weight_file = repository.path / card["weights"]["file"]
    assert card["weights"]["bytes"] == weight_file.stat().st_size
    assert card["weights"]["sha256"] == hashlib.sha256(weight_file.read_bytes()).hexdigest()
    assert set(card["models"]) == set(MODEL_NAMES.values())
    page = (repository.path / "README.md").read_text()
    assert page.startswith("# AlexNet for tests\n")
    assert "| noise (10) | ten | fp32 | 10.0 % | 50.0 % | – |" in page
    assert card["weights"]["sha256"] in page


def test_exporting_again_gives_the_same_bytes_and_keeps_other_models(exported_repository, tmp_path):
    folder = tmp_path / "models"
    other = folder / "somebody_elses" / "config.pbtxt"
    other.parent.mkdir(parents=True)
    other.write_text('platform: "ensemble"\n')
    write_repository(folder)
    for path in exported_repository.rglob("*"):
        if path.is_file():
            assert (folder / path.relative_to(exported_repository)).read_bytes() == path.read_bytes(), path
    assert other.exists()


def test_fewer_views(tmp_path):
    write_repository(tmp_path / "models", views=("center",))
    assert set(read_repository(tmp_path / "models").models) == {"alexnet"}
