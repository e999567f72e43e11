"""The protocol's tensor encodings <-> NumPy. Pure functions; a tensor at fault is named."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alexnet_server.errors import InvalidRequest

Rows: TypeAlias = NDArray[np.uint8] | tuple[bytes, ...]
"""A decoded input: `[N, 256, 256, 3]` images for UINT8, N encoded photos for BYTES."""
Values: TypeAlias = NDArray[Any]
"""An output: FP32 numbers, or bytes objects for BYTES."""
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor of a model; every one has a batch dimension before `dims`."""

    name: str
    datatype: str
    """UINT8, FP32 or BYTES."""
    dims: tuple[int, ...]

    @property
    def shape(self) -> list[int]:
        """With -1 for the batch, as metadata shows it."""
        return [-1, *self.dims]


def check(spec: Spec, datatype: str, shape: Sequence[Any], max_rows: int) -> int:
    """The number of rows that a request announces for `spec`.

    Raises:
        InvalidRequest: another datatype or shape, no row, or more than `max_rows`.
    """
    if datatype != spec.datatype:
        raise InvalidRequest(
            f"input {spec.name!r}: expected datatype {spec.datatype}, got {str(datatype)[:40]!r}"
        )
    if spec.dims == (1,) and len(shape) == 1:  # [N] where [N,1] is meant
        shape = [*shape, 1]
    dims = [dim for dim in shape if isinstance(dim, int) and not isinstance(dim, bool)]
    if len(dims) != len(shape) or len(shape) != 1 + len(spec.dims) or tuple(dims[1:]) != spec.dims:
        raise InvalidRequest(f"input {spec.name!r}: expected shape {spec.shape}, got {str(list(shape))[:80]}")
    if not 1 <= dims[0] <= max_rows:
        raise InvalidRequest(
            f"input {spec.name!r}: this model takes 1 to {max_rows} rows per request, got {dims[0]}"
        )
    return dims[0]


def from_raw(spec: Spec, rows: int, raw: bytes | memoryview) -> Rows:
    """A tensor from its binary form: numbers row by row, or BYTES elements each after its length in 4 bytes.

    Raises:
        InvalidRequest: the length is not what the shape asks for.
    """
    if spec.datatype == "BYTES":
        return _elements(spec, rows, raw)
    expected = rows * prod(spec.dims)
    if len(raw) != expected:
        raise InvalidRequest(
            f"input {spec.name!r}: expected {expected} bytes for {rows} rows, got {len(raw)}"
        )
    return np.frombuffer(raw, np.uint8).reshape(rows, *spec.dims)


def _elements(spec: Spec, count: int, raw: bytes | memoryview) -> tuple[bytes, ...]:
    elements, offset = [], 0
    for number in range(count):
        if offset + 4 > len(raw):
            raise InvalidRequest(
                f"input {spec.name!r}: expected {count} elements, but the data ends after {number}"
            )
        (length,) = struct.unpack_from("<I", raw, offset)
        if length > len(raw) - offset - 4:
            raise InvalidRequest(
                f"input {spec.name!r}: element {number} announces {length} bytes, "
                f"{len(raw) - offset - 4} are left"
            )
        elements.append(bytes(raw[offset + 4 : offset + 4 + length]))
        offset += 4 + length
    if offset != len(raw):
        raise InvalidRequest(
            f"input {spec.name!r}: {len(raw) - offset} bytes follow the last of {count} elements"
        )
    return tuple(elements)


