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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

__all__ = [
    "PREPROCESS_VERSION",
    "SIDE",
    "OpenPhoto",
    "PhotoError",
    "decode",
    "finish",
    "open_photo",
    "prepare",
    "resize_and_crop",
]

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
_STRIP_PIXELS = 2**21
"""Images of more are made RGB, turned and scaled along their rows in strips of a quarter of it."""
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}
"""What a pixel takes in Pillow; 4 in any other mode, RGB too."""
_CANVASES = 12
"""Bytes a pixel that WebP's and AVIF's decoders take besides: measured, two to three canvases."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels, fractions too."""
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
    return finish(open_photo(data, max_bytes=max_bytes, max_pixels=max_pixels))


class OpenPhoto(NamedTuple):
    """A photo whose header is read and whose size is allowed; nothing is decoded yet."""

    kind: str
    """Name of its format."""
    image: ImageFile.ImageFile
    box: Box
    """The part of the image that counts: a JPEG that is halved while decoding ends within its last pixels."""
    orientation: int
    """EXIF's tag 274: 1 is upright."""
    memory_bytes: int
    """About what `finish` will take at most."""


def open_photo(
    data: bytes,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    draft_side: int | None = 2 * SIDE,
) -> OpenPhoto:
    """Read a photo's header, for `finish`: both together are `prepare`.

    Args:
        data: As for `prepare`.
        max_bytes: As for `prepare`.
        max_pixels: As for `prepare`.
        draft_side: The JPEG decoder may halve the image up to three times above this side; None forbids it.

    Raises:
        PhotoError: As `prepare`, as far as the header tells.
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
    kind = _sniff(data)
    with _decoding(kind):
        image, orientation, decoder_bytes = _FORMATS[kind](data, max_pixels)
        drafted = image.draft(None, (draft_side, draft_side)) if draft_side else None
        box = drafted[1] if drafted else (0, 0, *image.size)
        image_bytes = _PIXEL_BYTES.get(image.mode, 4) * _area(image)
        return OpenPhoto(kind, image, box, orientation, decoder_bytes + image_bytes)


def finish(photo: OpenPhoto) -> npt.NDArray[np.uint8]:
    """Decode an open photo and do the rest of `prepare`.

    Returns:
        (256, 256, 3) uint8 RGB, its own memory.

    Raises:
        PhotoError: The photo cannot be decoded.
    """
    with _decoding(photo.kind):
        photo.image.load()
        return _Upright(photo.image, photo.orientation).prepared(photo.box)


def decode(data: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a photo to an upright image of mode RGB and full size; transparent parts are white.

    Args:
        data: A JPEG, PNG, WebP, GIF (first frame), BMP or AVIF file.
        max_bytes: Longest file accepted.
        max_pixels: Most pixels accepted, width x height as told by the header, before anything is decoded.

    Raises:
        PhotoError: The photo is too large, of another format, or cannot be decoded.
    """
    photo = open_photo(data, max_bytes=max_bytes, max_pixels=max_pixels, draft_side=None)
    with _decoding(photo.kind):
        photo.image.load()
        upright = _Upright(photo.image, photo.orientation)
        return upright.part((0, 0, *upright.size))


