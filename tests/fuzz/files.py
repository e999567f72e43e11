"""Mutated files of public weights against their importers, for `make fuzz`: Caffe's, PyTorch's and ONNX."""

import io
import random
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from alexnet_server.models.public import caffe, onnx_graph
from alexnet_server.models.public.torch_file import Tensor, TorchFile
from alexnet_server.models.variants import LAYERS
from tests.fuzz.mutations import NUMBERS


def caffemodel(draw: random.Random) -> bytes:
    """Layers of a few numbers each, some with shapes that are not theirs."""
    net = caffe._CLASSES["Net"]()
    for name in (*LAYERS, "norm1", "pool1"):
        layer = net.layer.add(name=name)
        for _ in range(2):
            blob = layer.blobs.add()
            blob.data.append(np.arange(12, dtype="<f4").tobytes()[: draw.choice((48, 48, 48, 47, 0))])
            blob.shape.dim.extend(
                (3, 4) if draw.random() < 0.7 else draw.choices(NUMBERS, k=draw.randrange(4))
            )
    return net.SerializeToString()


def mean(draw: random.Random) -> bytes:
    """A mean image of the wrong size, or of numbers that do not fit it."""
    blob = caffe._CLASSES["Blob"](num=1, channels=3, height=draw.choice((2, *NUMBERS)) & 2**31 - 1, width=2)
    blob.data.append(np.ones(draw.choice((12, 11, 0)), "<f4").tobytes())
    return blob.SerializeToString()


@cache
def _saved(legacy: bool) -> bytes:
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {"a.weight": base, "b.weight": base.permute(2, 0, 1).half(), "c.bias": base[0, 0]}
    file = io.BytesIO()
    torch.save({"state_dict": tensors, "epoch": 3}, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def pth(draw: random.Random) -> bytes:
    """A checkpoint as PyTorch writes it, today or before 1.6."""
    return _saved(draw.random() < 0.5)


def graph(draw: random.Random) -> bytes:
    """A graph of eight layers with small weights, some with shapes that are not theirs."""
    nodes, arrays, last = [], [], "images"
    for number in range(8):
        kind = "Conv" if number < 5 else "Gemm"
        weight = numpy_helper.from_array(
            np.ones((2, 2, 1, 1) if number < 5 else (2, 2), np.float32), f"w{number}"
        )
        if draw.random() < 0.2:
            weight.dims[draw.randrange(2)] = draw.choice(NUMBERS)
        arrays += [weight, numpy_helper.from_array(np.ones(2, np.float32), f"b{number}")]
        nodes.append(helper.make_node(kind, [last, f"w{number}", f"b{number}"], [f"y{number}"]))
        last = f"y{number}"
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("images", last)]
    return onnx.ModelProto(
        graph=helper.make_graph(nodes, "x", value[:1], value[1:], arrays)
    ).SerializeToString()


def _read_torch(path: Path) -> None:
    file = TorchFile(path)
    waiting = [file.root]
    while waiting:
        found = waiting.pop()
        if isinstance(found, Tensor):
            file.array(found)
        elif isinstance(found, dict):
            waiting += found.values()


def reader(suffix: str, read: Callable[[Path], object]) -> Callable[[bytes, random.Random], None]:
    """What gives its bytes to ``read`` as a file."""

    def from_file(data: bytes, _: random.Random) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"x{suffix}"
            path.write_bytes(data)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of numbers that are none
                read(path)

    return from_file


READERS = {
    "caffemodel": (caffemodel, reader(".caffemodel", lambda path: caffe.read(path, None))),
    "binaryproto": (mean, reader(".binaryproto", caffe.read_mean)),
    "pth": (pth, reader(".pth", _read_torch)),
    "onnx": (graph, reader(".onnx", onnx_graph.read)),
}
