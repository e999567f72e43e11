"""The serving graph: 256x256 photos in; probabilities and features out; views, mean and network inside.

Built from the variant and a few facts about the weights, without the weights themselves
(``alexnet_server.models.graphs``): free of torch, and the same function makes the small graphs kept in
git and the complete ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from alexnet_server.models.export.enlarge import cubic_matrix
from alexnet_server.models.export.layers import Float, Int8, Nodes, Range
from alexnet_server.models.variants import Step, Variant, parameter_shapes

View = Literal["center", "ten", "dense"]
Precision = Literal["fp32", "fp16", "int8"]
VIEWS: tuple[View, ...] = ("center", "ten", "dense")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
MODEL_NAMES: Mapping[View, str] = {"center": "alexnet", "ten": "alexnet_10crop", "dense": "alexnet_dense"}
PHOTO = 256
OPSET = 17  # read by every ONNX Runtime since 1.12 and by TensorRT 8.5
IR_VERSION = 8
NHWC, NCHW = (1, 2), (2, 3)


@dataclass(frozen=True)
class Architecture:
    """What a serving graph depends on besides its weights."""

    variant: Variant
    classes: int
    source_size: int | None = None
    """Side of the images it was trained on where that is less than 256: photos are reduced to it and
    enlarged."""
    mean: Literal["image", "pixel"] = "image"
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Of the fully connected layers whose weights are products: each is computed as two smaller layers."""


