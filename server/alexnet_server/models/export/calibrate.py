"""Ranges of the activations for int8, by percentile over photos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from alexnet_server.models.export.graph import calibration_graph
from alexnet_server.models.export.layers import Range
from alexnet_server.models.export.run import runner
from alexnet_server.models.export.weights import ServingWeights
from alexnet_server.models.graphs import fill

PERCENTILE = 99.99
SAMPLES = 20_000
"""Values taken of each tensor and photo: 200 photos then put 400 values above the 99.99th percentile."""


def calibrate(
    weights: ServingWeights, photos: Iterable[NDArray[np.uint8]], *, percentile: float = PERCENTILE
) -> dict[str, Range]:
    """Run the fp32 network over the centre crops of photos and find what its tensors lie between.

    Args:
        weights: the network.
        photos: arrays (256, 256, 3) uint8 as ``prepare`` makes them; training images, a few hundred.
        percentile: share of a tensor's values, in percent, that lies below the upper end of its range, and
            above the lower end of those with a sign. The rest is clipped.

    Returns:
        For each layer ``<layer>.in``, and for each convolution ``<layer>.out``, its range.

    Raises:
        RuntimeError: no engine is installed.
        ValueError: there were no photos.
    """
    graph, points = calibration_graph(weights.architecture)
    return observed_ranges(fill(graph, weights.served()), points, photos, percentile=percentile)


def observed_ranges(
    model: onnx.ModelProto,
    points: Mapping[str, str],
    photos: Iterable[NDArray[np.uint8]],
    *,
    percentile: float = PERCENTILE,
) -> dict[str, Range]:
    """``calibrate`` of a graph as it is: the ranges of ``points``, names to tensors of that graph.

    Args:
        model: complete, in fp32; the tensors become outputs of it.
        points: what to look at.
        photos: as for ``calibrate``, which raises the same errors.
        percentile: likewise.
    """
    for tensor in dict.fromkeys(points.values()):
        model.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    run = runner(model)
    rng = np.random.default_rng(0)
    samples: dict[str, list[NDArray[np.float32]]] = {tensor: [] for tensor in points.values()}
    for photo in photos:
        for name, values in zip(samples, run(list(samples), photo[None]), strict=True):
            flat = values.reshape(-1)
            samples[name].append(flat if flat.size <= SAMPLES else rng.choice(flat, SAMPLES, replace=False))
    if not all(samples.values()):
        raise ValueError("no photos to calibrate on")
    ranges = {name: percentile_range(np.concatenate(parts), percentile) for name, parts in samples.items()}
    return {point: ranges[tensor] for point, tensor in points.items()}


def percentile_range(values: NDArray[np.float32], percentile: float = PERCENTILE) -> Range:
    """The range of a tensor's values, of any shape; what ``percentile`` cuts off is clipped."""
    low, high = np.percentile(values, [100 - percentile, percentile])
    return Range(float(min(low, 0)), float(max(high, 0)))
