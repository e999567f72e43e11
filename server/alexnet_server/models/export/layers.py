"""The network's layers as ONNX nodes, in three precisions.

``Float`` writes fp32 or fp16; ``Int8`` wraps each convolution and fully connected layer in QuantizeLinear /
DequantizeLinear pairs that engines fuse to integer arithmetic. Response norms are always float32: squares of
conv1's outputs leave fp16's range, and eight bits cannot hold them. They are written in the banded form, a
1x1 convolution of the squares with a band of ones, because ONNX Runtime's LRN operator is scalar code and
nearly half of the network's time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from alexnet_server.models.graphs import placeholder
from alexnet_server.models.variants import ResponseNorm

STRIDES = {"conv1": 4}


class Nodes:
    """An ONNX graph under construction; every method returns the name of the tensor it made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node named after its only output."""
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """An initialiser that the graph itself holds; the same name again must be the same value."""
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def weight(self, name: str, shape: tuple[int, ...], dtype: int, **how: str) -> str:
        """An initialiser that ``alexnet_server.models.graphs.fill`` fills."""
        self.initializers[name] = placeholder(name, shape, dtype, **how)
        return name

    def integers(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(f"int64({', '.join(map(str, values))})", np.array(values, np.int64))

    def window(self, x: str, output: str, top: int, left: int, side: int, axes: tuple[int, int]) -> str:
        """The ``side`` x ``side`` square of ``x`` that begins at (top, left) in the two axes."""
        bounds = [(top, left), (top + side, left + side), axes]
        return self.add("Slice", [x, *(self.integers(*values) for values in bounds)], output)


def band(channels: int, towers: int, size: int) -> NDArray[np.float32]:
    """(channels, channels / towers, 1, 1): ones where two channels of one tower are within ``size // 2``."""
    per_tower = channels // towers
    distance = np.abs(np.subtract.outer(np.arange(per_tower), np.arange(per_tower)))
    return np.tile((distance <= size // 2).astype(np.float32), (towers, 1))[:, :, None, None]


class Float:
    """Layers in fp32 or fp16. ``shapes`` are the parameters' (``variants.parameter_shapes``)."""

    def __init__(self, nodes: Nodes, shapes: Mapping[str, tuple[int, ...]], dtype: int = TensorProto.FLOAT):
        self.nodes = nodes
        self.shapes = shapes
        self.dtype = dtype
        self.points: dict[str, str] = {}
        """The tensors that calibration looks at, by the names of ``Int8.ranges``."""

    def parameters(self, layer: str) -> list[str]:
        """The layer's weight and bias."""
        return [self.matrix(f"{layer}.weight"), self.bias(layer)]

    def matrix(self, weight: str) -> str:
        """A weight by its own name."""
        return self.nodes.weight(weight, self.shapes[weight], self.dtype, tensor=weight)

    def bias(self, layer: str, factor: str = "") -> str:  # noqa: ARG002 - integers need it
        """The layer's bias, added behind its weight, or behind the weight's ``.left`` factor."""
        bias = f"{layer}.bias"
        return self.nodes.weight(bias, self.shapes[bias], self.dtype, tensor=bias)

    def conv(self, x: str, layer: str, groups: int, pads: tuple[int, int], relu: bool) -> str:
        """Convolution; ``pads`` are the zeros before (top, left) and after (bottom, right)."""
        inputs = [self.enter(x, layer), *self.parameters(layer)]
        y = self.nodes.add(
            "Conv",
            inputs,
            layer,
            group=groups,
            kernel_shape=list(self.shapes[f"{layer}.weight"][2:]),
            strides=[STRIDES.get(layer, 1)] * 2,
            pads=[pads[0], pads[0], pads[1], pads[1]],
        )
        return self.leave(y, layer, relu)

    def linear(self, x: str, layer: str) -> str:
        """Fully connected: (N, in) -> (N, out), through (N, rank) where the weight is a product."""
        left, right = f"{layer}.weight.left", f"{layer}.weight.right"
        if right not in self.shapes:
            inputs = [self.enter(x, layer), *self.parameters(layer)]
            return self.nodes.add("Gemm", inputs, layer, transB=1)
        inputs = [self.enter(x, layer), self.matrix(right)]
        inner = self.nodes.add("Gemm", inputs, f"{layer}.right", transB=1)
        inputs = [
            self.enter(inner, f"{layer}.left"),
            self.matrix(left),
            self.bias(layer, ".left"),
        ]
        return self.nodes.add("Gemm", inputs, layer, transB=1)

    def enter(self, x: str, layer: str) -> str:
        """What the layer's operator reads: here the tensor as it is, noted for calibration."""
        self.points[f"{layer}.in"] = x
        return x

    def leave(self, y: str, layer: str, relu: bool) -> str:
        """What is read behind a convolution, and behind its ReLU where one follows."""
        y = self.relu(y) if relu else y
        self.points[f"{layer}.out"] = y
        return y

    def same_values(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node that picks and arranges its inputs' values and makes no new ones."""
        return self.nodes.add(operator, inputs, output, **attributes)

    def relu(self, x: str) -> str:
        """max(x, 0)."""
        return self.nodes.add("Relu", [x], f"{x}.relu")

    def pool(self, x: str, beyond: int = 0) -> str:
        """Overlapping max pooling, 3x3 every 2, which may run over the bottom and right edges."""
        window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, beyond, beyond]}
        return self.same_values("MaxPool", [x], f"{x}.pool", **window)

    def flatten(self, x: str) -> str:
        """(N, C, H, W) -> (N, C * H * W), as the fully connected weights are laid out."""
        return self.same_values("Flatten", [x], f"{x}.flat", axis=1)

    def widen(self, x: str) -> str:
        """The tensor as float32."""
        if self.dtype == TensorProto.FLOAT:
            return x
        return self.nodes.add("Cast", [x], f"{x}.fp32", to=TensorProto.FLOAT)

    def narrow(self, x: str) -> str:
        """A float32 tensor in the layers' own type."""
        if self.dtype == TensorProto.FLOAT:
            return x
        return self.nodes.add("Cast", [x], f"{x}.fp16", to=self.dtype)

    def lrn(self, x: str, norm: ResponseNorm, channels: int, towers: int) -> str:
        """Across ``size`` neighbouring maps, never from one tower into the other."""
        kernel = band(channels, towers, norm.size) * np.float32(norm.alpha)
        return self._response_norm(x, f"{x}.lrn", norm, kernel, towers, 0)

    def spatial_norm(self, x: str, norm: ResponseNorm, channels: int) -> str:
        """Over ``size`` x ``size`` neighbours in the same map, zeros outside it (2012 code, cnorm2)."""
        kernel = np.full((channels, 1, norm.size, norm.size), norm.alpha, np.float32)
        return self._response_norm(x, f"{x}.norm", norm, kernel, channels, norm.size // 2)

    def _response_norm(
        self, x: str, name: str, norm: ResponseNorm, kernel: NDArray[np.float32], groups: int, padding: int
    ) -> str:
        add = self.nodes.add
        wide = self.widen(x)
        weight = self.nodes.constant(f"{name}.neighbours", kernel)
        k = self.nodes.constant(f"{name}.k", np.full(len(kernel), norm.k, np.float32))
        square = add("Mul", [wide, wide], f"{name}.square")
        base = add(
            "Conv",
            [square, weight, k],
            f"{name}.base",
            group=groups,
            kernel_shape=list(kernel.shape[2:]),
            pads=[padding] * 4,
        )
        if norm.beta == 0.75:  # two vectorised square roots for one scalar power
            root = add("Sqrt", [base], f"{name}.root")
            divisor = add("Mul", [root, add("Sqrt", [root], f"{name}.root4")], f"{name}.divisor")
        else:
            beta = self.nodes.constant(f"{name}.beta", np.array(norm.beta, np.float32))
            divisor = add("Pow", [base, beta], f"{name}.divisor")
        return self.narrow(add("Div", [wide, divisor], name))


@dataclass(frozen=True)
class Range:
    """What a tensor's values lie between, as calibration found it."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """Step of the uint8 codes; zero is always a code, so that padding and ReLU are exact."""
        return float(np.float32((max(self.high, 0.0) - min(self.low, 0.0)) / 255 or 1.0))

    @property
    def zero_point(self) -> int:
        """The code of zero."""
        return int(np.clip(round(-min(self.low, 0.0) / self.scale), 0, 255))


class Int8(Float):
    """Layers in 8 bits: uint8 activations, int8 weights with a scale for each output row, int32 biases.

    ``ranges`` are calibrated on ``<layer>.in`` for every layer and on ``<layer>.out`` for the convolutions.
    conv1 stays fp32: with three input channels integer arithmetic gains less than the conversions around the
    norm behind it cost (3.4 ms an image against 3.7), and the widest ranges of the network are there.
    """

    fp32 = ("conv1",)

    def __init__(self, nodes: Nodes, shapes: Mapping[str, tuple[int, ...]], ranges: Mapping[str, Range]):
        super().__init__(nodes, shapes)
        self.ranges = ranges
        self.grids: dict[str, Range] = {}
        """The range of each tensor that lies on an 8-bit grid."""

    def matrix(self, weight: str) -> str:
        """DequantizeLinear of int8 codes, a scale for each output row."""
        if weight.removesuffix(".weight") in self.fp32:
            return super().matrix(weight)
        nodes, shape = self.nodes, self.shapes[weight]
        codes = nodes.weight(f"{weight}.codes", shape, TensorProto.INT8, tensor=weight, form="codes")
        scale = nodes.weight(f"{weight}.scale", shape[:1], TensorProto.FLOAT, tensor=weight, form="scale")
        zero = nodes.constant(f"{weight}.zero", np.zeros(shape[:1], np.int8))  # QGemm is not fused without it
        return nodes.add("DequantizeLinear", [codes, scale, zero], weight, axis=0)

    def bias(self, layer: str, factor: str = "") -> str:
        """DequantizeLinear of int32 codes in units of the products' steps."""
        if layer in self.fp32:
            return super().bias(layer, factor)
        weight = f"{layer}.weight{factor}"
        nodes, bias, rows = self.nodes, f"{layer}.bias", self.shapes[f"{layer}.bias"]
        step = {"input_scale": str(self.grids[self.points[f"{layer}{factor}.in"]].scale)}
        how = {"tensor": bias, "form": "bias", "of": weight, **step}
        codes = nodes.weight(f"{bias}.codes", rows, TensorProto.INT32, **how)
        how = {"tensor": weight, "form": "scale", **step}
        scale = nodes.weight(f"{bias}.scale", rows, TensorProto.FLOAT, **how)
        return nodes.add("DequantizeLinear", [codes, scale], bias, axis=0)

    def _on_grid(self, x: str, name: str, grid: Range) -> str:
        scale = self.nodes.constant(f"{name}.scale", np.array(grid.scale, np.float32))
        zero = self.nodes.constant(f"{name}.zero", np.array(grid.zero_point, np.uint8))
        codes = self.nodes.add("QuantizeLinear", [x, scale, zero], f"{name}.codes")
        y = self.nodes.add("DequantizeLinear", [codes, scale, zero], name)
        self.grids[y] = grid
        return y

    def enter(self, x: str, layer: str) -> str:
        """The layer's input on an 8-bit grid."""
        if layer not in self.fp32 and x not in self.grids:
            if layer.startswith("conv"):
                # All values are positive already. The node keeps ONNX Runtime from quantising in front of the
                # pooling before it, which for bytes in this layout is scalar code: 3.8 ms instead of .1.
                x = self.relu(x)
            x = self._on_grid(x, f"{layer}.in", self.ranges[f"{layer}.in"])
        return super().enter(x, layer)

    def leave(self, y: str, layer: str, relu: bool) -> str:
        """The convolution's output on an 8-bit grid; one that begins at zero is the ReLU as well."""
        if layer in self.fp32:
            return super().leave(y, layer, relu)
        grid = self.ranges[f"{layer}.out"]
        if relu:
            grid = Range(0.0, grid.high)
        return super().leave(self._on_grid(y, f"{layer}.out", grid), layer, relu=False)

    def same_values(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """The node between values on one grid, which engines then run on the codes themselves."""
        y = super().same_values(operator, inputs, output, **attributes)
        grid = self.grids.get(inputs[0])
        return y if grid is None else self._on_grid(y, f"{output}.grid", grid)
