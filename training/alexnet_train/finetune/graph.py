"""A serving graph for other classes: the same graph with another fc8's shapes, temperature and metadata.

Nothing else is touched, whatever variant the graph is of and however it was made: its convolutions, its fc6
and fc7 compute what they computed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from alexnet_train.finetune.errors import FinetuneError

HEAD = ("fc8.weight", "fc8.bias")
_TEMPERATURE = "temperature"


def with_classes(
    graph: onnx.ModelProto, classes: int, temperature: float, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """A copy of a graph without weights, for so many classes.

    Args:
        graph: as ``serving_graph`` makes them, of any view and precision.
        classes: rows of fc8.
        temperature: logits are divided by it.
        metadata: entries of ``metadata_props`` that change.

    Raises:
        FinetuneError: the graph is of an older version, and has no fc8 where one is expected.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    if not _resize_head(model.graph, classes):
        raise FinetuneError("the network's graphs have no fc8 to replace: export or import it again")
    _resize_views(model.graph, classes)
    _set_temperature(model.graph, temperature)
    output = next(output for output in model.graph.output if output.name == "probabilities")
    output.type.tensor_type.shape.dim[-1].dim_value = classes
    told = {prop.key: prop.value for prop in model.metadata_props}
    del model.metadata_props[:]
    helper.set_model_props(model, {**told, **metadata})
    return model


def with_inputs_of(model: onnx.ModelProto, layer: str) -> onnx.ModelProto:
    """A copy of a complete graph whose ``features`` (N, 2 x hidden) begin with what fc7 reads.

    Args:
        model: of the centre view, in any precision.
        layer: ``fc7``, or another whose inputs are rows.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    nodes = {node.name: node for node in graph.node}
    reads = nodes.get(f"{layer}.right", nodes[layer]).input[0]
    last = nodes["features"]
    name = f"{layer}.reads"
    joined = helper.make_node("Concat", [reads, last.input[0]], [name], name=name, axis=1)
    last.input[0] = name
    graph.node.insert(list(graph.node).index(last), joined)
    dims = next(output for output in graph.output if output.name == "features").type.tensor_type.shape.dim
    dims[-1].ClearField("dim_value")
    return changed


def up_to(model: onnx.ModelProto, layer: str) -> onnx.ModelProto:
    """A copy of a complete graph that ends where a layer begins; its only output is what the layer reads."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    at, reads = next((i, node.input[0]) for i, node in enumerate(graph.node) if node.name == layer)
    del graph.node[at:]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(reads, onnx.TensorProto.FLOAT, None))
    _remove_unused(graph)
    return changed


def _resize_head(graph: onnx.GraphProto, classes: int) -> bool:
    """Give every tensor made of fc8's weight or bias ``classes`` rows; False where there is none."""
    found = False
    for tensor in graph.initializer:
        how = {entry.key: entry.value for entry in tensor.external_data}
        if how.get("tensor") in HEAD:
            tensor.dims[0] = classes
            found = True
        elif tensor.name == "fc8.weight.zero":  # of int8 codes: the graph's own constant
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(classes, np.int8), tensor.name))
    return found


def _resize_views(graph: onnx.GraphProto, classes: int) -> None:
    """Reshape the probabilities of ten views to the new number of classes, where there are ten."""
    for node in graph.node:
        if node.op_type == "Reshape" and node.name == "probabilities.views":
            name = f"int64(10, -1, {classes})"
            node.input[1] = name
            _set(graph, name, np.array([10, -1, classes], np.int64))
    _remove_unused(graph)


def _remove_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _set_temperature(graph: onnx.GraphProto, temperature: float) -> None:
    """Divide the logits by it; a graph of temperature 1 has no such node yet."""
    divided = any(_TEMPERATURE in node.input for node in graph.node)
    _set(graph, _TEMPERATURE, np.array(temperature, np.float32))
    if divided:
        return
    at, softmax = next((i, node) for i, node in enumerate(graph.node) if node.name == "softmax")
    logits, name = softmax.input[0], "logits.tempered"
    softmax.input[0] = name
    graph.node.insert(at, helper.make_node("Div", [logits, _TEMPERATURE], [name], name=name))


def _set(graph: onnx.GraphProto, name: str, value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    for tensor in [tensor for tensor in graph.initializer if tensor.name == name]:
        graph.initializer.remove(tensor)
    graph.initializer.append(numpy_helper.from_array(value, name))
