"""Other activation ranges for int8 graphs that are there already.

Nothing is rebuilt: what is looked at is found in the fp32 graph by the layers' names, and what depends on a
range is found in the int8 graph, whatever variant it is of and whichever layers are products.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from alexnet_server.models.export.layers import Range
from alexnet_server.models.variants import LAYERS


def calibration_points(fp32: onnx.GraphProto, int8: onnx.GraphProto) -> dict[str, str]:
    """The tensors of a view's fp32 graph that its int8 graph has ranges of, by the names of those ranges."""
    made = {node.output[0]: node for node in fp32.node}
    points: dict[str, str] = {}
    for layer in (layer for layer in LAYERS if layer in made):
        if layer.startswith("conv"):
            points[f"{layer}.in"] = made[layer].input[0]
            points[f"{layer}.out"] = f"{layer}.relu" if f"{layer}.relu" in made else layer
        elif right := made.get(f"{layer}.right"):
            points[f"{layer}.in"] = right.input[0]
            points[f"{layer}.left.in"] = made[layer].input[0]
        else:
            points[f"{layer}.in"] = made[layer].input[0]
    grids = {node.name.removesuffix(".codes") for node in int8.node if node.op_type == "QuantizeLinear"}
    return {point: tensor for point, tensor in points.items() if point in grids}


def with_ranges(graph: onnx.ModelProto, ranges: Mapping[str, Range]) -> onnx.ModelProto:
    """A copy of an int8 graph without weights whose grids have other ranges.

    Args:
        graph: as ``serving_graph`` makes them, of any view.
        ranges: by name; a grid that is not among them keeps its own.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    grids: dict[str, Range] = {}  # of tensors that lie on a grid with a new range
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            name = node.name.removesuffix(".codes")
            # Pooling and the like pass the grid of what they read on.
            grid = ranges.get(name, grids.get(node.input[0]))
            if grid is not None:
                _set(constants[f"{name}.scale"], np.array(grid.scale, np.float32))
                _set(constants[f"{name}.zero"], np.array(grid.zero_point, np.uint8))
                grids[name] = grid
        elif node.op_type in ("Conv", "Gemm"):
            if len(node.input) == 3 and node.input[0] in grids:
                _set_bias(constants, node.input[2], grids[node.input[0]])
        elif node.op_type in ("MaxPool", "Flatten", "Slice", "Concat") and node.input[0] in grids:
            grids[node.output[0]] = grids[node.input[0]]
    return model


def _set(tensor: onnx.TensorProto, value: NDArray[np.generic]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def _set_bias(constants: Mapping[str, onnx.TensorProto], bias: str, grid: Range) -> None:
    """A bias is in units of its input's step times its weight's."""
    for name in (f"{bias}.codes", f"{bias}.scale"):
        for entry in constants[name].external_data:
            if entry.key == "input_scale":
                entry.value = str(grid.scale)
