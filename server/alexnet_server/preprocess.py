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
from functools import partial
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

PREPROCESS_VERSION: Final = "2"
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
_SCAN_PIXELS = 2**20
"""What a scan costs however few pixels it has: tables are built, buffers emptied."""
_MAX_RUN_LENGTH_BYTES = 1024 * 1024
"""Size of a run-length encoded BMP, which Pillow decodes in Python at a microsecond a byte."""
_MAX_RUN_LENGTH_PIXELS = 4_000_000
"""And its pixels: two bytes can stand for a whole line, which Pillow fills one by one."""
_STRIP_PIXELS = 2**21
"""Images of more are made RGB and scaled along their rows in strips of a quarter of it."""
_NO_COPY = ("RGB", "L")
"""Modes that can be scaled as they are."""
_EXACT = 4096
"""Pillow reckons with boxes in float32: in longer images it cannot resolve a thousandth of a pixel."""
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}
"""What a pixel takes in Pillow; 4 in any other mode, RGB too."""
_CANVASES = 12
"""Bytes a pixel that WebP's and AVIF's decoders take besides: measured, two to three canvases."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels, fractions too."""
Code = Literal["too_large", "unsupported_format", "undecodable"]


class PhotoError(ValueError):
    """A photo that cannot be used. The message says what is wrong and how to fix it.

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
        max_pixels: Most pixels accepted, width x height according to the header, before anything is decoded.

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
    load: Callable[[ImageFile.ImageFile], Image.Image]
    """Decodes the image."""


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
        PhotoError: As `prepare`, as far as the header shows it.
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
        header = _FORMATS[kind](data, max_pixels)
        image = header.image
        drafted = image.draft(None, (draft_side, draft_side)) if draft_side else None
        box = drafted[1] if drafted else (0, 0, *(header.size or image.size))
        memory_bytes = header.decoder_bytes + _image_bytes(image.mode, image.size)
        return OpenPhoto(kind, image, box, header.orientation, memory_bytes, header.load)


def finish(photo: OpenPhoto) -> npt.NDArray[np.uint8]:
    """Decode an open photo and do the rest of `prepare`.

    Returns:
        (256, 256, 3) uint8 RGB, its own memory.

    Raises:
        PhotoError: The photo cannot be decoded.
    """
    with _decoding(photo.kind):
        return _prepared(photo.load(photo.image), photo.box, photo.orientation)


def decode(data: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a photo to an upright image of mode RGB and full size; transparent parts are white.

    Args:
        data: A JPEG, PNG, WebP, GIF (first frame), BMP or AVIF file.
        max_bytes: Longest file accepted.
        max_pixels: Most pixels accepted, width x height according to the header, before anything is decoded.

    Raises:
        PhotoError: The photo is too large, of another format, or cannot be decoded.
    """
    photo = open_photo(data, max_bytes=max_bytes, max_pixels=max_pixels, draft_side=None)
    with _decoding(photo.kind):
        return _turned(_to_rgb(photo.load(photo.image)), photo.orientation)


