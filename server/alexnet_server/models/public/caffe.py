"""Caffe's ``.caffemodel``: a NetParameter message with the weights as blobs, read with protobuf itself.

Only the fields that matter are declared, by BVLC's caffe.proto numbers; protobuf skips the rest. Both
generations are read: ``layers`` (V1LayerParameter, the files of 2013 and 2014) and ``layer``. Blobs' floats
are declared as bytes, which is what packed floats are on the wire, so that numpy takes them without a copy
through Python.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from alexnet_server.models.public.errors import WeightsError
from alexnet_server.models.public.network import CAFFE_MEAN, Array, Network, fitted
from alexnet_server.models.variants import LAYERS, VARIANTS, ResponseNorm, Variant

_Field = descriptor_pb2.FieldDescriptorProto
_MESSAGES: dict[str, list[tuple[str, int, Any]]] = {
    "BlobShape": [("dim", 1, _Field.TYPE_INT64)],
    "Blob": [
        *(
            (name, number, _Field.TYPE_INT32)
            for number, name in enumerate(("num", "channels", "height", "width"), 1)
        ),
        ("data", 5, _Field.TYPE_BYTES),
        ("shape", 7, "BlobShape"),
        ("double_data", 8, _Field.TYPE_BYTES),
    ],
    "LRN": [
        ("local_size", 1, _Field.TYPE_UINT32),
        ("alpha", 2, _Field.TYPE_FLOAT),
        ("beta", 3, _Field.TYPE_FLOAT),
        ("k", 5, _Field.TYPE_FLOAT),
    ],
    "Layer": [("name", 1, _Field.TYPE_STRING), ("blobs", 7, "Blob"), ("lrn", 118, "LRN")],
    "V1Layer": [("name", 4, _Field.TYPE_STRING), ("blobs", 6, "Blob"), ("lrn", 18, "LRN")],
    "Net": [("layers", 2, "V1Layer"), ("layer", 100, "Layer")],
}
_REPEATED = {"dim", "data", "double_data", "blobs", "layers", "layer"}
_LRN_DEFAULTS = {"local_size": 5, "alpha": 1.0, "beta": 0.75, "k": 1.0}


def _message_classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="caffe_weights.proto", package="caffe_weights", syntax="proto2"
    )
    for message, declared in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind in declared:
            field = described.field.add(name=name, number=number)
            field.label = _Field.LABEL_REPEATED if name in _REPEATED else _Field.LABEL_OPTIONAL
            if isinstance(kind, str):
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".caffe_weights.{kind}"
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe_weights.{message}"))
        for message in _MESSAGES
    }


_CLASSES = _message_classes()


def read(path: Path, variant: str | None) -> Network:
    """The network of a ``.caffemodel``.

    Args:
        path: the file.
        variant: ``caffe`` or ``caffenet``; None finds out from the order of its layers.

    Raises:
        WeightsError: it is no Caffe network, not an AlexNet, or does not say which.
    """
    try:
        net = _CLASSES["Net"].FromString(path.read_bytes())
    except DecodeError as error:
        raise WeightsError(f"{path} is not a caffemodel, or is damaged") from error
    layers = {layer.name: layer for layer in [*net.layers, *net.layer]}
    found: dict[str, Array] = {}
    for name in LAYERS:
        blobs = layers[name].blobs if name in layers else []
        found.update(
            {f"{name}.{kind}": _array(blob) for kind, blob in zip(("weight", "bias"), blobs, strict=False)}
        )
    there = {name: _array(layer.blobs[0]).shape for name, layer in layers.items() if layer.blobs}
    if "fc8.weight" not in found:
        found |= _last(layers, found, path)
    return Network(*fitted(_variant(list(layers), layers, variant, path), found, path, there), CAFFE_MEAN)


def _last(layers: Mapping[str, Any], found: Mapping[str, Array], path: Path) -> dict[str, Array]:
    """The last layer under another name, as fine-tuned networks have it: the only one that reads fc7."""
    if "fc7.bias" not in found:
        return {}
    inputs, heads = found["fc7.bias"].size, {}
    for name, layer in layers.items():
        if name not in LAYERS and len(layer.blobs) == 2:
            weight, bias = map(_array, layer.blobs)
            if weight.size == bias.size * inputs:
                heads[name] = {"fc8.weight": weight, "fc8.bias": bias}
    if len(heads) > 1:
        raise WeightsError(f"{path} has several last layers, {', '.join(heads)}: keep only one of them")
    return next(iter(heads.values()), {})


def read_mean(path: Path) -> Array:
    """The mean image of a ``.binaryproto`` or ``.npy``, (3, 256, 256) BGR there, as RGB.

    Raises:
        WeightsError: it is neither.
    """
    try:
        if path.suffix == ".npy":
            mean = np.load(path, mmap_mode="r", allow_pickle=False).astype(np.float32)
        else:
            mean = _array(_CLASSES["Blob"].FromString(path.read_bytes()))
    except (DecodeError, ValueError) as error:
        raise WeightsError(f"{path} is not a mean image (.binaryproto or .npy)") from error
    mean = mean[0] if mean.ndim == 4 and len(mean) == 1 else mean
    if mean.shape not in ((3, 256, 256), (3,)):
        raise WeightsError(f"{path}: the mean has shape {mean.shape}, not (3, 256, 256)")
    return np.ascontiguousarray(mean[::-1])


def _array(blob: Any) -> Array:
    single, double = b"".join(blob.data), b"".join(blob.double_data)
    if len(single) % 4 or len(double) % 8:
        raise WeightsError("a blob ends in the middle of a number: the file is damaged")
    values = np.frombuffer(single, "<f4") if single else np.frombuffer(double, "<f8").astype(np.float32)
    old = [n for n in (blob.num, blob.channels, blob.height, blob.width) if n]
    shape = list(blob.shape.dim) or old or [values.size]
    if min(shape) < 0 or values.size != math.prod(shape):
        raise WeightsError(f"a blob holds {values.size} numbers for shape {shape}: the file is damaged")
    try:
        return values.reshape(shape)
    except ValueError as error:  # no numbers, in a shape beyond any array; or too many dimensions
        raise WeightsError(f"a blob has shape {shape[:9]}: the file is damaged") from error


def _variant(names: list[str], layers: dict[str, Any], wanted: str | None, path: Path) -> Variant:
    order = None
    if "norm1" in names and "pool1" in names:
        order = "caffe" if names.index("norm1") < names.index("pool1") else "caffenet"
    if wanted is None and order is None:
        raise WeightsError(
            f"{path} holds only weights: give --variant caffe (norm, pool) or caffenet (pool, norm)"
        )
    if wanted is not None and order is not None and wanted != order:
        raise WeightsError(f"{path} is a {order}, by the order of its layers, not a {wanted}")
    variant = VARIANTS[wanted or order or ""]
    lrn = layers["norm1"].lrn if "norm1" in names else None
    if lrn is None or not lrn.ByteSize():
        return variant
    own = {name: getattr(lrn, name) if lrn.HasField(name) else value for name, value in _LRN_DEFAULTS.items()}
    size = int(own["local_size"])
    k, alpha, beta = (_decimal(own[name]) for name in ("k", "alpha", "beta"))
    norm = ResponseNorm(k=k, alpha=alpha / size, beta=beta, size=size)  # lrn_layer.cpp:120 divides by size
    return variant if norm == variant.lrn else replace(variant, lrn=norm)


def _decimal(value: float) -> float:
    """The float64 of the shortest decimal of a float32: 1e-4, not 9.99999974e-05."""
    return float(str(np.float32(value)))
