"""Photo bytes to pixels: the only preprocessing outside the ONNX graph, in training and in serving.

Imports nothing but the standard library, numpy and Pillow, because Triton's Python backend loads a copy of
this file alone (Python 3.10+, numpy 1.26 and 2, Pillow 11.3+).

Photos come from strangers, so Pillow sees as little of them as it needs. Its readers are called directly
(`Image.open` guesses formats and warns), metadata is cut out beforehand (Pillow warns about damaged EXIF and
unpacks compressed texts), sizes are known before anything is allocated, and every loop over pieces of a file
is bounded. Nothing here warns, and nothing changes or catches process-wide state, so threads may share it.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

__all__ = ["PREPROCESS_VERSION", "SIDE", "PhotoError", "decode", "prepare", "resize_and_crop"]

PREPROCESS_VERSION: Final = "1"
"""Raised when the same photo gives other pixels; models name the version which they were trained on."""
SIDE: Final = 256
"""Side of a prepared image, pixels (Krizhevsky et al. 2012, section 2)."""
MAX_BYTES: Final = 10 * 1024 * 1024
MAX_PIXELS: Final = 50_000_000

_MAX_PIECES = 65_536
"""Chunks, segments or blocks a file may have: 10 MiB in PNG's usual 8 KiB chunks are 1,280."""
_MAX_SCANS = 20
"""Scans of a progressive JPEG, each a pass over all pixels however few its bytes; usual are about ten.
Smaller photos may have more, as long as they cost no more."""
_MAX_RUN_LENGTH_BYTES = 1024 * 1024
"""Size of a run-length encoded BMP, which Pillow decodes in Python at a microsecond a byte."""
_LONGEST = 4 * SIDE
"""Beyond this length only the part of the scaled image inside the crop is computed (1x4000: 1 GB)."""

Code = Literal["too_large", "unsupported_format", "undecodable"]


class PhotoError(ValueError):
    """A photo that cannot be used. The message says what is wrong and how to mend it.

    Attributes:
        code: `too_large` (bytes or pixels), `unsupported_format` (by its first bytes) or `undecodable`
            (truncated, corrupt, zero-sized).
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code


def prepare(
    data: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """Decode a photo, turn it upright, scale its shorter side to 256 and cut out the centre.

    Args:
        data: A JPEG, PNG, WebP, GIF (first frame), BMP or AVIF file.
        max_bytes: Longest file accepted.
        max_pixels: Most pixels accepted, width x height as told by the header, before anything is decoded.

    Returns:
        (256, 256, 3) uint8 RGB, its own memory.

    Raises:
        PhotoError: The photo is too large, of another format, or cannot be decoded.
    """
    image, box = _load(data, max_bytes, max_pixels, draft_side=2 * SIDE)
    return resize_and_crop(image, box)


def decode(data: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a photo to an upright image of mode RGB and full size; transparent parts are white.

    Args:
        data: A JPEG, PNG, WebP, GIF (first frame), BMP or AVIF file.
        max_bytes: Longest file accepted.
        max_pixels: Most pixels accepted, width x height as told by the header, before anything is decoded.

    Raises:
        PhotoError: The photo is too large, of another format, or cannot be decoded.
    """
    return _load(data, max_bytes, max_pixels)[0]


def resize_and_crop(
    image: Image.Image, box: tuple[float, float, float, float] | None = None
) -> npt.NDArray[np.uint8]:
    """Scale the shorter side to 256 (bilinear, antialiased) and cut out the centre.

    Args:
        image: Mode RGB, any size.
        box: The part of the image that counts (left, top, right, bottom), in pixels, fractions too; None for
            all of it.

    Returns:
        (256, 256, 3) uint8 RGB, its own memory.
    """
    x0, y0, x1, y1 = box or (0, 0, *image.size)
    shorter = min(x1 - x0, y1 - y0)
    width, height = (max(SIDE, round(side * SIDE / shorter)) for side in (x1 - x0, y1 - y0))
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    if max(width, height) <= _LONGEST:
        image = image.resize((width, height), Image.Resampling.BILINEAR, box)
        return np.array(image.crop((left, top, left + SIDE, top + SIDE)))
    columns, rows = _window(x0, x1, width, left, image.width), _window(y0, y1, height, top, image.height)
    image = image.crop((columns.low, rows.low, columns.high, rows.high))
    box = (columns.start, rows.start, columns.end, rows.end)
    return np.array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box))


