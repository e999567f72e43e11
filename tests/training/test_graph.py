import dataclasses

import numpy as np
import onnx
import pytest
import torch
import torch_reference as reference
from onnx import TensorProto, helper
from PIL import Image

from alexnet_server.models.export.enlarge import cubic_matrix
from alexnet_server.models.export.graph import VIEWS, Architecture, serving_graph
from alexnet_server.models.export.layers import Float, Nodes
from alexnet_server.models.export.weights import random_weights, scaled, serving_model
from alexnet_server.models.graphs import fill
from alexnet_server.models.variants import VARIANTS, ResponseNorm
from bench.plain_lrn import plain_graph
from tests.numerics import logits_size, probability_rounding, rounding, terms

pytestmark = pytest.mark.numerics
CLASSES = 7
ROOTS = 4
"""Steps of a norm behind its sum: two square roots, a product, a division."""


def tiny(name, **changes):
    weights = random_weights(scaled(VARIANTS[name], 8, hidden=96), CLASSES)
    return dataclasses.replace(weights, **changes) if changes else weights


def same(found, expected, count):
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding(count, expected))


def same_probabilities(found, expected, weights, features):
    size = logits_size(weights.tensors["fc8.weight"], features)
    atol = probability_rounding(terms(weights.tensors), expected, logits=size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def with_output(model, name):
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return model


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graph_is_valid_and_weightless(view, precision):
    graph = serving_graph(Architecture(VARIANTS["2012"], 200), view, precision)
    assert len(graph.SerializeToString()) < 250_000
    onnx.checker.check_model(serving_model(tiny("2012"), view, precision), full_check=True)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("view", ["center", "ten"])
def test_views_equal_explicit_crops(name, view, photos, run_onnx):
    weights = tiny(name)
    probabilities, features = run_onnx(serving_model(weights, view), photos)
    for photo, row, hidden in zip(photos, probabilities, features, strict=True):
        expected, expected_hidden = reference.classify(photo, weights, view)
        same_probabilities(row, expected, weights, expected_hidden)
        same(hidden, expected_hidden, terms(weights.tensors))
    assert probabilities.std(axis=0).max() > 0.01, "photos must be told apart for this test to mean anything"


def test_each_part_of_the_function_moves_the_result(photos, run_onnx):
    """The comparison above can fail: leave out or change one part and the probabilities are others."""
    weights = tiny("2012")
    variant = weights.variant
    probabilities = run_onnx(serving_model(weights, "center"), photos)[0]
    others = [
        dataclasses.replace(weights, variant=dataclasses.replace(variant, **change))
        for change in (
            {"lrn": ResponseNorm(k=2.0, alpha=0.0)},
            {"lrn_per_tower": False},
            {"spatial_norm": None},
            {"conv1_padding": (2, 1)},
            {"layer1": ("relu", "lrn", "pool")},
        )
    ] + [dataclasses.replace(weights, mean=weights.mean + np.float32(5))]
    for other in others:
        assert np.abs(run_onnx(serving_model(other, "center"), photos)[0] - probabilities).max() > 2e-4


def test_std_and_pixel_mean_are_folded_exactly(photos, run_onnx):
    mean, std = np.array([124, 117, 104], np.float32), np.array([58, 57, 55], np.float32)
    weights = tiny("caffe", mean=mean, std=std)
    tensors = dict(weights.tensors) | {"conv1.weight": weights.tensors["conv1.weight"] * 50}
    weights = dataclasses.replace(weights, tensors=tensors)
    probabilities, _ = run_onnx(serving_model(weights, "center"), photos)
    expected, features = reference.classify(photos[0], weights)
    same_probabilities(probabilities[0], expected, weights, features)


def test_temperature_is_of_one_view(photos, run_onnx):
    weights = tiny("2012", temperature={"center": 2.5})
    plain = run_onnx(serving_model(tiny("2012"), "ten"), photos)[0]
    np.testing.assert_array_equal(run_onnx(serving_model(weights, "ten"), photos)[0], plain)
    probabilities = run_onnx(serving_model(weights, "center"), photos)[0]
    expected, features = reference.classify(photos[0], weights, temperature=2.5)
    same_probabilities(probabilities[0], expected, weights, features)


def norm_model(nodes, output):
    shape = ["N", 12, "H", "W"]
    graph = helper.make_graph(
        nodes.nodes,
        "norm",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        list(nodes.initializers.values()),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("towers", [1, 2])
def test_banded_lrn_is_the_formula(towers, run_onnx):
    norm, nodes = ResponseNorm(k=2.0, alpha=3e-2), Nodes()
    Float(nodes, {}).lrn("images", norm, 12, towers)
    x = np.random.default_rng(0).normal(0, 9, (2, 12, 5, 4)).astype(np.float32)
    expected = reference.lrn(torch.from_numpy(x.astype(np.float64)), norm, towers)
    same(run_onnx(norm_model(nodes, "images.lrn"), x)[0], expected.numpy(), norm.size + ROOTS)


@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_spatial_norm_is_the_formula(beta, run_onnx):
    norm, nodes = ResponseNorm(k=1.0, alpha=2e-2, beta=beta), Nodes()
    Float(nodes, {}).spatial_norm("images", norm, 12)
    x = np.random.default_rng(0).normal(0, 9, (2, 12, 7, 6)).astype(np.float32)
    expected = reference.spatial_norm(torch.from_numpy(x.astype(np.float64)), norm)
    same(run_onnx(norm_model(nodes, "images.norm"), x)[0], expected.numpy(), norm.size**2 + ROOTS)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("mirror", [False, True])
def test_dense_cells_that_no_padding_reaches_are_exact(name, mirror, photos, run_onnx):
    """Cells 0-6 of a window at the photo's edge, 5-12 of one at its far edge and 5-6 of the centre are a
    crop's."""
    weights = tiny(name, mean=np.array([120.0, 115.0, 100.0], np.float32))
    model = with_output(serving_model(weights, "dense"), "conv5.relu")
    cells = run_onnx(model, photos[:1], ["conv5.relu"])[0][int(mirror)]
    assert cells.shape[1:] == (15, 15)
    photo = photos[0][:, ::-1] if mirror else photos[0]
    exact = {0: slice(0, 7), 1: slice(5, 7), 2: slice(5, 13)}
    fitting = [cell for cell in reference.CELLS if max(cell) * 16 + weights.variant.crop <= 256]
    assert len(fitting) == (2 if weights.variant.crop == 227 else 5)
    for row, column in fitting:
        crop = reference.crop_input(photo, weights, row * 16, column * 16)[None]
        expected = reference.pool5(crop, weights.variant, reference.doubles(weights), layer5=("relu",))[
            0
        ].numpy()
        found = cells[:, row : row + 13, column : column + 13]
        inside = np.s_[:, exact[row], exact[column]]
        same(found[inside], expected[inside], terms(weights.tensors))
        assert np.abs(found - expected).max() > 1e-2 * expected.max(), "the border sees pixels, not padding"


def test_dense_windows_are_those_of_conv5(photos, run_onnx):
    """Windows, pooling and their order against slices of the graph's own conv5, pooled by PyTorch."""
    weights = tiny("2012")
    model = with_output(serving_model(weights, "dense"), "conv5.relu")
    probabilities, features, cells = run_onnx(model, photos, ["probabilities", "features", "conv5.relu"])
    tensors, cells = reference.doubles(weights), torch.from_numpy(cells.astype(np.float64))
    total = 0
    for row, column in reference.CELLS:  # the last is the centre, whose features are served
        window = cells[:, :, row : row + 13, column : column + 13]
        logits, hidden = reference.head(torch.nn.functional.max_pool2d(window, 3, 2), tensors)
        total = total + logits.softmax(1).view(2, len(photos), CLASSES).sum(0)
    same_probabilities(probabilities, total.numpy() / 10, weights, hidden)
    same(features, hidden[: len(photos)].numpy(), terms(weights.tensors))


def seen_through_64(photo):
    small = photo.reshape(64, 4, 64, 4, 3).astype(np.float64).mean((1, 3))
    small = Image.fromarray(np.rint(small).astype(np.uint8))
    return np.asarray(small.resize((256, 256), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("view", VIEWS)
def test_source_size_reduces_and_enlarges_like_pillow(view, photos, run_onnx):
    weights = tiny("2012", source_size=64)
    model = with_output(serving_model(weights, view), "source.down.levels")
    probabilities, levels = run_onnx(model, photos, ["probabilities", "source.down.levels"])
    expected = np.stack([seen_through_64(photo) for photo in photos])
    assert np.abs(levels.transpose(0, 2, 3, 1) - expected).max() <= 3
    np.testing.assert_array_equal(levels, np.rint(levels))
    direct = run_onnx(serving_model(dataclasses.replace(weights, source_size=None), view), expected)[0]
    np.testing.assert_allclose(probabilities, direct, atol=2e-3)


def test_training_and_serving_enlarge_alike(run_onnx):
    """4x4 blocks of equal pixels hold a 64-pixel image exactly; the graph then sees what training saw of
    it."""
    source = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    model = with_output(serving_model(tiny("2012", source_size=64), "center"), "source.down.levels")
    levels = run_onnx(model, source.repeat(4, 0).repeat(4, 1)[None], ["source.down.levels"])[0][0]
    matrix = cubic_matrix(256, 64)
    across = np.clip(np.rint(np.einsum("xj,yjc->yxc", matrix, source.astype(np.float32))), 0, 255)
    down = np.clip(np.rint(np.einsum("yj,jxc->cyx", matrix, across)), 0, 255)
    assert np.abs(levels - down).max() <= 1  # a sum that ends in .5 may round either way
    assert (levels == down).mean() > 0.999


@pytest.mark.parametrize("view", VIEWS)
def test_fp16_is_close_and_keeps_the_types_outside(view, photos, run_onnx):
    exact = run_onnx(serving_model(tiny("2012"), view), photos)
    half = run_onnx(serving_model(tiny("2012"), view, "fp16"), photos)
    assert [a.dtype for a in half] == [np.float32, np.float32]
    np.testing.assert_allclose(half[0], exact[0], atol=5e-3)


def test_wrong_weights_are_named():
    weights = tiny("2012")
    some = {name: tensor for name, tensor in weights.tensors.items() if name != "fc7.bias"}
    with pytest.raises(ValueError, match=r"fc7.bias is missing"):
        dataclasses.replace(weights, tensors=some)
    with pytest.raises(ValueError, match=r"conv3.weight has shape \(2, 2\)"):
        dataclasses.replace(
            weights, tensors={**weights.tensors, "conv3.weight": np.zeros((2, 2), np.float32)}
        )
    with pytest.raises(ValueError, match=r"mean has shape"):
        dataclasses.replace(weights, mean=np.zeros((3, 224, 224), np.float32))


@pytest.mark.parametrize("view", VIEWS)
def test_banded_norms_are_onnxs_own_operators(view, photos, run_onnx):
    """The graph with plain `LRN` operators, which the bench compares with, is the same function."""
    weights = tiny("2012")
    plain = fill(plain_graph(weights.architecture, view), weights.served())
    assert sum(node.op_type == "LRN" for node in plain.graph.node) == 4
    ours, theirs = run_onnx(serving_model(weights, view), photos), run_onnx(plain, photos)
    same_probabilities(ours[0], theirs[0], weights, theirs[1])
    same(ours[1], theirs[1], terms(weights.tensors))
