"""The weight file: a NumPy archive (``.npz``) that holds every tensor of a network once.

==========================================  ==========================================================
``<tensor>``                                the tensor, float32 or float16
``<tensor>.codes``, ``<tensor>.scales``     int8 codes and a float32 scale for each row (output channel):
                                            weight = codes * scales
``<tensor>.left.…``, ``<tensor>.right.…``   two such matrices, whose product the tensor is
==========================================  ==========================================================
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIMIT = 1 << 30
"""Most bytes that a file's arrays, and each tensor made of them, may take; an AlexNet has a quarter of it."""
_TYPES = ("int8", "float16", "float32")
_EARLIER = b"ALEXNET"  # how weight files began before they were NumPy archives


class WeightFileError(ValueError):
    """The file is missing, no weight file, of an earlier version, or damaged; one line that says which."""


def read_weights(path: Path, sha256: str | None = None, *, only: str = "") -> dict[str, NDArray[np.float32]]:
    """The tensors of a weight file by name; ``tensor`` multiplies factors out.

    Args:
        path: the file.
        sha256: hexadecimal, what the file must have.
        only: how the names begin of the tensors that are wanted.

    Raises:
        WeightFileError: it cannot be read, has another sha256, or holds something else than weights.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightFileError(f"cannot read {path}: {error.strerror}") from error
    if data.startswith(_EARLIER):
        raise WeightFileError(
            f"{path} was written by an earlier version: write the model repository again, with the "
            "same alexnet-train export, import or release"
        )
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise WeightFileError(
            f"{path} is damaged or not the one the models were exported with (its sha256 differs): "
            "fetch it again"
        )
    try:
        return parse_weights(data, only)
    except Exception as error:  # whatever a broken archive does to zipfile and numpy
        raise WeightFileError(
            f"{path} is not a weight file, or is damaged ({error}): fetch it again"
        ) from error


def parse_weights(data: bytes, only: str = "") -> dict[str, NDArray[np.float32]]:
    """``read_weights`` of a file's bytes, which raises whatever zipfile and numpy do."""
    arrays = stored_arrays(data, only)
    weights: dict[str, NDArray[np.float32]] = {}
    for key, array in arrays.items():
        name, _, part = key.rpartition(".")
        if part == "codes":
            weights[name] = dequantise(array, arrays[f"{name}.scales"])
        elif part != "scales":
            weights[key] = array.astype(np.float32)
    for name in [key.removesuffix(".left") for key in weights if key.endswith(".left")]:
        left, right = weights[f"{name}.left"], weights[f"{name}.right"]
        if left.ndim != 2 or right.shape[:1] != left.shape[1:] or 4 * len(left) * right[0].size > LIMIT:
            raise ValueError(f"{name} is too large, or its factors do not fit each other")
    return weights


def tensor(weights: Mapping[str, NDArray[np.float32]], name: str) -> NDArray[np.float32]:
    """A tensor of a weight file, multiplied out where the file holds its factors.

    Raises:
        KeyError: it holds neither.
    """
    if name in weights:
        return weights[name]
    product: NDArray[np.float32] = weights[f"{name}.left"] @ weights[f"{name}.right"]
    return product


def dequantise(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """(out, ...) codes and (out,) scales -> float32 ``codes * scales[row]``."""
    weight = codes.astype(np.float32)
    weight *= scales.reshape(len(codes), *[1] * (codes.ndim - 1))
    return weight


def stored_arrays(data: bytes, only: str = "") -> dict[str, NDArray[Any]]:
    """A weight file's arrays as they are stored; it raises as ``parse_weights`` does.

    Sizes are known before anything is inflated, and no more than that is inflated.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > LIMIT:
            raise ValueError(f"it would take more than {LIMIT >> 20} MiB")
        return {
            member.filename.removesuffix(".npy"): _array(archive.read(member))
            for member in members
            if member.filename.startswith(only)
        }


def _array(data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("its arrays belong to another version")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.name not in _TYPES or fortran or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"an array {dtype}{list(shape)} does not belong here")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)