class _Window(NamedTuple):
    """Source pixels `low` to `high` along one axis, and a stretch of them counted from `low`."""

    low: int
    high: int
    start: float
    end: float


def _window(first: float, last: float, target: int, offset: int, size: int) -> _Window:
    """What the crop takes of an axis of `size` pixels, whose part `first` to `last` becomes `target`."""
    scale = (last - first) / target
    start, end = first + offset * scale, min(first + (offset + SIDE) * scale, size)
    reach = max(1.0, scale) + 1.0  # the bilinear filter reaches one pixel of the larger of the two grids
    low, high = max(0, int(start - reach)), min(size, int(end + reach) + 1)
    return _Window(low, high, start - low, end - low)


def _load(
    data: bytes, max_bytes: int, max_pixels: int, draft_side: int | None = None
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Decode; with `draft_side` the JPEG decoder may halve the image up to three times above that side.

    Returns:
        The upright RGB image and the part of it that counts: a halved image ends within its last pixels.
    """
    if not data:
        raise PhotoError(
            "undecodable", "The photo is empty (0 bytes); check that the file was read and sent."
        )
    if len(data) > max_bytes:
        raise PhotoError(
            "too_large",
            f"The photo has {len(data):,} bytes, more than the {max_bytes:,} allowed; scale it down or save "
            f"it as JPEG. {SIDE} pixels on the shorter side are enough.",
        )
    name = _sniff(data)
    try:
        image, orientation = _FORMATS[name](data, max_pixels)
        drafted = image.draft(None, (draft_side, draft_side)) if draft_side else None
        image.load()
        box = drafted[1] if drafted else (0, 0, *image.size)
        return _upright(_to_rgb(image), box, orientation)
    except (PhotoError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise PhotoError(
            "undecodable",
            f"The {name} is truncated, corrupt or of a rare kind and cannot be decoded; open it in an image "
            "viewer, save it again as JPEG or PNG, and check that the whole file was sent.",
        ) from error


class _Photo(NamedTuple):
    """A file whose header is read and whose size is allowed, not decoded yet."""

    image: Image.Image
    orientation: int = 1
    """EXIF's tag 274: 1 is upright."""


def _sniff(data: bytes) -> str:
    """Name the format by the file's first bytes."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith(b"BM") and data[14:18] in _BMP_HEADER_SIZES:
        return "BMP"
    if data[4:8] == b"ftyp" and {b"avif", b"avis"} & _brands(data):
        return "AVIF"
    raise _unsupported(data)


def _brands(data: bytes) -> set[bytes]:
    """What an ISO media file (AVIF, HEIC, MP4) says it can be read as."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}


def _unsupported(data: bytes) -> PhotoError:
    accepted = "Accepted are JPEG, PNG, WebP, GIF, BMP and AVIF."
    if data[4:8] == b"ftyp" and _HEIC_BRANDS & _brands(data):
        how = (
            "save it as JPEG: on an iPhone choose Settings, Camera, Formats, Most Compatible, or convert the "
            "file with `sips -s format jpeg photo.heic --out photo.jpg` (macOS) or "
            "`heif-convert photo.heic photo.jpg` (Linux)"
        )
        return PhotoError("unsupported_format", f"HEIC photos cannot be read; {how}. {accepted}")
    kind = next((kind for magic, kind in _KNOWN.items() if data.startswith(magic)), None)
    found = f"This is {kind}" if kind else "This is not a photo in a known format"
    return PhotoError("unsupported_format", f"{found}; save the photo as JPEG or PNG. {accepted}")


_BMP_HEADER_SIZES = {size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_KNOWN = {
    b"II*\0": "a TIFF or a camera's raw file",
    b"MM\0*": "a TIFF or a camera's raw file",
    b"\xff\x0a": "a JPEG XL file",
    b"\0\0\0\x0cJXL ": "a JPEG XL file",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 file",
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop file",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML or SVG file",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"\0\0\1\0": "an icon file",
    b"PK\3\4": "a ZIP archive",
}


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise PhotoError(
            "too_large",
            f"The photo has {width:,} x {height:,} = {width * height:,} pixels, more than the {max_pixels:,} "
            f"allowed; scale it down. {SIDE} pixels on the shorter side are enough.",
        )


def _checked(image: ImageFile.ImageFile, max_pixels: int) -> ImageFile.ImageFile:
    _check_pixels(image.size, max_pixels)
    return image


def _open_jpeg(data: bytes, max_pixels: int) -> _Photo:
    """Without EXIF, colour profiles, thumbnails and junk; the first picture of a multi-picture file."""
    kept, exif, at = [data[:2]], b"", 2
    for _ in range(_MAX_PIECES):
        found = _JPEG_MARKER.search(data, at)
        if found is None:
            raise ValueError("no scan")
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xDA:
            kept.append(data[at - 2 :])
            image = _checked(JpegImagePlugin.JpegImageFile(BytesIO(b"".join(kept))), max_pixels)
            end = data.find(b"\xff\xd9", at)
            scans = 1 + data.count(b"\xff\xda", at, len(data) if end < 0 else end)
            if scans * image.width * image.height > _MAX_SCANS * MAX_PIXELS:
                raise ValueError("too many scans")
            return _Photo(image, _orientation(exif))
        segment = data[at : at + int.from_bytes(data[at : at + 2], "big")]
        at += max(2, len(segment))
        if marker in _JPEG_NEEDED:
            kept += (bytes((0xFF, marker)), segment)
        elif marker == 0xE1 and not exif and segment[2:8] == b"Exif\0\0":
            exif = segment[2:]
    raise ValueError("too many segments")


_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")
_JPEG_NEEDED = {*range(0xC0, 0xD0), *range(0xDB, 0xE0), 0xE0, 0xEE}
"""Frames, tables, and the two application segments that tell the colour space (JFIF, Adobe)."""


def _open_png(data: bytes, max_pixels: int) -> _Photo:
    """The chunks that make pixels, with their checksums; of an animation, the image that others see too."""
    kept: dict[bytes, list[memoryview]] = {b"IHDR": [], b"PLTE": [], b"tRNS": [], b"IDAT": []}
    exif, at = b"", 8
    for _ in range(_MAX_PIECES):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            break
        body = memoryview(data)[at + 8 : at + 8 + length]
        if kind in kept:
            if struct.unpack_from(">I", data, at + 8 + length)[0] != zlib.crc32(body, zlib.crc32(kind)):
                raise ValueError("checksum")
            kept[kind].append(body)
        elif kind == b"eXIf":
            exif = bytes(body)
        at += 12 + length
    else:
        raise ValueError("too many chunks")
    file = b"".join((data[:8], *(_png_chunk(kind, bodies) for kind, bodies in kept.items() if bodies)))
    image = _checked(PngImagePlugin.PngImageFile(BytesIO(file)), max_pixels)
    return _Photo(image, _orientation(exif))


def _png_chunk(kind: bytes, bodies: list[memoryview]) -> bytes:
    body = b"".join(bodies)
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _open_gif(data: bytes, max_pixels: int) -> _Photo:
    """The first frame, without comments; Pillow grows the header's size to hold it, so both are checked."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    start = at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    control, in_extension = b"", False
    for _ in range(_MAX_PIECES):
        byte = data[at]
        if in_extension:  # a block: its length, its bytes; the empty one is the last
            at += 1 + byte
            in_extension = byte > 0
        elif byte == 0x21:
            control = data[at : at + 8] if data[at + 1] == 0xF9 else control  # tells the transparent colour
            at, in_extension = at + 2, True
        elif byte == 0x2C:  # the frame
            left, top, frame_width, frame_height = struct.unpack_from("<4H", data, at + 1)
            _check_pixels((max(width, left + frame_width), max(height, top + frame_height)), max_pixels)
            return _Photo(GifImagePlugin.GifImageFile(BytesIO(data[:start] + control + data[at:])))
        else:  # some writers leave a stray byte
            at += 1
    raise ValueError("too many blocks")


def _open_webp(data: bytes, max_pixels: int) -> _Photo:
    """The size comes from the header here, because Pillow allocates the canvas when opening."""
    kind = data[12:16]
    if kind == b"VP8X":
        packed = int.from_bytes(data[24:30], "little")
        size = (packed & 0xFFFFFF) + 1, (packed >> 24) + 1
    elif kind == b"VP8L":
        packed = int.from_bytes(data[21:25], "little")
        size = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        size = width & 0x3FFF, height & 0x3FFF
    else:
        raise ValueError("unknown first chunk")
    _check_pixels(size, max_pixels)
    image = WebPImagePlugin.WebPImageFile(BytesIO(data))
    return _Photo(_checked(image, max_pixels), _orientation(image.info.get("exif", b"")))


def _open_bmp(data: bytes, max_pixels: int) -> _Photo:
    if data[30:32] in (b"\1\0", b"\2\0") and len(data) > _MAX_RUN_LENGTH_BYTES:
        raise ValueError("run lengths")
    return _Photo(_checked(BmpImagePlugin.BmpImageFile(BytesIO(data)), max_pixels))


def _open_avif(data: bytes, max_pixels: int) -> _Photo:
    """Without its EXIF item: an AVIF is turned by properties of its own, which Pillow reports as EXIF."""
    if not AvifImagePlugin.SUPPORTED:
        raise PhotoError(
            "unsupported_format",
            "This server was built without AVIF; save the photo as JPEG or PNG.",
        )
    image = AvifImagePlugin.AvifImageFile(BytesIO(_AVIF_EXIF.sub(rb"\1none", data)))
    return _Photo(_checked(image, max_pixels), _orientation(image.info.get("exif", b"")))


_AVIF_EXIF = re.compile(rb"(infe[\x02\x03]...(?:..|....)..)Exif", re.DOTALL)
"""An item's entry: version, flags, its number, protection, type."""

_FORMATS: dict[str, Callable[[bytes, int], _Photo]] = {
    "JPEG": _open_jpeg,
    "PNG": _open_png,
    "GIF": _open_gif,
    "WebP": _open_webp,
    "BMP": _open_bmp,
    "AVIF": _open_avif,
}


def _orientation(exif: bytes) -> int:
    """EXIF's orientation, 1 to 8; 1 when it is missing or damaged."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = ">" if tiff[:2] == b"MM" else "<"
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == 274:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), tiff, entry + 8)
                return value if value in _TURNS else 1
    except struct.error:
        pass
    return 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(
    image: Image.Image, box: tuple[float, float, float, float], orientation: int
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Turn an image, and a part of it, by its EXIF orientation."""
    if orientation not in _TURNS:
        return image, box
    image = image.transpose(_TURNS[orientation])
    x0, y0, x1, y1 = box
    if orientation in (5, 6, 7, 8):
        x0, y0, x1, y1 = y0, x0, y1, x1
    if orientation in (2, 3, 6, 7):
        x0, x1 = image.width - x1, image.width - x0
    if orientation in (3, 4, 7, 8):
        y0, y1 = image.height - y1, image.height - y0
    return image, (x0, y0, x1, y1)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode the readers give -> RGB; what is transparent becomes white."""
    if image.mode.startswith("I"):
        return _high_bytes(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    ignore_empty_alpha = image.format == "BMP"  # whose writers often leave the fourth byte at 0
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    if ignore_empty_alpha and alpha.getextrema() == (0, 0):
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white


def _high_bytes(image: Image.Image) -> Image.Image:
    """16-bit gray -> 8-bit gray by the upper byte, as the readers do for 16-bit RGB (`convert` clips)."""
    gray = np.asarray(image)
    upper = (gray >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        upper[gray == transparent] = 255
    return Image.fromarray(upper)
