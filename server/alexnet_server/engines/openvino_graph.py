"""What OpenVINO computes faster in another form: int8 graphs rewritten before they are compiled.

The files stay as they are, for engines to which these forms are slower (ONNX Runtime convolves bytes and
re-arranged photos at a third of the speed of floats). Results are the same but for the order of float sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

_CODE_LIMIT = 64
"""Largest int8 code of a weight: see `alexnet_server.models.graphs`."""
_STRIDE = 4
_LEVEL = np.float32(64)
"""Grey levels in the unit of conv1's input; a power of two, which changes no bit of a result."""
_KEEPS_VALUES = {"Convert", "Transpose", "Slice", "StridedSlice", "Concat"}


def rewrite(model: openvino.Model) -> None:
    """Rewrite an int8 graph of ours in place; what is not recognised stays as it is."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convolution":
            _convolve_bytes(node)
        elif node.get_type_name() == "Multiply":
            _cube(node)
    model.validate_nodes_and_infer_types()


def _convolve_bytes(convolution: Any) -> None:
    """conv1 on the photo's bytes with 8-bit weights, exactly: conv(x - mean) = conv(x) - conv(mean).

    The second term is a constant map, exact at the padded borders too. Convolving squares of 4x4 pixels, 48
    channels of them, fills the registers that three channels leave three quarters empty.
    """
    minus, weight = (convolution.input_value(i).get_node() for i in range(2))
    pads = convolution.get_attributes()
    if (
        minus.get_type_name() != "Subtract"
        or weight.get_type_name() != "Constant"
        or list(pads["strides"]) != [_STRIDE] * 2
        or not _whole_levels(minus.input_value(0).get_node())
    ):
        return
    kernel, mean = weight.data, _constant(minus.input_value(1).get_node())
    codes, scale = _codes(kernel)
    photo, out = minus.input_value(0), convolution.output(0).partial_shape
    if codes is None or mean is None or kernel.shape[1] != 3 or not (out[2].is_static and out[3].is_static):
        return
    height, width = (photo.partial_shape[i].get_length() for i in (2, 3))
    cells = [out[i].get_length() + (kernel.shape[i] - 1) // _STRIDE for i in (2, 3)]
    before = list(pads["pads_begin"])
    after = [_STRIDE * n - size - pad for n, size, pad in zip(cells, (height, width), before, strict=True)]
    if min(after) < 0:
        return
    padded = ops.pad(
        _bytes(photo),
        ops.constant([0, *before, 0], np.int64),
        ops.constant([0, *after, 0], np.int64),
        "constant",
        ops.constant(0, np.uint8),
    )
    squares = _squares(padded, cells)
    # Without a scale OpenVINO does not take the bytes for codes, and convolves floats.
    level = ops.multiply(ops.convert(squares, "f32"), ops.constant(1 / _LEVEL, np.float32))
    weights = ops.multiply(
        ops.convert(ops.constant(_square_codes(codes)), "f32"), ops.constant(scale * _LEVEL)
    )
    y = ops.convolution(level, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    shift = -_convolved(np.broadcast_to(mean, (1, 3, height, width)), kernel, before, list(pads["pads_end"]))
    y = ops.add(y, ops.constant(shift.astype(np.float32)))
    y.set_friendly_name(convolution.get_friendly_name())
    convolution.output(0).replace(y.output(0))


def _cube(product: Any) -> None:
    """``r * sqrt(r)`` as ``sqrt(r) ** 3``, which has one input only and is computed right behind it."""
    values = [product.input_value(i) for i in range(2)]
    for r, root in (values, reversed(values)):
        node = root.get_node()
        if node.get_type_name() == "Sqrt" and node.input_value(0) == r:
            cube = ops.power(root, ops.constant(3.0, np.float32))
            product.output(0).replace(cube.output(0))
            return


def _whole_levels(node: Any) -> bool:
    """True when the tensor holds the photo's own bytes, only converted and re-arranged."""
    if node.get_type_name() == "Parameter":
        return bool(node.get_element_type() == openvino.Type.u8)
    if node.get_type_name() not in _KEEPS_VALUES:
        return False
    data = range(node.get_input_size()) if node.get_type_name() == "Concat" else range(1)
    return all(_whole_levels(node.input_value(i).get_node()) for i in data)


def _bytes(photo: Any) -> Any:
    """(N, 3, H, W) float32 of whole levels -> (N, H, W, 3) uint8."""
    node = photo.get_node()
    source = node.input_value(0) if node.get_type_name() == "Convert" else ops.convert(photo, "u8").output(0)
    return ops.transpose(source, ops.constant([0, 2, 3, 1], np.int64))


def _squares(photo: Any, cells: list[int]) -> Any:
    """(N, 4 rows, 4 columns, 3) bytes -> (N, 48, rows, columns): rows of a cell, columns, colours."""
    rows, columns = cells
    x = ops.reshape(photo, ops.constant([-1, rows, _STRIDE, columns, _STRIDE * 3], np.int64), False)
    x = ops.transpose(x, ops.constant([0, 2, 4, 1, 3], np.int64))
    return ops.reshape(x, ops.constant([-1, _STRIDE * _STRIDE * 3, rows, columns], np.int64), False)


def _square_codes(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """(out, 3, K, K) -> (out, 48, K / 4, K / 4), in the order of `_squares`; zeros fill up K."""
    out, channels, size, _ = codes.shape
    cells = -(-size // _STRIDE)
    full = np.zeros((out, channels, cells * _STRIDE, cells * _STRIDE), np.int8)
    full[:, :, :size, :size] = codes
    split = full.reshape(out, channels, cells, _STRIDE, cells, _STRIDE).transpose(0, 3, 5, 1, 2, 4)
    return np.ascontiguousarray(split.reshape(out, -1, cells, cells))


def _codes(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8] | None, NDArray[np.float32]]:
    """int8 codes and a scale for each output channel; no codes where the weights lie on no such grid."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scale = (
        np.where(largest > 0, largest / np.float32(_CODE_LIMIT), 1).astype(np.float32).reshape(-1, 1, 1, 1)
    )
    codes = np.rint(weight / scale)
    on_grid = np.abs(weight / scale - codes).max() < 1e-3
    return (codes.astype(np.int8) if on_grid else None), scale


def _constant(node: Any) -> NDArray[np.float32] | None:
    """The value of a constant, or of a window cut from one; None for anything else."""
    if node.get_type_name() == "Constant":
        return np.asarray(node.data, np.float32)
    if any(not _only_constants(node.input_value(i).get_node()) for i in range(node.get_input_size())):
        return None
    return _run(openvino.Model([node.output(0)], []), {})


def _only_constants(node: Any) -> bool:
    if node.get_type_name() == "Parameter":
        return False
    return all(_only_constants(node.input_value(i).get_node()) for i in range(node.get_input_size()))


def _convolved(
    image: NDArray[np.float32], kernel: NDArray[np.float32], before: list[int], after: list[int]
) -> NDArray[np.float64]:
    """The convolution of (1, 3, H, W) in float64, (1, out, H', W')."""
    padded = np.pad(image.astype(np.float64), [(0, 0), (0, 0), *zip(before, after, strict=True)])
    size = kernel.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(2, 3))[:, :, ::_STRIDE, ::_STRIDE]
    result: NDArray[np.float64] = np.einsum(
        "nchwij,ocij->nohw", windows, kernel.astype(np.float64), optimize=True
    )
    return result


def _run(model: openvino.Model, inputs: dict[str, Any]) -> NDArray[np.float32]:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1})
    return np.asarray(compiled(inputs)[0], np.float32)
