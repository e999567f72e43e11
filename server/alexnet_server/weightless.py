"""Graphs without weights: ONNX files whose large tensors say how to fill them from the weights' one copy.

Such a tensor has the standard external-data layout. Its ``location`` is the weight file, and instead of an
offset it
names the weight (``tensor``) and the ``form`` it takes in this graph:

=========  ==============================================================================================
values     the weight itself, in the tensor's type (float32 or float16)
codes      int8 codes of the weight in -64..64, one scale per output row
scale      those scales, float32: the row's largest magnitude / 64; times ``input_scale`` where that is given
bias       int32 codes of the bias, in units of ``input_scale`` times the scale of the weight ``of``
=========  ==============================================================================================

Codes stay within 64 because the AVX2 kernel without VNNI adds two products of an unsigned and a signed byte
in 16 bits: 2 * 255 * 64 fits there, 2 * 255 * 127 saturates silently.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

CODE_LIMIT = 64
Weights = Mapping[str, NDArray[np.float32]]


def placeholder(
    name: str, shape: tuple[int, ...], dtype: int, *, tensor: str, form: str = "values", **details: str
) -> onnx.TensorProto:
    """An initialiser of that name, shape and ONNX type that ``fill`` will fill from the weight ``tensor``."""
    result = onnx.TensorProto(name=name, data_type=dtype, dims=shape)
    result.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "weights", "tensor": tensor, "form": form, **details}.items():
        result.external_data.add(key=key, value=value)
    return result


def row_scales(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(out, ...) float32 -> (out,) float32, the step of each row's int8 codes; 1 for a row of zeros."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    return np.where(largest > 0, largest / np.float32(CODE_LIMIT), np.float32(1)).astype(np.float32)


def row_codes(weight: NDArray[np.float32]) -> NDArray[np.int8]:
    """(out, ...) float32 -> int8 codes of the same shape, ``weight = codes * row_scales``."""
    scales = row_scales(weight)
    codes = np.empty(weight.shape, np.int8)
    for row, scale in enumerate(scales):  # row by row: fc6 in float64 at once would take 300 MB
        codes[row] = np.rint(weight[row] / scale)
    return codes


def bias_codes(
    bias: NDArray[np.float32], weight: NDArray[np.float32], input_scale: float
) -> NDArray[np.int32]:
    """(out,) float32 -> (out,) int32 in units of ``input_scale * row_scales(weight)``."""
    codes = np.rint(bias.astype(np.float64) / (input_scale * row_scales(weight).astype(np.float64)))
    limits = np.iinfo(np.int32)
    return np.clip(codes, limits.min, limits.max).astype(np.int32)


def _array(tensor: onnx.TensorProto, weights: Weights) -> NDArray[np.generic]:
    how = {entry.key: entry.value for entry in tensor.external_data}
    try:
        source = weights[how["tensor"]]
        if how["form"] == "codes":
            return row_codes(source)
        if how["form"] == "scale":
            return row_scales(source) * np.float32(how.get("input_scale", 1))
        if how["form"] == "bias":
            return bias_codes(source, weights[how["of"]], float(how["input_scale"]))
    except KeyError as missing:
        raise ValueError(f"{tensor.name}: the weights hold no {missing}") from None
    if how["form"] != "values":
        raise ValueError(f"{tensor.name}: unknown form {how['form']!r}; this graph needs a newer version")
    return source.astype(helper.tensor_dtype_to_np_dtype(tensor.data_type), copy=False)


def fill(graph: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """A copy of a graph without weights, complete.

    Args:
        graph: the graph; it is left as it is.
        weights: float32 arrays under the names that the graph's placeholders give.

    Raises:
        ValueError: a weight is missing or has another shape than the graph says.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        array = _array(tensor, weights)
        if array.shape != tuple(tensor.dims):
            raise ValueError(
                f"{tensor.name}: shape {tuple(tensor.dims)} in the graph, {array.shape} in the weights"
            )
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    return model
