"""Integer arithmetic is exact on this machine's cores, and the 8-bit network is close to the network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from alexnet_server.models.export.calibrate import calibrate
from alexnet_server.models.export.graph import VIEWS, Architecture, serving_graph
from alexnet_server.models.export.layers import Float, Int8, Nodes, Range
from alexnet_server.models.export.quantize import quantise_rows
from alexnet_server.models.export.weights import random_weights, scaled, serving_model
from alexnet_server.models.graphs import fill, row_codes, row_scales
from alexnet_server.models.variants import VARIANTS

pytestmark = pytest.mark.numerics


def model_of(nodes, output, shape):
    graph = helper.make_graph(
        nodes.nodes,
        "layer",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        list(nodes.initializers.values()),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def extreme_weight(shape, seed=0):
    """Mostly the largest code, so that sums of products come as near to saturation as they can."""
    rng = np.random.default_rng(seed)
    codes = rng.choice([-64, -63, 64, 63, 64, 64], shape)
    codes.reshape(len(codes), -1)[:, 0] = 64  # every row's maximum: its scale is known
    codes[::2] = np.abs(codes[::2])
    return (codes * 0.001).astype(np.float32), codes.astype(np.int64)


@pytest.mark.parametrize("rows", [1, 7, 32])
def test_linear_layers_do_not_saturate(rows, run_onnx):
    """255 * 64 twice over stays in 16 bits; 255 * 127 would not, and half of all outputs would be wrong."""
    weight, codes = extreme_weight((40, 1152))
    bias = np.linspace(-3, 3, 40, dtype=np.float32)
    nodes = Nodes()
    shapes = {"fc6.weight": weight.shape, "fc6.bias": bias.shape}
    output = Int8(nodes, shapes, {"fc6.in": Range(0, 255.0)}).linear("images", "fc6")
    model = fill(model_of(nodes, output, [1152]), {"fc6.weight": weight, "fc6.bias": bias})
    x = np.full((rows, 1152), 255.0, np.float32)
    x[:, ::5] = np.random.default_rng(1).integers(0, 256, (rows, 231))
    scale = row_scales(weight).astype(np.float64)
    total = x.astype(np.int64) @ codes.T + np.rint(bias / scale).astype(np.int64)
    np.testing.assert_allclose(run_onnx(model, x)[0], total * scale, rtol=1e-5)


@pytest.mark.parametrize(("groups", "batch"), [(1, 1), (2, 3)])
def test_convolutions_do_not_saturate(groups, batch, run_onnx):
    weight, codes = extreme_weight((32, 64 // groups, 3, 3))
    bias = np.zeros(32, np.float32)
    nodes = Nodes()
    layer = Int8(
        nodes,
        {"conv3.weight": weight.shape, "conv3.bias": bias.shape},
        {"conv3.in": Range(0, 255.0), "conv3.out": Range(-10_000.0, 10_000.0)},
    )
    output = layer.conv("images", "conv3", groups, (1, 1), relu=False)
    model = fill(model_of(nodes, output, [64, 13, 13]), {"conv3.weight": weight, "conv3.bias": bias})
    x = np.random.default_rng(1).choice([255, 254, 255, 0], (batch, 64, 13, 13), p=[0.5, 0.3, 0.15, 0.05])
    total = torch.nn.functional.conv2d(
        torch.from_numpy(x.astype(np.float64)),
        torch.from_numpy(codes.astype(np.float64)),
        padding=1,
        groups=groups,
    ).numpy()
    grid = layer.ranges["conv3.out"]
    exact = total * row_scales(weight).reshape(1, -1, 1, 1).astype(np.float64)
    expected = np.clip(np.rint(exact / grid.scale) + grid.zero_point, 0, 255) - grid.zero_point
    found = run_onnx(model, x.astype(np.float32))[0] / grid.scale
    assert np.abs(found - expected).max() <= 1.001, "one step, where a tie is rounded the other way"
    assert (np.abs(found - expected) < 0.01).mean() > 0.999


def test_codes_of_the_graph_are_those_of_the_weight_file():
    """A convolution quantised to 65 levels is served in int8 without a second rounding."""
    weight = np.random.default_rng(0).normal(size=(8, 5, 3, 3)).astype(np.float32)
    quantised = quantise_rows(weight, 32)
    served = quantised.dequantise()
    codes, scales = row_codes(served, row_scales(served)), row_scales(served)
    np.testing.assert_allclose(codes * scales.reshape(-1, 1, 1, 1), served, rtol=1e-6, atol=1e-9)


def test_range_keeps_zero_exact():
    for low, high in [(0, 3.7), (-1.3, 2.9), (-5, -1), (2, 4), (0, 0)]:
        limits = Range(low, high)
        zero = limits.zero_point
        assert 0 <= zero <= 255
        assert limits.scale > 0
        assert (0 - zero) * limits.scale <= min(low, 0) + limits.scale
        assert (255 - zero) * limits.scale >= max(high, 0) - limits.scale


@pytest.fixture(scope="module")
def calibrated(photos):
    weights = random_weights(scaled(VARIANTS["2012"], 8, 96), 7)
    return weights, calibrate(weights, photos)


def test_calibration_covers_every_layer_but_clips_outliers(photos, calibrated):
    weights, ranges = calibrated
    layers = [f"conv{i}" for i in range(1, 6)] + ["fc6", "fc7", "fc8"]
    assert set(ranges) == {f"{layer}.in" for layer in layers} | {f"{layer}.out" for layer in layers[:5]}
    assert ranges["conv1.out"].low < 0, "LRN comes before ReLU in the first layer of 2012"
    assert all(r.low == 0 < r.high for name, r in ranges.items() if not name.startswith("conv1"))
    narrow = calibrate(weights, photos, percentile=99.0)
    assert narrow["conv3.out"].high < ranges["conv3.out"].high


def test_calibration_needs_photos(calibrated):
    with pytest.raises(ValueError, match="no photos"):
        calibrate(calibrated[0], [])


def test_int8_graphs_need_ranges():
    with pytest.raises(ValueError, match="calibrate first"):
        serving_graph(Architecture(VARIANTS["2012"], 10), "center", "int8")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_close_in_int8(name, photos, run_onnx):
    weights = random_weights(scaled(VARIANTS[name], 8, 96), 7)
    ranges = calibrate(weights, photos)
    for view in VIEWS:
        exact = run_onnx(serving_model(weights, view), photos)
        rough = run_onnx(serving_model(weights, view, "int8", ranges), photos)
        assert np.abs(exact[0] - rough[0]).max() < 0.15
        assert np.corrcoef(exact[1].ravel(), rough[1].ravel())[0, 1] > 0.99


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_product_is_served_as_two_layers(precision, photos, run_onnx):
    """The same function as with the weights multiplied out, in both precisions and every view."""
    rng = np.random.default_rng(3)
    weights = random_weights(scaled(VARIANTS["2012"], 8, 96), 7)
    factors, tensors = {}, dict(weights.tensors)
    for layer, rank in (("fc6", 40), ("fc7", 24)):
        out, inputs = tensors[f"{layer}.weight"].shape
        left = rng.standard_normal((out, rank), np.float32) / np.float32(rank**0.5)
        right = rng.standard_normal((rank, inputs), np.float32) * np.float32(1.4 / inputs**0.5)
        factors[layer], tensors[f"{layer}.weight"] = (left, right), left @ right
    whole = replace(weights, tensors=tensors)
    factored = replace(whole, factors=factors)
    ranges = calibrate(factored, photos)
    for view in VIEWS:
        model = serving_model(factored, view, precision, ranges)
        assert not {"fc6.weight", "fc6.weight.codes"} & {tensor.name for tensor in model.graph.initializer}
        exact = run_onnx(serving_model(whole, view), photos)
        for found, expected in zip(run_onnx(model, photos), exact, strict=True):
            tolerance = 1e-4 if precision == "fp32" else 0.15
            np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_only_layers_are_quantised_and_norms_are_not(calibrated):
    weights, ranges = calibrated
    model = serving_model(weights, "center", "int8", ranges)
    made_by = {output: node for node in model.graph.node for output in node.output}
    quantised = {
        node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm") and made_by[node.input[0]].op_type == "DequantizeLinear"
        if node.input[1] in made_by
    }
    assert quantised == {"conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"}
    norms = [node for node in model.graph.node if node.op_type == "Conv" and ".lrn" in node.name]
    assert len(norms) == 3
    assert not any(made_by[node.input[0]].op_type == "DequantizeLinear" for node in norms)


def test_float_layers_note_what_calibration_looks_at():
    nodes = Nodes()
    layers = Float(nodes, {"conv2.weight": (8, 4, 5, 5), "conv2.bias": (8,)})
    output = layers.conv("x", "conv2", 1, (2, 2), relu=True)
    assert layers.points == {"conv2.in": "x", "conv2.out": output}
    assert output == "conv2.relu"
