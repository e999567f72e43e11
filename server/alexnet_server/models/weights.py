"""The weight file: every tensor of a network once, compressed, checked by sha256.

Layout: eight bytes of magic, the header's length (uint32, little-endian), the header in JSON, the payload.
The header names the network, the payload's sha256 and, for each tensor, its shape, its codec and the arrays
it is made of (name, dtype, shape, bytes, whether deflated), which follow one another in the payload:

=======  ==================================================================================================
plain    ``values``, float32 or float16
levels   a matrix of symbols (``entropy.Coded``), the ``levels`` they stand for and a ``scales`` for each row:
         weight = levels[symbol] * scales[row]
product  nothing: the tensor is ``<name>.left @ <name>.right``, two matrices stored beside it
=======  ==================================================================================================
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet_server.models.entropy import Coded, decode

MAGIC = b"ALEXNET\x01"
"""The last byte is the version of the format."""

_DEFLATED = 1 << 20
_DTYPES = ("float16", "float32", "uint8", "uint16", "uint32")


class WeightFileError(ValueError):
    """The file is not a weight file, of a newer version, or damaged; the message says which."""


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in the file: codec and arrays."""

    shape: tuple[int, ...]
    codec: str
    arrays: Mapping[str, NDArray[Any]]

    def values(self) -> NDArray[np.float32]:
        """The weights, float32.

        Raises:
            WeightFileError: the arrays do not make up such a tensor.
        """
        try:
            if self.codec == "plain":
                return self.arrays["values"].astype(np.float32, copy=False).reshape(self.shape)
            if self.codec == "levels":
                symbols = decode(Coded(**{field.name: self.arrays[field.name] for field in fields(Coded)}))
                levels, scales = (self.arrays[name].astype(np.float32) for name in ("levels", "scales"))
                result = levels[symbols]
                result *= scales[:, None]
                return result.reshape(self.shape)
        except (KeyError, IndexError, ValueError) as error:
            raise WeightFileError(f"a tensor of the weight file cannot be decoded: {error}") from error
        raise WeightFileError(f"the weight file uses codec {self.codec!r}: install a newer alexnet-server")


class WeightFile(Mapping[str, NDArray[np.float32]]):
    """The tensors of a weight file by name, each decoded when it is first asked for."""

    def __init__(self, name: str, stored: Mapping[str, Stored]) -> None:
        self.name = name
        self.stored = stored
        self._decoded: dict[str, NDArray[np.float32]] = {}

    def __getitem__(self, tensor: str) -> NDArray[np.float32]:
        if tensor not in self._decoded:
            if self.stored[tensor].codec == "product":
                value = self[f"{tensor}.left"] @ self[f"{tensor}.right"]
            else:
                value = self.stored[tensor].values()
            self._decoded[tensor] = value
        return self._decoded[tensor]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def write_weights(name: str, stored: Mapping[str, Stored]) -> bytes:
    """The bytes of a weight file."""
    tensors, payload = [], []
    for tensor, item in stored.items():
        arrays = []
        for key, array in item.arrays.items():
            raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            # Large arrays are coded already, or floats that would shrink by a few per cent.
            deflated = zlib.compress(raw, 9) if len(raw) < _DEFLATED else raw
            smaller = len(deflated) < len(raw)
            payload.append(deflated if smaller else raw)
            arrays.append([key, array.dtype.name, list(array.shape), len(payload[-1]), smaller])
        tensors.append({"name": tensor, "shape": list(item.shape), "codec": item.codec, "arrays": arrays})
    body = b"".join(payload)
    header = {"name": name, "payload_sha256": hashlib.sha256(body).hexdigest(), "tensors": tensors}
    head = json.dumps(header, separators=(",", ":")).encode()
    return MAGIC + len(head).to_bytes(4, "little") + head + body


def read_weights(path: Path) -> WeightFile:
    """Open a weight file and check it.

    Raises:
        WeightFileError: it is missing, no weight file, of a newer version, or damaged.
    """
    try:
        return parse_weights(path.read_bytes())
    except OSError as error:
        raise WeightFileError(f"cannot read the weight file {path}: {error.strerror}") from error
    except WeightFileError as error:
        raise WeightFileError(f"{path}: {error}") from error


def parse_weights(data: bytes) -> WeightFile:
    """``read_weights`` of a file's bytes."""
    if data[:7] != MAGIC[:7]:
        raise WeightFileError("not a weight file")
    if data[7] != MAGIC[7]:
        raise WeightFileError(f"format {data[7]} is not known: install a newer alexnet-server")
    size = int.from_bytes(data[8:12], "little")
    try:
        header = json.loads(data[12 : 12 + size])
        body = memoryview(data)[12 + size :]
        if hashlib.sha256(body).hexdigest() != header["payload_sha256"]:
            raise WeightFileError("damaged (its sha256 is another): fetch the file again")
        return WeightFile(header["name"], dict(_tensors(header["tensors"], body)))
    except WeightFileError:
        raise
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise WeightFileError("damaged (its header cannot be read): fetch the file again") from error


def _tensors(items: list[dict[str, Any]], body: memoryview) -> Iterator[tuple[str, Stored]]:
    position = 0
    for item in items:
        arrays = {}
        for key, dtype, shape, size, deflated in item["arrays"]:
            if dtype not in _DTYPES:
                raise WeightFileError(f"array type {dtype!r} is not known: install a newer alexnet-server")
            raw: bytes | memoryview = body[position : position + size]
            position += size
            if deflated:
                raw = zlib.decompress(raw)
            arrays[key] = np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).reshape(shape)
        yield item["name"], Stored(tuple(item["shape"]), item["codec"], arrays)