def resize_and_crop(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Scale the shorter side to 256 (bilinear, antialiased) and cut out the centre.

    Args:
        image: Mode RGB, any size.

    Returns:
        (256, 256, 3) uint8 RGB, its own memory.
    """
    return _Upright(image).prepared((0, 0, *image.size))


class _Upright:
    """A decoded image as it looks turned upright, in RGB, made of it part by part.

    Every step from a decoded photo to the scaled one needs another copy, of 4 bytes a pixel whatever was
    decoded. So large images take them in strips of rows, with the same result: scaling along a row needs no
    other row, and Pillow rounds between the two directions.
    """

    def __init__(self, image: Image.Image, orientation: int = 1) -> None:
        self._image = image
        self._turn = _TURNS.get(orientation)
        self._orientation = orientation
        self._ignore_alpha = image.format == "BMP" and _is_empty_alpha(image)
        width, height = image.size
        self.size = (height, width) if orientation in _SWAPPED else (width, height)

    def part(self, box: tuple[int, int, int, int]) -> Image.Image:
        """What is inside a box of whole pixels (left, top, right, bottom)."""
        image = self._image
        if box != (0, 0, *self.size):
            image = image.crop(_unturned(box, self._orientation, self.size))
        image = _to_rgb(image, ignore_alpha=self._ignore_alpha)
        return image if self._turn is None else image.transpose(self._turn)

    def prepared(self, box: Box) -> npt.NDArray[np.uint8]:
        """Scale and cut; `box` is the part of the image that counts, in its pixels before turning."""
        x0, y0, x1, y1 = _turned(box, self._orientation, self.size)
        shorter = min(x1 - x0, y1 - y0)
        width, height = (max(SIDE, round(side * SIDE / shorter)) for side in (x1 - x0, y1 - y0))
        left, top = (width - SIDE) // 2, (height - SIDE) // 2
        if max(width, height) <= _LONGEST:
            scaled = self._scaled((0, 0, *self.size), (x0, y0, x1, y1), (width, height))
            return np.array(scaled.crop((left, top, left + SIDE, top + SIDE)))
        columns = _window(x0, x1, width, left, self.size[0])
        rows = _window(y0, y1, height, top, self.size[1])
        window = (columns.low, rows.low, columns.high, rows.high)
        box = (columns.start, rows.start, columns.end, rows.end)
        return np.array(self._scaled(window, box, (SIDE, SIDE)))

    def _scaled(self, window: tuple[int, int, int, int], box: Box, size: tuple[int, int]) -> Image.Image:
        """Scale `box`, counted from the window's corner, of the pixels inside `window` to `size`."""
        left, top, right, bottom = window
        step = max(1, _STRIP_PIXELS // 4 // (right - left))  # small blocks, which a thread may keep
        if (right - left) * (bottom - top) <= _STRIP_PIXELS:
            return self.part(window).resize(size, Image.Resampling.BILINEAR, box)
        x0, y0, x1, y1 = box
        narrow = Image.new("RGB", (size[0], bottom - top))
        for y in range(top, bottom, step):
            strip = self.part((left, y, right, min(y + step, bottom)))
            across = (x0, 0, x1, strip.height)
            strip = strip.resize((size[0], strip.height), Image.Resampling.BILINEAR, across)
            narrow.paste(strip, (0, y - top))
        return narrow.resize(size, Image.Resampling.BILINEAR, (0, y0, size[0], y1))


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


@contextmanager
def _decoding(kind: str) -> Iterator[None]:
    try:
        yield
    except (PhotoError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise PhotoError(
            "undecodable",
            f"The {kind} is truncated, corrupt or of a rare kind and cannot be decoded; open it in an image "
            "viewer, save it again as JPEG or PNG, and check that the whole file was sent.",
        ) from error


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
            "save them as JPEG: on an iPhone choose Settings, Camera, Formats, Most Compatible, or convert "
            "them with `sips -s format jpeg photo.heic --out photo.jpg` (macOS) or "
            "`heif-convert photo.heic photo.jpg` (Linux)"
        )
        return PhotoError("unsupported_format", f"HEIC photos cannot be read here; {how}. {accepted}")
    if data.startswith(_BASE64):
        how = "decode it and send the photo's own bytes"
        return PhotoError("unsupported_format", f"This is a photo as Base64 text; {how}. {accepted}")
    kind = next((kind for magic, kind in _KNOWN.items() if data.startswith(magic)), None)
    found = f"This is {kind}" if kind else "This is not a photo in a known format"
    return PhotoError("unsupported_format", f"{found}; save the photo as JPEG or PNG. {accepted}")


_BMP_HEADER_SIZES = {size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_BASE64 = (b"/9j/", b"iVBORw0KGgo", b"UklGR", b"data:image/")
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


class _Header(NamedTuple):
    image: ImageFile.ImageFile
    orientation: int = 1
    decoder_bytes: int = 0
    """Memory that decoding takes besides the image's own."""


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise PhotoError(
            "too_large",
            f"The photo has {width:,} x {height:,} = {width * height:,} pixels, more than the {max_pixels:,} "
            f"allowed; scale it down. {SIDE} pixels on the shorter side are enough.",
        )


def _area(image: Image.Image) -> int:
    return image.width * image.height


def _checked(image: ImageFile.ImageFile, max_pixels: int) -> ImageFile.ImageFile:
    _check_pixels(image.size, max_pixels)
    return image


def _open_jpeg(data: bytes, max_pixels: int) -> _Header:
    """Without EXIF, colour profiles, thumbnails and junk; the first picture of a multi-picture file."""
    kept, exif, at = [data[:2]], b"", 2
    for _ in range(_MAX_PIECES):
        found = _JPEG_MARKER.search(data, at)
        if found is None:
            raise ValueError("no scan")
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xDA:
            kept.append(data[at - 2 :])
            image = JpegImagePlugin.JpegImageFile(BytesIO(b"".join(kept)))
            _check_pixels(image.size, max_pixels)
            end = data.find(b"\xff\xd9", at)
            scans = 1 + data.count(b"\xff\xda", at, len(data) if end < 0 else end)
            if scans * image.width * image.height > _MAX_SCANS * MAX_PIXELS:
                raise ValueError("too many scans")
            whole = image.info.get("progressive") or data[at + 2] < image.layers
            return _Header(image, _orientation(exif), _coefficient_bytes(image) if whole else 0)
        segment = data[at : at + int.from_bytes(data[at : at + 2], "big")]
        at += max(2, len(segment))
        if marker in _JPEG_NEEDED:
            kept += (bytes((0xFF, marker)), segment)
        elif marker == 0xE1 and not exif and segment[2:8] == b"Exif\0\0":
            exif = segment[2:]
    raise ValueError("too many segments")


def _coefficient_bytes(image: JpegImagePlugin.JpegImageFile) -> int:
    """What the decoder holds of a JPEG whose scans each tell a part of all pixels: 2 bytes a sample."""
    areas = [across * down for _, across, down, _ in image.layer]
    largest = max(across for _, across, _, _ in image.layer) * max(down for _, _, down, _ in image.layer)
    return 2 * image.width * image.height * sum(areas) // largest


_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")
_JPEG_NEEDED = {*range(0xC0, 0xD0), *range(0xDB, 0xE0), 0xE0, 0xEE}
"""Frames, tables, and the two application segments that tell the colour space (JFIF, Adobe)."""


def _open_png(data: bytes, max_pixels: int) -> _Header:
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
    return _Header(image, _orientation(exif))


def _png_chunk(kind: bytes, bodies: list[memoryview]) -> bytes:
    body = b"".join(bodies)
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _open_gif(data: bytes, max_pixels: int) -> _Header:
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
            return _Header(GifImagePlugin.GifImageFile(BytesIO(data[:start] + control + data[at:])))
        else:  # some writers leave a stray byte
            at += 1
    raise ValueError("too many blocks")


def _open_webp(data: bytes, max_pixels: int) -> _Header:
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
    image = _checked(WebPImagePlugin.WebPImageFile(BytesIO(data)), max_pixels)
    return _Header(image, _orientation(image.info.get("exif", b"")), _CANVASES * _area(image))


def _open_bmp(data: bytes, max_pixels: int) -> _Header:
    if data[30:32] in (b"\1\0", b"\2\0") and len(data) > _MAX_RUN_LENGTH_BYTES:
        raise ValueError("run lengths")
    return _Header(_checked(BmpImagePlugin.BmpImageFile(BytesIO(data)), max_pixels))


def _open_avif(data: bytes, max_pixels: int) -> _Header:
    """Without its EXIF item: an AVIF is turned by properties of its own, which Pillow reports as EXIF."""
    if not AvifImagePlugin.SUPPORTED:
        raise PhotoError(
            "unsupported_format",
            "This server was built without AVIF; save the photo as JPEG or PNG.",
        )
    image = _checked(AvifImagePlugin.AvifImageFile(BytesIO(_AVIF_EXIF.sub(rb"\1none", data))), max_pixels)
    return _Header(image, _orientation(image.info.get("exif", b"")), _CANVASES * _area(image))


_AVIF_EXIF = re.compile(rb"(infe[\x02\x03]...(?:..|....)..)Exif", re.DOTALL)
"""An item's entry: version, flags, its number, protection, type."""

_FORMATS: dict[str, Callable[[bytes, int], _Header]] = {
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
_SWAPPED = (5, 6, 7, 8)
"""Orientations that swap width and height."""


def _turned(box: Box, orientation: int, size: tuple[int, int]) -> Box:
    """A box of an image -> the same box of the image turned by its EXIF orientation, then of `size`."""
    x0, y0, x1, y1 = box
    if orientation in _SWAPPED:
        x0, y0, x1, y1 = y0, x0, y1, x1
    return _flipped((x0, y0, x1, y1), orientation, size)


def _unturned(
    box: tuple[int, int, int, int], orientation: int, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The other way round, whole pixels."""
    x0, y0, x1, y1 = (int(edge) for edge in _flipped(box, orientation, size))
    return (y0, x0, y1, x1) if orientation in _SWAPPED else (x0, y0, x1, y1)


def _flipped(box: Box, orientation: int, size: tuple[int, int]) -> Box:
    x0, y0, x1, y1 = box
    if orientation in (2, 3, 6, 7):
        x0, x1 = size[0] - x1, size[0] - x0
    if orientation in (3, 4, 7, 8):
        y0, y1 = size[1] - y1, size[1] - y0
    return x0, y0, x1, y1


def _is_empty_alpha(image: Image.Image) -> bool:
    """True for an alpha channel of zeros, as writers of BMP often leave it."""
    return image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)


def _to_rgb(image: Image.Image, *, ignore_alpha: bool = False) -> Image.Image:
    """Any mode the readers give -> RGB; what is transparent becomes white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _high_bytes(image).convert("RGB")
    if ignore_alpha or not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _high_bytes(image: Image.Image) -> Image.Image:
    """16-bit gray -> 8-bit gray by the upper byte, as the readers do for 16-bit RGB (`convert` clips)."""
    gray = np.asarray(image)
    upper = (gray >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        upper[gray == transparent] = 255
    return Image.fromarray(upper)
