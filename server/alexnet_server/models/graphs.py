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

from alexnet_server.models.weights import tensor

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


def row_codes(weight: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """(out, ...) float32 -> int8 codes of the same shape, ``weight = codes * scales[row]``."""
    codes = np.empty(weight.shape, np.int8)
    for row, scale in enumerate(scales):  # by rows: all of fc6 at once would take 150 MB more
        codes[row] = np.rint(weight[row] / scale)
    return codes


def bias_codes(
    bias: NDArray[np.float32], scales: NDArray[np.float32], input_scale: float
) -> NDArray[np.int32]:
    """(out,) float32 -> (out,) int32 in units of ``input_scale * scales``."""
    codes = np.rint(bias.astype(np.float64) / (input_scale * scales.astype(np.float64)))
    limits = np.iinfo(np.int32)
    return np.clip(codes, limits.min, limits.max).astype(np.int32)


class Forms:
    """Weights in every form that a graph asks for; codes and scales are worked out once for all graphs."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._codes: dict[str, NDArray[np.int8]] = {}
        self._scales: dict[str, NDArray[np.float32]] = {}

    def array(self, placeholder: onnx.TensorProto) -> NDArray[np.generic]:
        """What belongs into a placeholder.

        Raises:
            ValueError: the weights hold no such tensor, or the form is not known.
        """
        how = {entry.key: entry.value for entry in placeholder.external_data}
        for name in (how["tensor"], how.get("of", how["tensor"])):
            if name not in self._weights and f"{name}.left" not in self._weights:
                raise ValueError(f"{placeholder.name}: the weights hold no {name}")
        match how["form"]:
            case "values":
                dtype = helper.tensor_dtype_to_np_dtype(placeholder.data_type)
                return tensor(self._weights, how["tensor"]).astype(dtype, copy=False)
            case "codes":
                return self._rows(how["tensor"])[0]
            case "scale":
                return self._rows(how["tensor"])[1] * np.float32(how.get("input_scale", 1))
            case "bias":
                scales = self._rows(how["of"])[1]
                return bias_codes(tensor(self._weights, how["tensor"]), scales, float(how["input_scale"]))
            case form:
                raise ValueError(f"{placeholder.name}: form {form!r} is unknown: install a newer version")

    def _rows(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        if name not in self._codes:
            weight = tensor(self._weights, name)
            self._scales[name] = row_scales(weight)
            self._codes[name] = row_codes(weight, self._scales[name])
        return self._codes[name], self._scales[name]


def fill(graph: onnx.ModelProto, weights: Weights | Forms) -> onnx.ModelProto:
    """A copy of a graph without weights, complete.

    Args:
        graph: the graph; it is left as it is.
        weights: float32 arrays under the names that the graph's placeholders give; ``Forms`` of them to fill
            several graphs.

    Raises:
        ValueError: a weight is missing or has another shape than the graph says.
    """
    forms = weights if isinstance(weights, Forms) else Forms(weights)
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    for initializer in model.graph.initializer:
        if initializer.data_location != onnx.TensorProto.EXTERNAL:
            continue
        array, dims = forms.array(initializer), tuple(initializer.dims)
        if array.shape != dims:
            raise ValueError(f"{initializer.name}: shape {dims} in the graph, {array.shape} in the weights")
        initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), initializer.name))
    return model