def from_whole(spec: Spec, raw: bytes | memoryview) -> tuple[int, bytes | memoryview]:
    """A body that is nothing but one tensor: the rows it makes, and their binary form.

    For BYTES it is one element without its length, as Triton reads it: a photo's file as it is.
    """
    if spec.datatype == "BYTES":
        return 1, struct.pack("<I", len(raw)) + bytes(raw)
    return max(1, len(raw) // prod(spec.dims)), raw


def from_numbers(spec: Spec, rows: int, numbers: Sequence[Any]) -> Rows:
    """A UINT8 tensor from a sequence of numbers, or from lists of lists of them as its shape nests.

    Nothing is made of them before their number and types are known: a list of two strings may ask NumPy for
    gigabytes.

    Raises:
        InvalidRequest: not that many, not whole numbers, or not 0 to 255.
    """
    flat = _flat(spec, (rows, *spec.dims), numbers)
    try:
        if set(map(type, flat)) != {int}:
            raise ValueError
        return np.frombuffer(bytes(flat), np.uint8).reshape(rows, *spec.dims)
    except ValueError:
        raise InvalidRequest(f"input {spec.name!r}: UINT8 holds whole numbers from 0 to 255") from None


def _flat(spec: Spec, shape: tuple[int, ...], numbers: Sequence[Any]) -> list[Any]:
    """As many elements as `shape` holds; what they are is not looked at."""
    nesting, level = [len(numbers)], list(numbers)
    while (
        prod(nesting) <= prod(shape) and len(nesting) <= len(shape) and level and isinstance(level[0], list)
    ):
        lengths = {len(each) if isinstance(each, list) else -1 for each in level}
        if len(lengths) > 1:
            raise InvalidRequest(f"input {spec.name!r}: the nested lists differ in length")
        nesting.append(lengths.pop())
        if prod(nesting) <= prod(shape):
            level = list(chain.from_iterable(level))
    if prod(nesting) != prod(shape):
        raise InvalidRequest(
            f"input {spec.name!r}: expected {prod(shape)} numbers for {shape[0]} rows, got {prod(nesting)}"
        )
    if len(nesting) > 1 and tuple(nesting) != shape:
        raise InvalidRequest(
            f"input {spec.name!r}: the lists are nested as {nesting}, the shape says {list(shape)}"
        )
    return level


def from_json(spec: Spec, rows: int, data: Any, *, is_base64: bool) -> Rows:
    """A tensor from the `data` member of a JSON request.

    A photo is no text: as JSON it must be base64, and say so with the parameter `content_type: base64`.

    Raises:
        InvalidRequest: not a list, or of other things than the tensor holds.
    """
    if not isinstance(data, list):
        raise InvalidRequest(f"input {spec.name!r}: `data` must be a list, or `binary_data_size` be given")
    if spec.datatype != "BYTES":
        return from_numbers(spec, rows, data)
    flat = [element for row in data for element in (row if isinstance(row, list) else [row])]
    if len(flat) != rows or not all(isinstance(element, str) for element in flat):
        raise InvalidRequest(f"input {spec.name!r}: expected {rows} strings, one per row")
    if not is_base64:
        raise InvalidRequest(
            f"input {spec.name!r}: JSON cannot hold a photo's bytes; send them as binary data, or as base64 "
            "with the parameter content_type: base64"
        )
    try:
        return tuple(_from_base64(element) for element in flat)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"input {spec.name!r}: not valid base64") from None


def _from_base64(text: str) -> bytes:
    """The bytes of base64 as its writers have it: in lines, of the alphabet for URLs, without padding."""
    packed = text.encode("ascii").translate(_URL_SAFE, b"\r\n\t ")
    return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)


def to_raw(values: Values) -> bytes:
    """The binary form of an output."""
    if values.dtype == np.object_:
        return b"".join(struct.pack("<I", len(element)) + element for element in values.ravel())
    return np.ascontiguousarray(values, dtype="<f4").tobytes()


def to_json(values: Values) -> list[Any]:
    """The flat `data` of an output."""
    if values.dtype == np.object_:
        return [element.decode() for element in values.ravel()]
    return list(values.ravel().tolist())


def classes(values: NDArray[np.float32], count: int, labels: Sequence[str]) -> NDArray[np.object_]:
    """The classification extension's strings, best first.

    Args:
        values: `[N, classes]`.
        count: strings a row; all where there are fewer.
        labels: one for each class, or none.

    Returns:
        `[N, count]` of `score:index` or `score:index:label`, UTF-8.
    """
    count = min(count, values.shape[1])
    best = np.argsort(-values, axis=1, kind="stable")[:, :count]
    strings = np.empty(best.shape, np.object_)
    for row, column in np.ndindex(*best.shape):
        index = int(best[row, column])
        label = f":{labels[index]}" if labels else ""
        strings[row, column] = f"{values[row, index]:f}:{index}{label}".encode()
    return strings
