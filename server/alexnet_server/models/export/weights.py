"""A trained network's weights as serving needs them: plain arrays, free of the training framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from alexnet_server.models.export.graph import Architecture, Precision, View, serving_graph
from alexnet_server.models.export.layers import Range
from alexnet_server.models.graphs import fill
from alexnet_server.models.variants import LAYERS, Variant, parameter_shapes

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ServingWeights:
    """Weights and what belongs to them.

    ``tensors`` are float32 in the canonical layout (``variants.parameter_shapes``) with batch norm and the
    2012 dropout factor folded in, conv1's inputs in the variant's channel order. ``mean`` is the image (3,
    256, 256) or the pixel (3,) subtracted from photos, ``std`` (3,) what they are then divided by, both RGB
    in levels 0..255. ``labels`` are (WordNet id, words) in output order. ``temperature`` divides the logits
    of a view. ``factors`` are (left, right) of the fully connected layers whose weight is ``left @ right``:
    they are served as two smaller layers.
    """

    name: str
    variant: Variant
    tensors: Mapping[str, Array]
    mean: Array
    labels: tuple[tuple[str, str], ...]
    std: Array | None = None
    source_size: int | None = None
    temperature: Mapping[View, float] = field(default_factory=dict)
    factors: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, shape in parameter_shapes(self.variant, len(self.labels)).items():
            if name not in self.tensors:
                raise ValueError(f"{self.name}: {name} is missing")
            if self.tensors[name].shape != shape:
                found = self.tensors[name].shape
                raise ValueError(f"{self.name}: {name} has shape {found}, {self.variant.name} needs {shape}")
        if self.mean.shape not in ((3,), (3, 256, 256)):
            raise ValueError(f"{self.name}: mean has shape {self.mean.shape}, not (3,) or (3, 256, 256)")

    @property
    def architecture(self) -> Architecture:
        """What the graph needs to know."""
        mean: Literal["image", "pixel"] = "pixel" if self.mean.ndim == 1 else "image"
        ranks = {layer: len(right) for layer, (_, right) in self.factors.items()}
        return Architecture(self.variant, len(self.labels), self.source_size, mean, ranks)

    def served(self) -> dict[str, Array]:
        """The weights under the names the graph asks for: conv1 reads RGB levels minus ``mean``.

        Division by ``std`` and BGR order go into conv1's weights, exactly: its zero padding is added behind
        both.
        """
        conv1 = self.tensors["conv1.weight"]
        if self.variant.channel_order == "BGR":
            conv1 = conv1[:, ::-1]
        if self.std is not None:
            conv1 = conv1 / self.std.reshape(1, 3, 1, 1)
        mean = self.mean.reshape(3, 1, 1) if self.mean.ndim == 1 else self.mean
        names = [f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")]
        tensors = {name: self.tensors[name] for name in names} | {"conv1.weight": conv1, "mean": mean}
        for layer, (left, right) in self.factors.items():
            del tensors[f"{layer}.weight"]
            tensors |= {f"{layer}.weight.left": left, f"{layer}.weight.right": right}
        return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}


def serving_model(
    weights: ServingWeights,
    view: View,
    precision: Precision = "fp32",
    ranges: Mapping[str, Range] | None = None,
) -> onnx.ModelProto:
    """The complete serving graph of a view, without the metadata that ``export`` adds."""
    temperature = weights.temperature.get(view, 1.0)
    graph = serving_graph(weights.architecture, view, precision, ranges=ranges, temperature=temperature)
    return fill(graph, weights.served())


def scaled(variant: Variant, divisor: int, hidden: int) -> Variant:
    """The variant with its convolutions' channels divided and ``hidden`` units in fc6 and fc7.

    Raises:
        ValueError: the divisor does not divide the channels of every tower.
    """
    if any(count % (2 * divisor) for count in variant.channels):
        raise ValueError(f"{divisor} does not divide the towers of {variant.channels}")
    channels = [count // divisor for count in variant.channels]
    return replace(
        variant, channels=(channels[0], channels[1], channels[2], channels[3], channels[4]), hidden=hidden
    )


def random_weights(
    variant: Variant, classes: int = 10, *, seed: int = 0, mean: Literal["image", "pixel"] | None = None
) -> ServingWeights:
    """Untrained weights, the same for the same seed, for tests and benchmarks.

    The scales keep all layers alive, the response norms far from constant and the softmax from saturating.
    With ``scaled(variant, ...)`` the network is as small as wanted.
    """
    rng = np.random.default_rng(seed)
    gains = {"conv1": 1.0, "conv3": 0.05}  # photos reach +-128; the others have He's gain behind a ReLU
    tensors: dict[str, Array] = {}
    for name, shape in parameter_shapes(variant, classes).items():
        gain = gains.get(name.removesuffix(".weight"), 1.4)
        spread = gain / np.sqrt(np.prod(shape[1:])) if name.endswith("weight") else 0.05
        tensors[name] = rng.standard_normal(shape, np.float32) * np.float32(spread)
    shape = (3,) if (mean or variant.mean) == "pixel" else (3, 256, 256)
    levels = (115 + 10 * rng.standard_normal(shape)).astype(np.float32)
    labels = tuple((f"n{index:08d}", f"class {index}") for index in range(classes))
    return ServingWeights(f"random-{variant.name}", variant, tensors, levels, labels)