def serving_graph(
    architecture: Architecture,
    view: View,
    precision: Precision = "fp32",
    *,
    ranges: Mapping[str, Range] | None = None,
    temperature: float = 1.0,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """A graph without weights, to be completed by ``alexnet_server.models.graphs.fill``.

    Input ``images`` uint8 (N, 256, 256, 3) RGB; outputs ``probabilities`` float32 (N, classes) and
    ``features`` float32 (N, hidden), fc7 after ReLU of the centre view. The weights it asks for are those of
    ``parameter_shapes`` with conv1 reading RGB minus ``mean``, which is (3, 256, 256) or (3, 1, 1).

    Args:
        architecture: variant, classes, source size.
        view: one centre crop; the paper's ten; or the ten windows of one convolution over the whole photo.
        precision: of weights and arithmetic. Photos, response norms and both outputs are not touched by it.
        ranges: calibrated activations, only for int8 (``alexnet_server.models.export.calibrate``).
        temperature: logits are divided by it.
        metadata: written to the model's ``metadata_props``.

    Raises:
        ValueError: int8 without ranges.
    """
    return _Graph(architecture, precision, ranges).build(view, temperature, metadata or {})


def calibration_graph(architecture: Architecture) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The fp32 centre-view graph, and its tensors whose ranges int8 needs, by the names of those ranges."""
    graph = _Graph(architecture, "fp32", None)
    model = graph.build("center", 1.0, {})
    return model, graph.layers.points


def _factored(shapes: Mapping[str, tuple[int, ...]], ranks: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The parameters' shapes, with the two factors of each weight that is a product."""
    factored = dict(shapes)
    for layer, rank in ranks.items():
        out, inputs = factored.pop(f"{layer}.weight")
        factored |= {f"{layer}.weight.left": (out, rank), f"{layer}.weight.right": (rank, inputs)}
    return factored


class _Graph:
    def __init__(
        self, architecture: Architecture, precision: Precision, ranges: Mapping[str, Range] | None
    ) -> None:
        self.variant = architecture.variant
        self.classes = architecture.classes
        self.source_size, self.mean = architecture.source_size, architecture.mean
        self.nodes = Nodes()
        shapes = _factored(parameter_shapes(self.variant, self.classes), architecture.ranks)
        if precision == "int8":
            if ranges is None:
                raise ValueError("an int8 graph needs the activations' ranges; calibrate first")
            self.layers: Float = Int8(self.nodes, shapes, ranges)
        else:
            dtype = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
            self.layers = Float(self.nodes, shapes, dtype)

    def build(self, view: View, temperature: float, metadata: Mapping[str, str]) -> onnx.ModelProto:
        probabilities, features = {"center": self._center, "ten": self._ten, "dense": self._dense}[view](
            temperature
        )
        self.nodes.add("Identity", [probabilities], "probabilities")
        self.nodes.add("Identity", [features], "features")
        images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", PHOTO, PHOTO, 3])
        outputs = [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", self.classes]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", self.variant.hidden]),
        ]
        graph = helper.make_graph(
            self.nodes.nodes, f"alexnet-{view}", [images], outputs, list(self.nodes.initializers.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="alexnet-train",
        )
        helper.set_model_props(model, dict(metadata))
        return model

    # Views
    # ---------------------------------------------------------------------------------------------------

    def _center(self, temperature: float) -> tuple[str, str]:
        start, crop = (PHOTO - self.variant.crop) // 2, self.variant.crop
        if self.source_size is None:  # cut before anything is made float: a quarter less to convert
            x = self._planes(self.nodes.window("images", "view", start, start, crop, NHWC))
        else:
            x = self.nodes.window(self._photo(), "view", start, start, crop, NCHW)
        logits, features = self._head(self._pool5(self._crop_minus_mean(x)))
        return self._softmax(logits, temperature), self.layers.widen(features)

    def _ten(self, temperature: float) -> tuple[str, str]:
        """Four corners and centre, then their mirrors, as ten blocks of N views."""
        photo, crop = self._photo(), self.variant.crop
        far, middle = PHOTO - crop, (PHOTO - crop) // 2
        corners = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
        mirrored = self._mirror(photo)
        views = [self.nodes.window(photo, f"view{i}", y, x, crop, NCHW) for i, (y, x) in enumerate(corners)]
        views += [  # a crop's mirror is the crop of the mirrored photo at the mirrored offset
            self.nodes.window(mirrored, f"view{i + 5}", y, far - x, crop, NCHW)
            for i, (y, x) in enumerate(corners)
        ]
        x = self._crop_minus_mean(self.nodes.add("Concat", views, "views", axis=0))
        return self._average(*self._head(self._pool5(x)), temperature, center=4)

    def _dense(self, temperature: float) -> tuple[str, str]:
        """conv1 to conv5 once on the photo and its mirror; windows of 13x13 cells cut from conv5's 15x15.

        Windows at offsets 0 and 2 begin on a cell of the 3x3-every-2 pooling, so all four corners are cut
        from one pooled map of 7x7; the centre, at offset 1, is pooled apart.
        """
        photo = self._photo()
        both = self.nodes.add("Concat", [photo, self._mirror(photo)], "views", axis=0)
        x = self.layers.narrow(self.nodes.add("Sub", [both, self._mean()], "views.minus_mean"))
        conv5 = self._conv5(x, dense=True)
        pooled = self.layers.pool(conv5)
        windows = [
            self._cell_window(pooled, f"window{i}", y, x, 6)
            for i, (y, x) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)])
        ]
        windows.append(self.layers.pool(self._cell_window(conv5, "window4", 1, 1, 13)))
        pool5 = self.layers.same_values("Concat", windows, "windows", axis=0)
        return self._average(*self._head(pool5), temperature, center=8)

    def _cell_window(self, x: str, output: str, top: int, left: int, side: int) -> str:
        bounds = [(top, left), (top + side, left + side), NCHW]
        inputs = [x, *(self.nodes.integers(*values) for values in bounds)]
        return self.layers.same_values("Slice", inputs, output)

    def _average(self, logits: str, features: str, temperature: float, center: int) -> tuple[str, str]:
        """Ten blocks of N rows -> the mean of their probabilities, and the features of the centre's block."""
        add, probabilities = self.nodes.add, self._softmax(logits, temperature)
        blocks = add(
            "Reshape", [probabilities, self.nodes.integers(10, -1, self.classes)], "probabilities.views"
        )
        stacked = add(
            "Reshape", [features, self.nodes.integers(10, -1, self.variant.hidden)], "features.views"
        )
        index = self.nodes.constant("center", np.array(center, np.int64))
        return (
            add("ReduceMean", [blocks], "probabilities.mean", axes=[0], keepdims=0),
            self.layers.widen(add("Gather", [stacked, index], "features.center", axis=0)),
        )

    # Photo to network
    # ----------------------------------------------------------------------------------------

    def _planes(self, images: str) -> str:
        """uint8 (N, H, W, 3) -> float32 (N, 3, H, W); turned round while it is still bytes."""
        planes = self.nodes.add("Transpose", [images], f"{images}.planes", perm=[0, 3, 1, 2])
        return self.nodes.add("Cast", [planes], f"{images}.float", to=TensorProto.FLOAT)

    def _photo(self) -> str:
        """float32 (N, 3, 256, 256), seen through the training images' resolution where that was lower."""
        photo = self._planes("images")
        if self.source_size is None:
            return photo
        factor = PHOTO // self.source_size
        size = {"kernel_shape": [factor] * 2, "strides": [factor] * 2}
        small = self.nodes.add("AveragePool", [photo], "source.mean", **size)
        small = self.nodes.add("Round", [small], "source")
        matrix = cubic_matrix(PHOTO, self.source_size)
        across = [small, self.nodes.constant("enlarge.across", matrix.T.copy())]
        across_levels = self._levels(self.nodes.add("MatMul", across, "source.across"))
        down = [self.nodes.constant("enlarge.down", matrix), across_levels]
        return self._levels(self.nodes.add("MatMul", down, "source.down"))

    def _levels(self, x: str) -> str:
        """Whole grey levels 0..255, as Pillow leaves them behind each of its two passes."""
        limits = [self.nodes.constant(f"level{v}", np.array(v, np.float32)) for v in (0, 255)]
        return self.nodes.add("Clip", [self.nodes.add("Round", [x], f"{x}.rounded"), *limits], f"{x}.levels")

    def _mirror(self, photo: str) -> str:
        inputs = [photo, *(self.nodes.integers(v) for v in (-1, -PHOTO - 1, 3, -1))]
        return self.nodes.add("Slice", inputs, "mirror")

    def _mean(self) -> str:
        side = 1 if self.mean == "pixel" else PHOTO
        return self.nodes.weight("mean", (3, side, side), TensorProto.FLOAT, tensor="mean")

    def _crop_minus_mean(self, x: str) -> str:
        """Every crop loses the unmirrored centre of the mean (2012 code), before conv1 pads it with zeros."""
        mean = self._mean()
        if self.mean == "image":
            start = (PHOTO - self.variant.crop) // 2
            mean = self.nodes.window(mean, "mean.crop", start, start, self.variant.crop, (1, 2))
        return self.layers.narrow(self.nodes.add("Sub", [x, mean], f"{x}.minus_mean"))

    # Network
    # -------------------------------------------------------------------------------------------------

    def _steps(self, x: str, index: int, steps: tuple[Step, ...], beyond: int) -> str:
        channels = self.variant.channels[index]
        towers = 2 if self.variant.lrn_per_tower else 1
        for step in steps:
            if step == "relu":
                x = self.layers.relu(x)
            elif step == "pool":
                x = self.layers.pool(x, beyond)
            elif step == "lrn" and self.variant.lrn is not None:
                x = self.layers.lrn(x, self.variant.lrn, channels, towers)
            elif step == "spatial_norm" and self.variant.spatial_norm is not None:
                x = self.layers.spatial_norm(x, self.variant.spatial_norm, channels)
        return x

    def _conv5(self, x: str, *, dense: bool = False) -> str:
        """conv1 to conv5 and its ReLU, which commutes with the pooling behind it."""
        variant, before, after = self.variant, *self.variant.conv1_padding
        if dense:  # 63 cells of conv1, so that conv5 has 15: the windows at offset 2 end where the crops do
            after = max(after, 3 - before)
        side = ((PHOTO if dense else variant.crop) + before + after - 11) // 4 + 1
        # Caffe's networks at 224 pixels have 54 cells, so their first pooling runs over the edge.
        beyond = (side - 3) % 2
        pads = [(before, after), (2, 2), (1, 1), (1, 1), (1, 1)]
        behind = [variant.layer1, variant.layer2, ("relu",), ("relu",), ("relu",)]
        for i, steps in enumerate(behind):
            relu = steps[0] == "relu"
            x = self.layers.conv(x, f"conv{i + 1}", variant.groups[i], pads[i], relu)
            x = self._steps(x, i, steps[1:] if relu else steps, beyond if i == 0 else 0)
        return x

    def _pool5(self, x: str) -> str:
        return self.layers.pool(self._conv5(x))

    def _head(self, pool5: str) -> tuple[str, str]:
        """pool5 -> logits and features (fc7 after ReLU)."""
        fc6 = self.layers.relu(self.layers.linear(self.layers.flatten(pool5), "fc6"))
        features = self.layers.relu(self.layers.linear(fc6, "fc7"))
        return self.layers.linear(features, "fc8"), features

    def _softmax(self, logits: str, temperature: float) -> str:
        logits = self.layers.widen(logits)
        if temperature != 1:
            factor = self.nodes.constant("temperature", np.array(temperature, np.float32))
            logits = self.nodes.add("Div", [logits, factor], "logits.tempered")
        return self.nodes.add("Softmax", [logits], "softmax", axis=1)
