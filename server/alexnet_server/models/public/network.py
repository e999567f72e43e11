"""What every importer gives: the network in its own terms, and what its pixels look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet_server.models.public.errors import WeightsError
from alexnet_server.models.variants import LAYERS, Variant, parameter_shapes

Array = NDArray[np.float32]

_TOLD = 24
# The mean pixel of ILSVRC-2012 in RGB levels, as Caffe's users have always subtracted it.
CAFFE_MEAN = np.array([122.67891434, 116.66876762, 104.00698793], np.float32)
# torchvision.transforms.Normalize of its pretrained models, in levels.
TORCHVISION_MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
TORCHVISION_STD = np.array([0.229, 0.224, 0.225], np.float32) * 255


@dataclass(frozen=True)
class Network:
    """Weights (canonical names and shapes), variant, and mean and divisor of the pixels, RGB in levels."""

    variant: Variant
    tensors: Mapping[str, Array]
    mean: Array
    std: Array | None = None

    @property
    def classes(self) -> int:
        """How many classes it knows."""
        return len(self.tensors["fc8.bias"])


def fitted(
    variant: Variant,
    found: Mapping[str, Array],
    source: str | Path,
    there: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[Variant, dict[str, Array]]:
    """The variant at the width that was found, and the arrays in its shapes.

    Caffe's old files pad their shapes with ones.

    Args:
        variant: the network it should be.
        found: its parameters under our names.
        source: the file, for messages.
        there: shapes under the file's own names, to be shown where a parameter is missing.

    Raises:
        WeightsError: one is missing or of another size.
    """
    missing = [
        f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias") if f"{layer}.{kind}" not in found
    ]
    if missing:
        own = ", ".join(f"{name} {list(shape)}" for name, shape in list((there or {}).items())[:_TOLD])
        told = f"; it holds {own}{' ...' if len(there or {}) > _TOLD else ''}" if own else ""
        raise WeightsError(f"{source} has no {missing[0]}: it is not an AlexNet, or is truncated{told}")
    widths = [found[f"{layer}.bias"].size for layer in LAYERS]
    variant = replace(
        variant, channels=(widths[0], widths[1], widths[2], widths[3], widths[4]), hidden=widths[5]
    )
    tensors = {}
    for name, shape in parameter_shapes(variant, widths[7]).items():
        array = found[name]
        if [size for size in array.shape if size > 1] != [size for size in shape if size > 1]:
            raise WeightsError(f"{source}: {name} has shape {array.shape}, {variant.name} needs {shape}")
        tensors[name] = np.ascontiguousarray(array.reshape(shape), np.float32)
    return variant, tensors