def resize_and_crop(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Scale the shorter side to 256 (bilinear, antialiased) and cut out the centre.

    Args:
        image: Mode RGB, any size.

    Returns:
        (256, 256, 3) uint8 RGB, its own memory.
    """
    return _prepared(image, (0, 0, *image.size))


def _prepared(image: Image.Image, box: Box, orientation: int = 1) -> npt.NDArray[np.uint8]:
    """Scale what the crop keeps of the image in `box`, and turn it, which is quicker after scaling."""
    x0, y0, x1, y1 = box
    shorter = min(x1 - x0, y1 - y0)
    left, right = _kept(x0, x1, shorter, orientation in _FLIPPED_X)
    top, bottom = _kept(y0, y1, shorter, orientation in _FLIPPED_Y)
    return np.array(_turned(_scaled(image, (left, top, right, bottom)), orientation))


def _kept(first: float, last: float, shorter: float, flipped: bool) -> tuple[float, float]:
    """Where the crop begins and ends along an axis, in pixels before scaling."""
    target = max(SIDE, round((last - first) * SIDE / shorter))
    offset = (target - SIDE) // 2
    if flipped:  # an odd row or column is cut off at the end of the upright image
        offset = target - SIDE - offset
    scale = (last - first) / target
    return first + offset * scale, min(first + (offset + SIDE) * scale, last)


def _scaled(image: Image.Image, box: Box) -> Image.Image:
    """`box` of the image as 256 x 256 pixels of RGB.

    Making an image RGB needs another copy of it, of 4 bytes a pixel. So only what the filter reaches is made,
    and much of it in strips of rows, with the same result: scaling along a row needs no other row, and Pillow
    rounds between the two directions.
    """
    plain = image.mode in _NO_COPY and "transparency" not in image.info
    if plain and max(image.size) <= _EXACT:
        return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box).convert("RGB")
    (left, right), (top, bottom) = (_reached(box[i], box[i + 2], image.size[i]) for i in (0, 1))
    x0, y0, x1, y1 = box[0] - left, box[1] - top, box[2] - left, box[3] - top
    if (right - left) * (bottom - top) <= _STRIP_PIXELS:
        part = _to_rgb(image.crop((left, top, right, bottom)))
        return part.resize((SIDE, SIDE), Image.Resampling.BILINEAR, (x0, y0, x1, y1))
    narrow = Image.new("RGB", (SIDE, bottom - top))
    step = max(1, _STRIP_PIXELS // 4 // (right - left))  # small blocks, which a thread may keep
    for y in range(top, bottom, step):
        strip = _to_rgb(image.crop((left, y, right, min(y + step, bottom))))
        across = (x0, 0, x1, strip.height)
        narrow.paste(strip.resize((SIDE, strip.height), Image.Resampling.BILINEAR, across), (0, y - top))
    return narrow.resize((SIDE, SIDE), Image.Resampling.BILINEAR, (0, y0, SIDE, y1))


def _reached(start: float, end: float, size: int) -> tuple[int, int]:
    """The pixels that the bilinear filter reads: one of the larger of the two grids beyond either end."""
    reach = max(1.0, (end - start) / SIDE) + 1.0
    return max(0, int(start - reach)), min(size, int(end + reach) + 1)


@contextmanager
def _decoding(kind: str) -> Iterator[None]:
    try:
        yield
    except PhotoError:
        raise
    except MemoryError as error:  # of a decoder: rows longer than it can hold, or more than there is
        raise PhotoError(
            "too_large", f"The {kind} needs too much memory to decode; scale it down or save it as JPEG."
        ) from error
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise PhotoError(
            "undecodable",
            f"The {kind} is truncated, corrupt or of a rare kind, and cannot be decoded; open it in an image "
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
    accepted = "JPEG, PNG, WebP, GIF, BMP and AVIF are accepted."
    if data[4:8] == b"ftyp" and _HEIC_BRANDS & _brands(data):
        how = (
            "save them as JPEG: on an iPhone choose Settings, Camera, Formats, Most Compatible, or convert "
            "them with `sips -s format jpeg photo.heic --out photo.jpg` (macOS) or "
            "`heif-convert photo.heic photo.jpg` (Linux)"
        )
        return PhotoError("unsupported_format", f"HEIC photos are not supported; {how}. {accepted}")
    if data.startswith(_BASE64):
        how = "decode it and send the photo's own bytes"
        return PhotoError("unsupported_format", f"This is a photo as Base64 text; {how}. {accepted}")
    text = data[:100].lstrip()
    if text[:8].lower().startswith((b"http://", b"https://")):
        how = "this server downloads nothing: download the photo and send its own bytes"
        return PhotoError("unsupported_format", f"This is an address, not a photo; {how}. {accepted}")
    if text.startswith((b"{", b"[")):
        how = "send the photo's own bytes; /v2 takes tensors as JSON"
        return PhotoError("unsupported_format", f"This is JSON, not a photo; {how}. {accepted}")
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


def _load(image: ImageFile.ImageFile) -> Image.Image:
    image.load()
    return image


class _Header(NamedTuple):
    image: ImageFile.ImageFile
    orientation: int = 1
    decoder_bytes: int = 0
    """Memory that decoding takes besides the image's own."""
    load: Callable[[ImageFile.ImageFile], Image.Image] = _load
    size: tuple[int, int] | None = None
    """Of the loaded image, where that is not the opened one's."""


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise PhotoError(
            "too_large",
            f"The photo has {width:,} x {height:,} = {width * height:,} pixels, more than the {max_pixels:,} "
            f"allowed; scale it down. {SIDE} pixels on the shorter side are enough.",
        )


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _image_bytes(mode: str, size: tuple[int, int]) -> int:
    """What an image takes in Pillow: rows padded to four bytes, and a pointer to each."""
    width, height = size
    return height * (8 + (width * _PIXEL_BYTES.get(mode, 4) + 3 & ~3))


def _checked(image: ImageFile.ImageFile, max_pixels: int) -> ImageFile.ImageFile:
    _check_pixels(image.size, max_pixels)
    return image


class _Jpeg(NamedTuple):
    """What was walked of a JPEG: all that its decoder will see."""

    file: bytes
    exif: bytes
    scans: int
    components: int
    """Of the first scan."""
    ended: bool
    """False where the end marker is missing."""


def _open_jpeg(data: bytes, max_pixels: int) -> _Header:
    """Without EXIF, colour profiles, thumbnails and junk; the first picture of a multi-picture file."""
    jpeg = _walked_jpeg(data)
    image = _jpeg_image(jpeg.file)
    _check_pixels(image.size, max_pixels)
    interleaved = not image.info.get("progressive") and jpeg.components == image.layers
    # Only the last block shows whether a single scan is complete; with several, only decoding again does.
    doubtful = not interleaved and (not jpeg.ended or not image.info.get("progressive"))
    if (1 + doubtful) * jpeg.scans * (_area(image.size) + _SCAN_PIXELS) > _MAX_SCANS * MAX_PIXELS:
        raise ValueError("too many scans")
    return _Header(
        image,
        _orientation(jpeg.exif),
        0 if interleaved else _coefficient_bytes(image),
        partial(_load_jpeg, file=jpeg.file, doubtful=doubtful),
    )


def _jpeg_image(file: bytes) -> JpegImagePlugin.JpegImageFile:
    image = JpegImagePlugin.JpegImageFile(BytesIO(file))
    image.decodermaxblock = len(file)  # at once: the decoder cannot stop within arithmetic codes
    return image


def _walked_jpeg(data: bytes) -> _Jpeg:
    """Follow the markers as a decoder does: segments by their length, scans up to the next marker."""
    kept, exif, scans, components, at, marker = [data[:2]], b"", 0, 0, 2, 0
    for _ in range(_MAX_PIECES):
        found = _JPEG_MARKER.search(data, at)
        marker = data[found.end() - 1] if found else 0
        if found is None or (scans and marker == 0xD9):
            break
        at = found.end()
        if marker == 0xD9:
            continue
        segment = data[at : at + max(2, int.from_bytes(data[at : at + 2], "big"))]
        at += len(segment)
        if marker in _JPEG_NEEDED:
            kept += (bytes((0xFF, marker)), segment)
        elif marker == 0xE1 and not exif and segment[2:8] == b"Exif\0\0":
            exif = segment[2:]
        if marker == 0xDA:
            scans, components = scans + 1, components or segment[2]
            found = _JPEG_MARKER.search(data, at)
            start, at = at, found.start() if found else len(data)
            kept.append(data[start:at].rstrip(b"\xff"))
    else:
        raise ValueError("too many segments")
    if not scans:
        raise ValueError("no scan")
    return _Jpeg(b"".join((*kept, b"\xff\xd9")), exif, scans, components, marker == 0xD9)


def _load_jpeg(image: Image.Image, file: bytes, doubtful: bool) -> Image.Image:
    """Decode, and make sure that nothing is missing: the decoder fills with gray where data ends early.

    Other data put behind the last scan is read only where some was missing, and then the image is another.
    """
    image.load()
    if not doubtful and not _ends_gray(image):
        return image
    seen, (width, height) = _checksum(image), image.size
    image.close()  # its memory is needed for the other
    image = _jpeg_image(file[:-2] + _JPEG_FILLER + file[-2:])
    scale = round(image.width / width)
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    image.load()
    if image.size != (width, height) or _checksum(image) != seen:
        raise ValueError("missing rows")
    return image


def _ends_gray(image: Image.Image) -> bool:
    """True when the last pixel may be one that the decoder had no data for: all samples 128, K inverted."""
    pixel = image.getpixel((image.width - 1, image.height - 1))
    samples = pixel if isinstance(pixel, tuple) else (pixel or 0,)
    # Of colours the luma, because chroma may be blended with that of the block above.
    red, green, blue = samples if len(samples) == 3 else (samples[-1],) * 3
    return 126 <= 0.299 * red + 0.587 * green + 0.114 * blue <= 130


def _checksum(image: Image.Image) -> int:
    """Of the pixels, strip by strip."""
    total, step = 0, max(1, _STRIP_PIXELS // image.width)
    for y in range(0, image.height, step):
        strip = image.crop((0, y, image.width, min(y + step, image.height)))
        total = zlib.crc32(strip.tobytes(), total)
    return total


def _coefficient_bytes(image: JpegImagePlugin.JpegImageFile) -> int:
    """What the decoder holds of a JPEG whose scans each tell a part of all pixels: 2 bytes a sample."""
    across, down = (max(layer[i] for layer in image.layer) for i in (1, 2))
    columns, rows = -(-image.width // (8 * across)), -(-image.height // (8 * down))
    return 128 * columns * rows * sum(layer[1] * layer[2] for layer in image.layer)


_JPEG_FILLER = b"".join(
    bytes((89 * i + 41) % 255 for i in range(60 * n, 60 * n + 60)) + b"\xff" + bytes((0xD0 + n % 8,))
    for n in range(16)
)
"""Any bits, and restart markers, of which the decoder takes the one that it waits for."""
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
_JPEG_NEEDED = {*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDD, 0xE0, 0xEE}
"""Frames, tables, scans, and the two application segments that tell the colour space (JFIF, Adobe)."""


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
    depth, colours = file[24], file[25]
    row_bytes = (image.width * depth * _PNG_CHANNELS.get(colours, 1) + 7) // 8
    if 8 * row_bytes >= 2**31:  # Pillow counts a row's bits in an int
        raise MemoryError("row")
    decoder_bytes, load = 3 * row_bytes, _load
    if "transparency" in image.info and colours == 0 and depth in (2, 4):  # Pillow scales pixels, not the key
        image.info["transparency"] = image.info["transparency"] % 2**depth * (255 // (2**depth - 1))
    elif "transparency" in image.info and colours == 2 and depth == 16:
        decoder_bytes += _image_bytes("RGB", image.size)
        load = partial(_load_deep_png, file=file)
    return _Header(image, _orientation(exif), decoder_bytes, load)


def _load_deep_png(image: ImageFile.ImageFile, file: bytes) -> Image.Image:
    """16-bit RGB with a transparent colour, made white here: Pillow keeps only the upper bytes."""
    key = np.array(image.info.pop("transparency"), np.uint16)
    image.load()
    lower = PngImagePlugin.PngImageFile(BytesIO(file))
    lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
    lower.load()
    step = max(1, _STRIP_PIXELS // 4 // image.width)
    for y in range(0, image.height, step):
        box = (0, y, image.width, min(y + step, image.height))
        upper, low = np.asarray(image.crop(box)), np.asarray(lower.crop(box))
        clear = ((upper == key >> 8) & (low == key & 255)).all(2)
        image.paste("white", box, Image.fromarray(clear.view(np.uint8) * 255))
    return image


_PNG_CHANNELS = {2: 3, 4: 2, 6: 4}


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
            control = data[at : at + 8] if data[at + 1] == 0xF9 else control  # has the transparent colour
            at, in_extension = at + 2, True
        elif byte == 0x2C:  # the frame
            left, top, frame_width, frame_height = struct.unpack_from("<4H", data, at + 1)
            size = max(width, left + frame_width), max(height, top + frame_height)
            _check_pixels(size, max_pixels)
            # Only the frame: what is around it stays clear, and Pillow would fill it with a colour.
            screen = struct.pack("<HH", frame_width, frame_height)
            frame = b"".join((data[:6], screen, data[10:start], control, b"\x2c\0\0\0\0", data[at + 5 :]))
            image = GifImagePlugin.GifImageFile(BytesIO(frame))
            if size == image.size:
                return _Header(image)
            load = partial(_load_gif, size=size, corner=(left, top))
            return _Header(image, 1, _image_bytes("RGB", size), load, size)
        else:  # some writers leave a stray byte
            at += 1
    raise ValueError("too many blocks")


def _load_gif(image: ImageFile.ImageFile, size: tuple[int, int], corner: tuple[int, int]) -> Image.Image:
    """A frame smaller than its screen, on white."""
    image.load()
    screen = Image.new("RGB", size, "white")
    step = max(1, _STRIP_PIXELS // 4 // image.width)
    for y in range(0, image.height, step):
        strip = _to_rgb(image.crop((0, y, image.width, min(y + step, image.height))))
        screen.paste(strip, (corner[0], corner[1] + y))
    return screen


def _open_webp(data: bytes, max_pixels: int) -> _Header:
    """The size comes from the header here, because Pillow allocates the canvas when opening."""
    size = _webp_size(data, max_pixels)
    if data[12:16] == b"VP8X" and data[20] & 2:  # an animation: what its frame leaves out is clear, not black
        data = b"".join((data[:20], bytes((data[20] | 0x10,)), data[21:]))
    image = _checked(WebPImagePlugin.WebPImageFile(BytesIO(data)), max_pixels)
    return _Header(image, _orientation(image.info.get("exif", b"")), _CANVASES * _area(size))


def _webp_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """The canvas, which has to agree with the first frame, as far as both are known."""
    extended = data[12:16] == b"VP8X"
    canvas = (_from_3_bytes(data, 24), _from_3_bytes(data, 27)) if extended else _webp_frame_size(data, 12)
    _check_pixels(canvas, max_pixels)
    if not extended:
        return canvas
    at = 30
    for _ in range(_MAX_PIECES):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind in (b"VP8 ", b"VP8L"):
            if _webp_frame_size(data, at) != canvas:
                raise ValueError("two sizes")
            return canvas
        if kind == b"ANMF":
            frame = _from_3_bytes(data, at + 14), _from_3_bytes(data, at + 17)
            at += 24  # behind its header: the chunks of its own
            if struct.unpack_from("<4s", data, at)[0] == b"ALPH":
                at += 8 + _even(int.from_bytes(data[at + 4 : at + 8], "little"))
            if _webp_frame_size(data, at) != frame or frame[0] > canvas[0] or frame[1] > canvas[1]:
                raise ValueError("two sizes")
            return canvas
        at += 8 + _even(length)
    raise ValueError("too many chunks")


def _from_3_bytes(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little") + 1


def _even(length: int) -> int:
    return length + (length & 1)


def _webp_frame_size(data: bytes, at: int) -> tuple[int, int]:
    """Of the chunk of pixels that begins there."""
    kind = data[at : at + 4]
    if kind == b"VP8L":
        packed = int.from_bytes(data[at + 9 : at + 13], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, at + 14)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("unknown chunk")


def _open_bmp(data: bytes, max_pixels: int) -> _Header:
    image = _checked(BmpImagePlugin.BmpImageFile(BytesIO(data)), max_pixels)
    run_lengths = image.info.get("compression") in (1, 2)
    if run_lengths and (len(data) > _MAX_RUN_LENGTH_BYTES or _area(image.size) > _MAX_RUN_LENGTH_PIXELS):
        raise ValueError("run lengths")
    decoder_bytes = 2 * _area(image.size) if run_lengths else 8 * image.width
    return _Header(image, 1, decoder_bytes, _load_bmp)


def _load_bmp(image: ImageFile.ImageFile) -> Image.Image:
    """Without an alpha channel of zeros, as writers of BMP often leave it."""
    image.load()
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image.putalpha(255)
    return image


def _open_avif(data: bytes, max_pixels: int) -> _Header:
    """The still picture, without EXIF: an AVIF is turned by properties, which Pillow reports as EXIF.

    Sequences are hidden, whose first picture is the still one too.
    """
    if not AvifImagePlugin.SUPPORTED:
        raise PhotoError(
            "unsupported_format",
            "This server was built without AVIF; save the photo as JPEG or PNG.",
        )
    size, coded_pixels = _avif_size(data, max_pixels)
    if coded_pixels // 2 > max_pixels:  # colour and alpha have as many each
        raise ValueError("many pictures")
    file = bytearray(_AVIF_EXIF.sub(rb"\1none", data))
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"ftyp":
            file[start:end] = file[start:end].replace(b"avis", b"avif")
        elif kind == b"moov":
            file[start - 4 : start] = b"free"
    image = _checked(AvifImagePlugin.AvifImageFile(BytesIO(file)), max_pixels)
    if image.size != size:
        raise ValueError("two sizes")
    decoder_bytes = _CANVASES * max(_area(size), coded_pixels // 2)
    return _Header(image, _orientation(image.info.get("exif", b"")), decoder_bytes)


_AVIF_EXIF = re.compile(rb"(infe[\x02\x03]...(?:..|....)..)Exif", re.DOTALL)
"""An item's entry: version, flags, its number, protection, type."""


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of an ISO media file between two places: type, and where the content begins and ends."""
    for _ in range(_MAX_PIECES):
        if at >= end:
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if length == 1:
            length, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        after = at + length if length else end
        if not start <= after <= end:
            raise ValueError("box")
        yield kind, start, after
        at = after
    raise ValueError("too many boxes")


class _Reader:
    """Numbers, one after another, of bytes; ValueError where they end."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data, self._at, self._end, self._reads = data, at, end, 0

    def take(self, length: int) -> int:
        self._at += length
        self._reads += 1
        if self._at > self._end or self._reads > 16 * _MAX_PIECES:
            raise ValueError("short box")
        return int.from_bytes(self._data[self._at - length : self._at], "big")


def _avif_size(data: bytes, max_pixels: int) -> tuple[tuple[int, int], int]:
    """The size of the picture according to its container, and the pixels of all coded ones together.

    The decoder follows what the coded pictures say of themselves, so each must agree with its container.
    """
    (meta,) = (box for box in _boxes(data, 0, len(data)) if box[0] == b"meta")
    boxes = {kind: (start, end) for kind, start, end in _boxes(data, meta[1] + 4, meta[2])}
    reader = _Reader(data, *boxes[b"pitm"])
    primary = reader.take(2 if reader.take(4) < 1 << 24 else 4)
    sizes, places, pixels = _avif_sizes(data, boxes[b"iprp"]), _avif_places(data, boxes), 0
    for item, kind in _avif_items(data, boxes[b"iinf"]):
        if kind not in (b"av01", b"grid"):
            continue
        (size,) = sizes[item]  # one, however often it is given
        _check_pixels(size, max_pixels)
        content = b"".join([data[start:end] for start, end in places[item]])
        if kind == b"av01":
            pixels += _area(size)
        if size != (_av1_size(content) if kind == b"av01" else _avif_grid_size(content)):
            raise ValueError("two sizes")
    return next(iter(sizes[primary])), pixels


def _avif_items(data: bytes, box: tuple[int, int]) -> Iterator[tuple[int, bytes]]:
    """Number and type of each item."""
    header = 8 if data[box[0]] else 6
    for kind, start, end in _boxes(data, box[0] + header, box[1]):
        if kind == b"infe":
            reader = _Reader(data, start, end)
            item = reader.take({2: 2, 3: 4}[reader.take(4) >> 24])
            yield item, (reader.take(6) & 0xFFFFFFFF).to_bytes(4, "big")


def _avif_places(data: bytes, boxes: dict[bytes, tuple[int, int]]) -> dict[int, list[tuple[int, int]]]:
    """Where each item's content lies; together little more than the file: parts can be shared."""
    places: dict[int, list[tuple[int, int]]] = {}
    reader, left = _Reader(data, *boxes[b"iloc"]), 4 * len(data)
    version, sizes = reader.take(4) >> 24, reader.take(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    for _ in range(reader.take(2 if version < 2 else 4)):
        item = reader.take(2 if version < 2 else 4)
        method = reader.take(2) & 15 if version else 0
        reader.take(2)
        start = reader.take(base_size) + (boxes[b"idat"][0] if method == 1 else 0)
        extents = places[item] = []
        for _ in range(reader.take(2)):
            reader.take(sizes & 15 if version else 0)
            first, length = start + reader.take(offset_size), reader.take(length_size)
            left -= length
            if method > 1 or not 0 < length <= len(data) - first or left < 0:
                raise ValueError("item")
            extents.append((first, first + length))
    return places


def _avif_sizes(data: bytes, box: tuple[int, int]) -> dict[int, set[tuple[int, int]]]:
    """The sizes that each item's properties tell."""
    boxes = {kind: (start, end) for kind, start, end in _boxes(data, *box)}
    told: dict[int, tuple[int, int]] = {}
    for index, (kind, start, _) in enumerate(_boxes(data, *boxes[b"ipco"]), 1):
        if kind == b"ispe":
            told[index] = struct.unpack_from(">II", data, start + 4)
    reader = _Reader(data, *boxes[b"ipma"])
    sizes: dict[int, set[tuple[int, int]]] = {}
    header = reader.take(4)
    wide = header & 1
    for _ in range(reader.take(4)):
        found = sizes.setdefault(reader.take(4 if header >> 24 else 2), set())
        for _ in range(reader.take(1)):
            index = reader.take(1 + wide) & (0x7FFF if wide else 0x7F)
            if index in told:
                found.add(told[index])
    return sizes


def _avif_grid_size(content: bytes) -> tuple[int, int]:
    """A picture put together of tiles: version, flags, rows - 1, columns - 1, width and height."""
    width, height = struct.unpack_from(">II" if content[1] & 1 else ">HH", content, 4)
    return width, height


def _av1_size(content: bytes) -> tuple[int, int]:
    """The size in AV1's sequence header (specification, 5.5.1); no frame may have another."""
    sequence, at = None, 0
    for _ in range(_MAX_PIECES):
        if at >= len(content):
            break
        kind, start = content[at] >> 3 & 15, at + (2 if content[at] & 4 else 1)
        end = len(content)
        if content[at] & 2:  # gives its length, in groups of seven bits
            length = 0
            for shift in range(0, 56, 7):
                length |= (content[start] & 127) << shift
                start += 1
                if content[start - 1] < 128:
                    break
            end = start + length
        bits = _Bits(content[start : min(end, start + 512)])
        if kind == 1:
            found = _av1_sequence(bits)
            if sequence and found != sequence:
                raise ValueError("two sequences")
            sequence = found
        elif kind in (3, 6) and (sequence is None or _av1_overrides_size(bits, sequence)):
            raise ValueError("frame size")
        at = end
    if sequence is None:
        raise ValueError("no sequence")
    return sequence.size


class _Bits:
    """Bits from the first one on; ValueError where they end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("bits")
        return self._value >> self._left & (1 << count) - 1


class _Sequence(NamedTuple):
    size: tuple[int, int]
    still: bool
    """With the short headers of still pictures."""
    time_bits: int
    """Of the time at which a frame is shown."""
    id_bits: int
    screen_content: int
    """0 or 1 for all frames, 2 where each has its own; the next too."""
    whole_vectors: int


def _av1_sequence(bits: _Bits) -> _Sequence:
    bits.take(4)
    still, time_bits = bool(bits.take(1)), 0
    if still:
        bits.take(5)
    else:
        time_bits = _av1_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    size = bits.take(width_bits) + 1, bits.take(height_bits) + 1
    if still:
        return _Sequence(size, True, 0, 0, 2, 2)
    id_bits = bits.take(4) + bits.take(3) + 3 if bits.take(1) else 0
    bits.take(7)
    if bits.take(1):  # order hints
        bits.take(2)
    screen_content = 2 if bits.take(1) else bits.take(1)
    whole_vectors = 2 if not screen_content or bits.take(1) else bits.take(1)
    return _Sequence(size, False, time_bits, id_bits, screen_content, whole_vectors)


def _av1_operating_points(bits: _Bits) -> int:
    """Read past the timing and the points; return how many bits tell the time of a frame."""
    delay_bits = time_bits = 0
    if bits.take(1):
        bits.take(64)
        equal = bits.take(1)
        if equal:
            zeros = 0
            while not bits.take(1):
                zeros += 1
            bits.take(zeros)
        if bits.take(1):
            delay_bits = bits.take(5) + 1
            bits.take(37)
            time_bits = bits.take(5) + 1
            time_bits = 0 if equal else time_bits
    display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if display_delay and bits.take(1):
            bits.take(4)
    return time_bits


def _av1_overrides_size(bits: _Bits, sequence: _Sequence) -> bool:
    """True for a frame that has a size of its own (specification, 5.9.2)."""
    if sequence.still or bits.take(1):
        return False
    kind, shown = bits.take(2), bits.take(1)
    bits.take(sequence.time_bits if shown else 1)
    if kind != 3 and not (kind == 0 and shown):
        bits.take(1)
    bits.take(1)
    screen_content = bits.take(1) if sequence.screen_content == 2 else sequence.screen_content
    if screen_content and sequence.whole_vectors == 2:
        bits.take(1)
    bits.take(sequence.id_bits)
    return kind == 3 or bool(bits.take(1))


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
_FLIPPED_X = (2, 3, 7, 8)
_FLIPPED_Y = (3, 4, 6, 7)
"""Orientations whose turn reverses the stored columns or rows."""


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode the readers give -> RGB; what is transparent becomes white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _high_bytes(image).convert("RGB")
    if not image.has_transparency_data:
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
