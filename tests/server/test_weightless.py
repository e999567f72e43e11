import numpy as np
import pytest
from onnx import TensorProto, helper

from alexnet_server.models.graphs import CODE_LIMIT, Forms, fill, placeholder

WEIGHT = np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [3.0, 2.9, -3.0]], np.float32)
BIAS = np.array([0.3, -1.0, 2.0], np.float32)


def graph(*tensors):
    return helper.make_model(helper.make_graph([], "g", [], [], list(tensors)))


def filled(*tensors, weights=None):
    model = fill(graph(*tensors), weights or {"w": WEIGHT, "b": BIAS})
    return {
        t.name: np.frombuffer(t.raw_data, helper.tensor_dtype_to_np_dtype(t.data_type))
        for t in model.graph.initializer
    }


def test_values_take_the_graphs_type():
    arrays = filled(
        placeholder("full", (3, 3), TensorProto.FLOAT, tensor="w"),
        placeholder("half", (3,), TensorProto.FLOAT16, tensor="b"),
    )
    np.testing.assert_array_equal(arrays["full"].reshape(3, 3), WEIGHT)
    np.testing.assert_array_equal(arrays["half"], BIAS.astype(np.float16))


def test_codes_are_of_reduced_range_and_give_the_weight_back():
    arrays = filled(
        placeholder("codes", (3, 3), TensorProto.INT8, tensor="w", form="codes"),
        placeholder("scale", (3,), TensorProto.FLOAT, tensor="w", form="scale"),
    )
    codes, scale = arrays["codes"].reshape(3, 3), arrays["scale"]
    assert np.abs(codes.astype(int)).max() == CODE_LIMIT == 64
    assert (scale > 0).all(), "a row of zeros must not divide by zero"
    np.testing.assert_allclose(codes * scale[:, None], WEIGHT, atol=scale.max() / 2)


def test_bias_is_in_units_of_the_product():
    arrays = filled(
        placeholder("b", (3,), TensorProto.INT32, tensor="b", form="bias", of="w", input_scale="0.01"),
        placeholder("s", (3,), TensorProto.FLOAT, tensor="w", form="scale", input_scale="0.01"),
    )
    np.testing.assert_allclose(arrays["b"] * arrays["s"], BIAS, atol=arrays["s"].max())


def test_a_bias_beyond_int32_is_clipped():
    tiny = {"w": np.full((1, 2), 1e-12, np.float32), "b": np.array([5.0], np.float32)}
    how = {"tensor": "b", "form": "bias", "of": "w", "input_scale": "0.01"}
    assert filled(placeholder("b", (1,), TensorProto.INT32, **how), weights=tiny)["b"] == [2**31 - 1]


def test_forms_are_worked_out_once_for_several_graphs():
    forms = Forms({"w": WEIGHT})
    codes = placeholder("codes", (3, 3), TensorProto.INT8, tensor="w", form="codes")
    assert forms.array(codes) is forms.array(codes)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (placeholder("x", (3, 3), TensorProto.FLOAT, tensor="v"), "the weights hold no v"),
        (
            placeholder("x", (3,), TensorProto.INT32, tensor="b", form="bias", of="v", input_scale="1"),
            "hold no v",
        ),
        (placeholder("x", (9,), TensorProto.FLOAT, tensor="w"), r"shape \(9,\) in the graph, \(3, 3\)"),
        (placeholder("x", (3, 3), TensorProto.FLOAT, tensor="w", form="sparse"), "'sparse' is unknown"),
    ],
)
def test_what_does_not_fit_is_named(tensor, message):
    with pytest.raises(ValueError, match=message):
        filled(tensor)
