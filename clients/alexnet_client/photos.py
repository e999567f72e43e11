"""From anything that holds a photo to the message that carries it.

Pillow images and arrays are known by their shape, never imported: a caller who has one has the package too.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import IO, Any, Protocol, TypeAlias, runtime_checkable

from alexnet_client import web
from alexnet_client.pb import classifier_pb2 as pb

SIDE = 256
"""A 256 x 256 RGB array is what the server would make of it, and travels as it is."""

_LOSSLESS_PIXELS = 1_000_000
"""Above this a Pillow image travels as JPEG at quality 95: 12 megapixels of PNG exceed the server's limit."""

_PNG_COLOUR_TYPE = {1: 0, 3: 2, 4: 6}
_PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
_WITH_ALPHA = {"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
_ORIENTATION = 274
"""EXIF's tag; all of a picture's EXIF that travels."""


@runtime_checkable
class PillowImage(Protocol):
    """What of `PIL.Image.Image` is used here."""

    @property
    def mode(self) -> str:
        """Its kind of pixels."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""

    @property
    def info(self) -> Any:
        """What its file said besides."""

    def save(self, fp: IO[bytes], format: str, **options: Any) -> None:
        """Write the image."""

    def convert(self, mode: str) -> Any:
        """The image in another mode."""

    def getexif(self) -> Any:
        """The image's EXIF block."""


@runtime_checkable
class Array(Protocol):
    """What of a NumPy array is used here: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width, channels."""

    @property
    def dtype(self) -> Any:
        """The type of its elements."""

    def tobytes(self) -> bytes:
        """Its elements, row by row."""


Photo: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | IO[bytes] | PillowImage | Array
"""Encoded bytes, a path, an http(s) URL, an open binary file, a Pillow image, or a uint8 array (H, W, 3)."""


def image(photo: Photo) -> pb.Image:
    """The message for a photo.

    Raises:
        OSError: the path or URL cannot be read.
        TooLarge: what is at the URL is longer than the server takes.
        TypeError: it is none of the things a photo can be.
        ValueError: an array of another dtype or shape, an empty file.
    """
    if isinstance(photo, bytes | bytearray | memoryview):
        return pb.Image(encoded=bytes(photo))
    if isinstance(photo, str) and photo.lower().startswith(("http://", "https://")):
        return pb.Image(encoded=web.fetch(photo))
    if isinstance(photo, str | os.PathLike):
        with open(photo, "rb") as file:
            return pb.Image(encoded=file.read())
    if isinstance(photo, PillowImage):
        return pb.Image(encoded=_from_pillow(photo))
    if isinstance(photo, Array):
        return _from_array(photo)
    if hasattr(photo, "read"):
        return pb.Image(encoded=_from_file(photo))
    raise TypeError(
        "a photo is bytes, a path, an open binary file, a Pillow image or a uint8 array, "
        f"not {type(photo).__name__}"
    )


def _from_file(file: IO[bytes]) -> bytes:
    data = file.read()
    if not isinstance(data, bytes):
        raise TypeError("the file is open in text mode; open it with mode 'rb'")
    return data


def _from_pillow(picture: PillowImage) -> bytes:
    """PNG, or JPEG at quality 95 for a large one without alpha; the EXIF turn travels along."""
    exif = _exif(picture)
    picture = _savable(picture)
    buffer = io.BytesIO()
    width, height = picture.size
    opaque = picture.mode in ("L", "RGB") and "transparency" not in picture.info
    if opaque and width * height > _LOSSLESS_PIXELS:
        picture.save(buffer, "JPEG", quality=95, subsampling=0, exif=exif)
    else:
        picture.save(buffer, "PNG", compress_level=1, exif=exif)
    return buffer.getvalue()


def _savable(picture: PillowImage) -> PillowImage:
    """The picture in a mode that PNG has.

    Raises:
        ValueError: a mode whose values have no fixed range.
    """
    mode = picture.mode
    if mode in ("I", "F"):
        raise ValueError(
            f"a Pillow image of mode {mode} may have any numbers; scale them to 0 to 255, then convert to L"
        )
    if mode in _PNG_MODES:
        return picture
    if mode.startswith("I;16"):
        wide: PillowImage = picture.convert("I").convert("I;16")  # straight to RGB would clip at 255
        return wide
    converted: PillowImage = picture.convert(_WITH_ALPHA.get(mode, "RGB"))
    return converted


def _exif(picture: PillowImage) -> bytes:
    """An EXIF block with only the orientation: the rest may be damaged, too long, or nobody's business."""
    try:
        turn = picture.getexif().get(_ORIENTATION)
    except Exception:  # of a block that Pillow cannot read
        turn = None
    if not isinstance(turn, int) or not 2 <= turn <= 8:
        return b""
    entry = struct.pack("<HHIHxx", _ORIENTATION, 3, 1, turn)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


def _from_array(array: Array) -> pb.Image:
    shape = tuple(array.shape)
    if str(array.dtype) != "uint8":
        raise ValueError(f"an array must be uint8 (0 to 255), not {array.dtype}; scale and convert it first")
    if shape == (SIDE, SIDE, 3):
        return pb.Image(prepared=array.tobytes())
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels not in _PNG_COLOUR_TYPE or 0 in shape:
        raise ValueError(f"an array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {shape}")
    return pb.Image(encoded=png(array.tobytes(), shape[1], shape[0], channels))


def png(pixels: bytes, width: int, height: int, channels: int) -> bytes:
    """A PNG of 8-bit rows of 1, 3 or 4 channels, hardly compressed, for it is read once and thrown away."""
    stride = width * channels
    rows = b"".join(b"\0" + pixels[start : start + stride] for start in range(0, len(pixels), stride))
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOUR_TYPE[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
