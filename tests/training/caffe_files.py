"""Writes Caffe's two files for a network of ours: the prototxt, and the caffemodel in protobuf's wire format.

Field numbers are those of BVLC's caffe.proto: NetParameter.layer = 100, LayerParameter.name = 1, type = 2,
blobs = 7, BlobProto.data = 5 (packed floats), shape = 7, BlobShape.dim = 1.
"""

import numpy as np
from numpy.typing import NDArray

from alexnet_server.models.variants import LAYERS, Variant

Array = NDArray[np.float32]
POOL = "pooling_param { pool: MAX kernel_size: 3 stride: 2 }"
LRN = "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }"  # the same in both of BVLC's train_val.prototxt


def prototxt(variant: Variant, hidden: int, classes: int) -> str:
    """The deploy network of ``caffe`` (norm, then pool) or ``caffenet`` (pool, then norm), up to fc8."""
    side = variant.crop
    text = f'name: "net"\ninput: "data"\ninput_dim: 1\ninput_dim: 3\ninput_dim: {side}\ninput_dim: {side}\n'
    bottom = "data"
    for i in range(1, 6):
        kernel, stride, pad = ((11, 4, 0), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))[i - 1]
        text += _layer(
            f"conv{i}",
            "Convolution",
            bottom,
            f"conv{i}",
            f"convolution_param {{ num_output: {variant.channels[i - 1]} group: {variant.groups[i - 1]} "
            f"kernel_size: {kernel} stride: {stride} pad: {pad} }}",
        )
        bottom = f"conv{i}"
        behind = {1: variant.layer1, 2: variant.layer2, 5: variant.layer5}.get(i, ("relu",))
        for step in behind:
            if step == "relu":
                text += _layer(f"relu{i}", "ReLU", bottom, bottom)
            elif step == "pool":
                text += _layer(
                    f"pool{i}",
                    "Pooling",
                    bottom,
                    f"pool{i}",
                    POOL,
                )
                bottom = f"pool{i}"
            else:
                text += _layer(f"norm{i}", "LRN", bottom, f"norm{i}", LRN)
                bottom = f"norm{i}"
    for name, outputs in (("fc6", hidden), ("fc7", hidden), ("fc8", classes)):
        text += _layer(name, "InnerProduct", bottom, name, f"inner_product_param {{ num_output: {outputs} }}")
        bottom = name
        if name != "fc8":
            text += _layer(f"relu_{name}", "ReLU", name, name)
            text += _layer(f"drop_{name}", "Dropout", name, name, "dropout_param { dropout_ratio: 0.5 }")
    return text


def _layer(name: str, kind: str, bottom: str, top: str, parameters: str = "") -> str:
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" {parameters} }}\n'


def caffemodel(weights: dict[str, Array]) -> bytes:
    """NetParameter of layers ``conv1`` ... ``fc8`` from ``conv1.weight``, ``conv1.bias`` ..."""
    net = b""
    for name in sorted({key.split(".")[0] for key in weights}):
        kind = "Convolution" if name.startswith("conv") else "InnerProduct"
        layer = _field(1, name.encode()) + _field(2, kind.encode())
        for part in ("weight", "bias"):
            layer += _field(7, _blob(weights[f"{name}.{part}"]))
        net += _field(100, layer)
    return net


def first_generation(
    weights: dict[str, Array], norm: bytes = b"", order: tuple[str, str] = ("norm1", "pool1")
) -> bytes:
    """A V1 net as the files of 2013 are: ``layers`` = 2, name 4, type 5, blobs 6; shapes padded with ones."""
    net = b""
    for name in ("conv1", *order, *LAYERS[1:]):
        layer = _field(4, name.encode())
        for kind in ("weight", "bias") if name in LAYERS else ():
            array = weights[f"{name}.{kind}"]
            shape = (1,) * (4 - array.ndim) + array.shape
            blob = b"".join(_varint(field << 3) + _varint(size) for field, size in enumerate(shape, 1))
            layer += _field(6, blob + _field(5, array.astype("<f4").tobytes()))
        layer += _field(18, norm) if name == "norm1" and norm else b""
        net += _field(2, layer)
    return net


def _blob(array: Array) -> bytes:
    shape = _field(1, b"".join(_varint(dim) for dim in array.shape))
    return _field(5, array.astype("<f4").tobytes()) + _field(7, shape)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
