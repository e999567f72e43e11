"""Importers end to end: files in the genuine layouts, but small, against other people's readers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from caffe_files import _blob, _field, _varint, caffemodel, first_generation, prototxt
from importing import CLASSES, run, served, small, zoo_model
from onnx import helper, numpy_helper

from alexnet_server.models.public import caffe, onnx_graph, torchvision
from alexnet_server.models.public.errors import WeightsError
from alexnet_server.models.public.network import CAFFE_MEAN, TORCHVISION_MEAN, TORCHVISION_STD
from alexnet_server.models.public.onnx_graph import ZOO_MEAN
from alexnet_server.models.variants import ResponseNorm
from tests.numerics import probability_rounding, rounding, terms


def softmax(logits):
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def same(found, expected, weights):
    atol = probability_rounding(terms(weights.tensors), expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def centre(photo, side):
    start = (256 - side) // 2
    return photo[start : start + side, start : start + side].astype(np.float32)


# Caffe


@pytest.mark.numerics
@pytest.mark.parametrize("name", ["caffe", "caffenet"])
def test_a_caffemodel_is_served_as_opencv_reads_it(name, photos, labels, tmp_path):
    cv2 = pytest.importorskip("cv2")
    weights = small(name)
    variant = weights.variant
    (tmp_path / "net.prototxt").write_text(prototxt(variant, variant.hidden, CLASSES))
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(dict(weights.tensors)))
    theirs = cv2.dnn.readNetFromCaffe(str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel"))
    repository = tmp_path / "models"
    assert (
        run(tmp_path / "net.caffemodel", "--variant", name, "--repository", repository, "--labels", labels)
        == 0
    )
    for photo, found in zip(photos, served(repository, photos), strict=True):
        x = centre(photo, 227)[:, :, ::-1] - CAFFE_MEAN[::-1]
        theirs.setInput(x.transpose(2, 0, 1)[None].copy())
        same(found, softmax(theirs.forward()[0]), weights)


@pytest.mark.parametrize(("order", "name"), [(("norm1", "pool1"), "caffe"), (("pool1", "norm1"), "caffenet")])
def test_the_first_generation_of_caffemodels(order, name, tmp_path):
    weights = small(name)
    path = tmp_path / "old.caffemodel"
    path.write_bytes(first_generation(dict(weights.tensors), order=order))
    network = caffe.read(path, None)
    assert network.variant == replace(weights.variant)
    for tensor, value in weights.tensors.items():
        np.testing.assert_array_equal(network.tensors[tensor], value)
    with pytest.raises(WeightsError, match=f"is a {name}, by the order of its layers"):
        caffe.read(path, "caffenet" if name == "caffe" else "caffe")


def test_a_caffemodels_own_norm_is_used(tmp_path):
    norm = (
        _varint(1 << 3)
        + _varint(3)
        + b"".join(
            _varint(field << 3 | 5) + np.float32(value).tobytes()
            for field, value in ((2, 5e-4), (3, 0.5), (5, 2.0))
        )
    )
    path = tmp_path / "other.caffemodel"
    path.write_bytes(first_generation(dict(small("caffe").tensors), norm))
    assert caffe.read(path, None).variant.lrn == ResponseNorm(k=2.0, alpha=5e-4 / 3, beta=0.5, size=3)


@pytest.mark.numerics
def test_a_mean_image_replaces_the_mean_pixel(photos, labels, tmp_path):
    weights = small("caffe")
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(dict(weights.tensors)))
    mean = (
        np.random.default_rng(0).uniform(90, 140, (3, 256, 256)).astype(np.float32)
    )  # BGR, as Caffe's tools write
    (tmp_path / "mean.binaryproto").write_bytes(_blob(mean[None]))
    np.save(tmp_path / "mean.npy", mean)
    answers = []
    for file in ("mean.binaryproto", "mean.npy"):
        np.testing.assert_array_equal(caffe.read_mean(tmp_path / file), mean[::-1])
        repository = tmp_path / file.replace(".", "_")
        arguments = ["--variant", "caffe", "--views", "center", "--mean", tmp_path / file, "--labels", labels]
        assert run(tmp_path / "net.caffemodel", "--repository", repository, *arguments) == 0
        answers.append(served(repository, photos))
    np.testing.assert_array_equal(*answers)
    np.save(tmp_path / "wrong.npy", mean[:, :9])
    with pytest.raises(WeightsError, match="the mean has shape"):
        caffe.read_mean(tmp_path / "wrong.npy")


@pytest.mark.parametrize(
    ("shape", "numbers"), [([0, 2**62, 2**62], 0), ([1] * 100, 1), ([2, 3], 5), ([2, 1, 2, 2], 8)]
)
def test_blobs_of_impossible_shapes(shape, numbers, tmp_path):
    dims = _field(7, _field(1, b"".join(map(_varint, shape))))
    blob = _field(5, np.zeros(numbers, "<f4").tobytes()) + dims
    (tmp_path / "mean.binaryproto").write_bytes(blob)
    with pytest.raises(WeightsError, match="mean"):
        caffe.read_mean(tmp_path / "mean.binaryproto")
    layer = _field(1, b"conv1") + _field(7, blob)
    (tmp_path / "net.caffemodel").write_bytes(_field(100, layer))
    with pytest.raises(WeightsError):
        caffe.read(tmp_path / "net.caffemodel", None)


# torchvision


@pytest.mark.numerics
def test_a_pth_is_served_as_torchvisions_layers_compute_it(photos, labels, tmp_path):
    weights = small("owt")
    one, two, three, four, five = weights.variant.channels
    conv, linear, relu, pool = torch.nn.Conv2d, torch.nn.Linear, torch.nn.ReLU, torch.nn.MaxPool2d
    model = torch.nn.Module()
    model.features = torch.nn.Sequential(
        *(conv(3, one, 11, 4, 2), relu(), pool(3, 2), conv(one, two, 5, padding=2), relu(), pool(3, 2)),
        *(conv(two, three, 3, padding=1), relu(), conv(three, four, 3, padding=1), relu()),
        *(conv(four, five, 3, padding=1), relu(), pool(3, 2)),
    )
    model.classifier = torch.nn.Sequential(
        *(torch.nn.Dropout(), linear(five * 36, 96), relu(), torch.nn.Dropout(), linear(96, 96), relu()),
        linear(96, CLASSES),
    )
    state = dict(zip(model.state_dict(), map(torch.from_numpy, weights.tensors.values()), strict=True))
    state = {name: tensor * (55 if name == "features.0.weight" else 1) for name, tensor in state.items()}
    model.load_state_dict(state)
    path, repository = tmp_path / "net.pth", tmp_path / "models"
    torch.save(model.eval().state_dict(), path)
    assert run(path, "--repository", repository, "--labels", labels) == 0
    for photo, found in zip(photos, served(repository, photos), strict=True):
        x = (centre(photo, 224) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.inference_mode():
            pooled = model.features(torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32)))
            expected = model.classifier(pooled.flatten(1)).softmax(1)[0]
        same(found, expected.numpy(), weights)


def test_a_pth_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "it ran",))

    path = tmp_path / "evil.pth"
    torch.save({"features.0.weight": Evil()}, path)
    with pytest.raises(WeightsError, match="read safely"):
        torchvision.read(path)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("content", [{"state": {"a": torch.zeros(1)}}, torch.zeros(3)])
def test_a_pth_of_something_else(content, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        torchvision.read(tmp_path / "other.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"has no conv1\.bias"):
        torchvision.read(tmp_path / "part.pth")


# ONNX


@pytest.mark.numerics
@pytest.mark.parametrize("name", ["caffe", "caffenet"])
def test_a_zoo_model_is_served_as_onnxruntime_runs_it(name, photos, labels, tmp_path):
    path, repository = tmp_path / "zoo.onnx", tmp_path / "models"
    weights = small(name)
    onnx.save(zoo_model(weights), path)
    assert run(path, "--repository", repository, "--labels", labels) == 0
    theirs = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for photo, found in zip(photos, served(repository, photos), strict=True):
        x = centre(photo, 224)[:, :, ::-1] - ZOO_MEAN[::-1]
        expected = theirs.run(None, {"data_0": x.transpose(2, 0, 1)[None].copy()})[0][0]
        same(found, expected, weights)
    dense = served(repository, photos[:1], "alexnet_dense")
    assert dense.shape == (1, CLASSES)
    np.testing.assert_allclose(dense.sum(), 1, atol=rounding(10 * CLASSES, 1))


def test_torchvisions_onnx_is_read_by_its_structure(tmp_path):
    """The zoo's ``alexnet_Opset17``: one group, no norms, whatever its tensors are called."""
    weights = small("owt")
    model = zoo_model(replace(weights, variant=replace(weights.variant)))
    graph = model.graph
    convolution = next(node for node in graph.node if node.op_type == "Conv")
    next(a for a in convolution.attribute if a.name == "pads").CopyFrom(
        helper.make_attribute("pads", [2] * 4)
    )
    for node in graph.node:  # transposed weights, as some exporters write them
        if node.op_type == "Gemm" and node.input[1] == "fc8_w_0":
            del node.attribute[:]
            tensor = next(t for t in graph.initializer if t.name == "fc8_w_0")
            tensor.CopyFrom(numpy_helper.from_array(weights.tensors["fc8.weight"].T.copy(), "fc8_w_0"))
    onnx.save(model, tmp_path / "owt.onnx")
    network = onnx_graph.read(tmp_path / "owt.onnx")
    assert network.variant == weights.variant
    np.testing.assert_array_equal(network.mean, TORCHVISION_MEAN)
    np.testing.assert_array_equal(network.std, TORCHVISION_STD)
    for tensor, value in weights.tensors.items():
        np.testing.assert_array_equal(network.tensors[tensor], value)


def without_names(graph):
    conv = next(node for node in graph.node if node.op_type == "Conv")
    conv.ClearField("name")
    del conv.output[:], conv.input[1:]


def broken(change):
    model = zoo_model(small("caffe"))
    change(model.graph)
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.node.append(helper.make_node("QLinearConv", [], ["x"])), "QLinearConv does not occur"),
        (lambda g: g.node.remove(next(n for n in g.node if n.op_type == "Gemm")), "its layers are Conv"),
        (
            lambda g: g.node.remove(next(n for n in g.node if n.op_type == "LRN")),
            "is not caffe, caffenet or owt",
        ),
        (lambda g: g.initializer.remove(g.initializer[0]), "has no constant weight and bias"),
        (without_names, "Conv  has no constant weight and bias"),
        (lambda g: g.input.pop(), "images of 0 and pads of 4 numbers"),
        (lambda g: g.input[0].type.tensor_type.shape.dim.pop(), "images of 3 and pads of 4 numbers"),
    ],
)
def test_graphs_that_are_no_alexnet(change, message, tmp_path):
    onnx.save(broken(change), tmp_path / "x.onnx")
    with pytest.raises(WeightsError, match=message):
        onnx_graph.read(tmp_path / "x.onnx")
