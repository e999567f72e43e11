"""What an ONNX file says of itself, read without its weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError
from onnx import StringStringEntryProto

_METADATA_PROPS = 14
"""Field number of ``ModelProto.metadata_props``."""


def read_metadata(path: Path) -> dict[str, str]:
    """The ``metadata_props`` of an ONNX file; its graph, hundreds of megabytes, is skipped, not read.

    Returns:
        The properties; none for a file that is cut short or is no protobuf message.

    Raises:
        OSError: it cannot be read.
    """
    metadata: dict[str, str] = {}
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            while file.tell() < size:
                tag = _varint(file)
                if tag & 7 == 0:
                    _varint(file)
                    continue
                length = _varint(file)
                if tag & 7 != 2 or file.tell() + length > size:
                    return {}
                if tag >> 3 == _METADATA_PROPS:
                    entry = StringStringEntryProto.FromString(file.read(length))
                    metadata[entry.key] = entry.value
                else:
                    file.seek(length, os.SEEK_CUR)
        except (EOFError, DecodeError):
            return {}
    return metadata


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise EOFError
