"""ONNX files of AlexNet: the network is read off the graph, whatever its tensors are called.

Convolutions and matrix products come in order; what stands between them, and the attributes, say which
variant it is. The model zoo's files came from Caffe through Caffe2: 224-pixel crops, no padding, so that
conv1 gives 54 cells and the first pooling runs over the edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from alexnet_server.models.public.errors import WeightsError
from alexnet_server.models.public.network import TORCHVISION_MEAN, TORCHVISION_STD, Array, Network, fitted
from alexnet_server.models.variants import LAYERS, VARIANTS, ResponseNorm, Step, Variant

# What the zoo's accuracies were measured with, RGB.
ZOO_MEAN = np.array([123.68, 116.779, 103.939], np.float32)
_STEPS: dict[str, Step] = {"Relu": "relu", "LRN": "lrn", "MaxPool": "pool"}
_IGNORED = {
    "Dropout",
    "Flatten",
    "Reshape",
    "Softmax",
    "Identity",
    "Shape",
    "Concat",
    "Gather",
    "Unsqueeze",
    "Constant",
}
_IGNORED |= {"AveragePool", "GlobalAveragePool"}  # torchvision's pooling of 6x6 to 6x6


def read(path: Path) -> Network:
    """The network of an ``.onnx`` file.

    Raises:
        WeightsError: it is no ONNX file, or the graph is not an AlexNet in floating point.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no stable name here
        raise WeightsError(f"{path} is not an ONNX model, or is damaged") from error
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    layers, behind = _walk(model.graph, path)
    found: dict[str, Array] = {}
    for name, node in zip(LAYERS, layers, strict=True):
        found |= {f"{name}.{kind}": value for kind, value in _parameters(node, arrays, path).items()}
    attributes = [_attributes(node) for node in layers]
    variant, tensors = fitted(_variant(model.graph, attributes, behind, path), found, path)
    if variant.lrn is None:
        return Network(variant, tensors, TORCHVISION_MEAN, TORCHVISION_STD)
    return Network(variant, tensors, ZOO_MEAN)


def _walk(graph: onnx.GraphProto, path: Path) -> tuple[list[onnx.NodeProto], list[list[onnx.NodeProto]]]:
    """The eight layers in order, and the nodes of interest behind each."""
    layers: list[onnx.NodeProto] = []
    behind: list[list[onnx.NodeProto]] = []
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            layers.append(node)
            behind.append([])
        elif node.op_type in _STEPS and layers:
            behind[-1].append(node)
        elif node.op_type not in _IGNORED:
            raise WeightsError(f"{path}: operator {node.op_type} does not occur in a floating-point AlexNet")
    kinds = [node.op_type for node in layers]
    if kinds != ["Conv"] * 5 + ["Gemm"] * 3:
        raise WeightsError(f"{path} is not an AlexNet: its layers are {', '.join(map(str, kinds)) or 'none'}")
    return layers, behind


def _called(node: onnx.NodeProto) -> str:
    return node.name or ", ".join(map(str, node.output))  # bytes, where they are no UTF-8


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _parameters(node: onnx.NodeProto, arrays: Mapping[str, onnx.TensorProto], path: Path) -> dict[str, Array]:
    if len(node.input) != 3 or not {node.input[1], node.input[2]} <= arrays.keys():
        raise WeightsError(f"{path}: {node.op_type} {_called(node)} has no constant weight and bias")
    tensors = [arrays[name] for name in node.input[1:]]
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise WeightsError(
            f"{path} keeps its weights in other files: save it as a single file with onnx.save"
        )
    try:
        weight, bias = (numpy_helper.to_array(tensor).astype(np.float32) for tensor in tensors)
    except (ValueError, TypeError, KeyError, OverflowError) as error:  # as a damaged tensor makes it fail
        raise WeightsError(f"{path}: a weight of {_called(node)} is damaged ({error})") from error
    own = _attributes(node)
    if node.op_type == "Gemm":
        if own.get("alpha", 1.0) != 1 or own.get("beta", 1.0) != 1 or own.get("transA", 0):
            raise WeightsError(f"{path}: Gemm {_called(node)} is scaled or transposed")
        weight = weight if own.get("transB", 0) else weight.T
    return {"weight": weight, "bias": bias}


def _variant(
    graph: onnx.GraphProto,
    layers: list[dict[str, Any]],
    behind: list[list[onnx.NodeProto]],
    path: Path,
) -> Variant:
    steps = [tuple(_STEPS[node.op_type] for node in nodes) for nodes in behind]
    for base in (VARIANTS[name] for name in ("caffe", "caffenet", "owt")):
        if steps[:5] == [base.layer1, base.layer2, ("relu",), ("relu",), base.layer5]:
            break
    else:
        raise WeightsError(f"{path} is not caffe, caffenet or owt: its layers are followed by {steps}")
    pads = [list(layer.get("pads", [0, 0, 0, 0])) for layer in layers[:5]]
    if [layer.get("strides") for layer in layers[:2]] != [[4, 4], [1, 1]] or pads[1:] != [
        [2] * 4,
        *[[1] * 4] * 3,
    ]:
        raise WeightsError(f"{path}: strides or padding are not AlexNet's")
    shape = graph.input[0].type.tensor_type.shape.dim if graph.input else []
    if len(shape) != 4 or len(pads[0]) != 4:
        raise WeightsError(f"{path}: images of {len(shape)} and pads of {len(pads[0])} numbers, not of 4")
    norms = [_attributes(node) for nodes in behind for node in nodes if node.op_type == "LRN"]
    groups = [layer.get("group", 1) for layer in layers[:5]]
    return replace(
        base,
        groups=(groups[0], groups[1], groups[2], groups[3], groups[4]),
        crop=shape[3].dim_value or base.crop,
        conv1_padding=(pads[0][0], pads[0][2]),
        lrn=_norm(norms, path) if norms else None,
    )


def _norm(norms: list[dict[str, Any]], path: Path) -> ResponseNorm:
    if any(norm != norms[0] for norm in norms):
        raise WeightsError(f"{path}: its response norms differ from one another")
    own = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0, **norms[0]}
    size = int(own["size"])
    k, alpha, beta = (float(str(np.float32(own[name]))) for name in ("bias", "alpha", "beta"))
    return ResponseNorm(k=k, alpha=alpha / size, beta=beta, size=size)
