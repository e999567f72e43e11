"""The network's anatomy: its eight layers as numbers, and the kernels of its first layer as a picture."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from PIL import Image

_COLUMNS = 16
"""Kernels in a row, as in Figure 3 of the paper."""
_ZOOM = 4
_GAP = 1
_BETWEEN_TOWERS = 4


@dataclass(frozen=True)
class Layer:
    """One layer with weights, for one view of one photo."""

    name: str
    """``conv1`` to ``fc8``."""
    kind: str
    output: tuple[int, ...]
    """Channels, rows and columns; or the number of units."""
    parameters: int
    multiply_adds: int


def layer_seconds(names: Sequence[str], operators: Mapping[str, float]) -> dict[str, float]:
    """The time of each layer: its own operators, and those up to the next layer (norm, pooling, ReLU).

    What comes before the first layer, the photo's crop, counts with it.

    Args:
        names: The layers, first to last.
        operators: Seconds by operator in order of execution. Those of a layer are called after it
            (`conv2.in.codes`, `conv2/WithoutBiases`, `conv2_token_26`); engines add others of their own.
    """
    seconds = dict.fromkeys(names, 0.0)
    current = names[0]
    for operator, took in operators.items():
        owner = re.split(r"[./_]", operator, maxsplit=1)[0]
        current = owner if owner in seconds else current
        seconds[current] += took
    return seconds


def layers(graph: Path) -> list[Layer]:
    """The layers of a centre-view graph without weights, first to last.

    Args:
        graph: ``graph.fp32.onnx`` of a model whose rows are one view.

    Raises:
        OSError: the file cannot be read.
    """
    model = onnx.load(str(graph), load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)[1:]
        for value in (*inferred.value_info, *inferred.output)
    }
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return list(_layers(model.graph, shapes, sizes))


def _layers(
    graph: onnx.GraphProto, shapes: dict[str, tuple[int, ...]], sizes: dict[str, tuple[int, ...]]
) -> Iterator[Layer]:
    for node in graph.node:
        name, factors = node.name, f"{node.name}.weight.left" in sizes
        weight: tuple[int, ...]
        if factors:  # as many parameters as their product, which is what the network has
            left, right = sizes[f"{name}.weight.left"], sizes[f"{name}.weight.right"]
            weight, work = (left[0], right[1]), prod(left) + prod(right)
        elif node.op_type in ("Conv", "Gemm") and f"{name}.weight" in sizes:
            weight = sizes[f"{name}.weight"]
            work = prod(weight) * prod(shapes[node.output[0]][1:])
        else:
            continue  # the norms are convolutions too, without weights of the network's own
        kind = _kind(node, weight) + (f", as two factors of rank {left[1]}" if factors else "")
        parameters = prod(weight) + prod(sizes.get(f"{name}.bias", (0,)))
        yield Layer(name, kind, shapes[node.output[0]], parameters, work)


def _kind(node: onnx.NodeProto, weight: tuple[int, ...]) -> str:
    if node.op_type == "Gemm":
        return f"{weight[1]:,} inputs, fully connected"
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    stride = attributes.get("strides", [1])[0]
    groups = attributes.get("group", 1)
    words = f"{weight[2]} x {weight[3]} convolution"
    return words + (f", stride {stride}" if stride > 1 else "") + (f", {groups} towers" if groups > 1 else "")


def kernels_picture(weight: NDArray[np.float32]) -> bytes:
    """The first layer's kernels as PNG: 16 in a row, the first tower's half above the second's.

    Each kernel is stretched to the full range on its own, grey where it is zero.

    Args:
        weight: ``[kernels, 3, rows, columns]``, RGB; an even number of kernels.
    """
    towers = [_tower(half) for half in np.split(weight, 2)]
    space = np.full((_BETWEEN_TOWERS * _ZOOM, towers[0].shape[1], 3), 255, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([towers[0], space, towers[1]])).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _tower(kernels: NDArray[np.float32]) -> NDArray[np.uint8]:
    count, _, height, width = kernels.shape
    largest = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    pixels = np.rint(127.5 + 127.5 * kernels / np.where(largest > 0, largest, 1)).astype(np.uint8)
    rows = -(-count // _COLUMNS)
    sheet = np.full((rows * (height + _GAP) - _GAP, _COLUMNS * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for index, kernel in enumerate(pixels):
        top, left = index // _COLUMNS * (height + _GAP), index % _COLUMNS * (width + _GAP)
        sheet[top : top + height, left : left + width] = kernel.transpose(1, 2, 0)
    return sheet.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
