"""What the importers' tests share: small networks, the zoo's way to write them, the command, the answers."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from alexnet_server.models.export.weights import random_weights, scaled
from alexnet_server.models.repository import read_repository
from alexnet_server.models.variants import VARIANTS
from alexnet_train import cli

CLASSES = 9


def small(name):
    return random_weights(scaled(VARIANTS[name], 8, 96), CLASSES)


def run(*arguments):
    return cli.main(["import", *map(str, arguments)])


def served(folder, photos, model="alexnet"):
    session = onnxruntime.InferenceSession(
        read_repository(folder).models[model].onnx, providers=["CPUExecutionProvider"]
    )
    return session.run(["probabilities"], {"images": photos})[0]


def zoo_model(weights):
    """A graph as Caffe2 wrote the zoo's: 224 pixels, no padding, pool1 over the edge, its names."""
    variant, nodes, arrays, x = weights.variant, [], {}, "data_0"

    def add(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def parameters(name):
        arrays[f"{name}_w_0"], arrays[f"{name}_b_0"] = (
            weights.tensors[f"{name}.{k}"] for k in ("weight", "bias")
        )
        return [f"{name}_w_0", f"{name}_b_0"]

    behind = (variant.layer1, variant.layer2, ("relu",), ("relu",), variant.layer5)
    for i in range(5):
        kernel, pad, stride = [(11, 0, 4), (5, 2, 1), (3, 1, 1), (3, 1, 1), (3, 1, 1)][i]
        shape = {"kernel_shape": [kernel] * 2, "pads": [pad] * 4, "strides": [stride] * 2}
        x = add("Conv", [x, *parameters(f"conv{i + 1}")], f"conv{i + 1}_1", group=variant.groups[i], **shape)
        for step in behind[i]:
            if step == "relu":
                x = add("Relu", [x], f"conv{i + 1}_2")
            elif step == "lrn":
                x = add("LRN", [x], f"norm{i + 1}_1", alpha=1e-4, beta=0.75, bias=1.0, size=5)
            else:
                edge = 1 if i == 0 else 0
                window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, edge, edge]}
                x = add("MaxPool", [x], f"pool{i + 1}_1", **window)
    arrays["OC2_DUMMY_1"] = np.array([1, -1], np.int64)
    x = add("Reshape", [x, "OC2_DUMMY_1"], "OC2_DUMMY_0")
    for name in ("fc6", "fc7", "fc8"):
        x = add("Gemm", [x, *parameters(name)], f"{name}_1", transB=1)
        if name != "fc8":
            x = add("Dropout", [add("Relu", [x], f"{name}_2")], f"{name}_3")
    add("Softmax", [x], "softmaxout_1")
    graph = helper.make_graph(
        nodes,
        "bvlc_alexnet",
        [helper.make_tensor_value_info("data_0", TensorProto.FLOAT, [1, 3, 224, 224])],
        [helper.make_tensor_value_info("softmaxout_1", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
