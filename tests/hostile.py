"""Photos as people send them, good and bad, made in memory: name -> bytes and what must become of them.

Every good one shows the same four quadrants, so that one check tells whether it was decoded the right way up
and in the right colours. Use `CASES` to parametrize and `photo(name)` for one of them.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

CC0 = Path(__file__).parent / "data" / "cc0"
RED, GREEN, BLUE, YELLOW = (220, 40, 40), (40, 170, 60), (40, 60, 200), (240, 220, 60)
WHITE = (255, 255, 255)
QUADRANTS = (RED, GREEN, BLUE, YELLOW)
"""Top left, top right, bottom left, bottom right."""
GRAYS = ((94, 94, 94), (119, 119, 119), (70, 70, 70), (208, 208, 208))
"""The quadrants' luma (ITU-R 601)."""
RIGHT_TRANSPARENT = (RED, WHITE, BLUE, WHITE)

Corners = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Case:
    """One photo, made when first asked for."""

    name: str
    make: Callable[[], bytes]
    code: str | None = None
    """The error code it must give, None for a good photo."""
    corners: Corners | None = QUADRANTS
    """Colours of the quadrants of a good photo; None where it shows something else."""
    tolerance: int = 12


def picture(width: int = 96, height: int = 64) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left = np.arange(height)[:, None] < height / 2, np.arange(width)[None] < width / 2
    for colour, where in zip(QUADRANTS, (top & left, top & ~left, ~top & left, ~top & ~left), strict=True):
        pixels[where] = colour
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(image: Image.Image | None = None, **options: object) -> bytes:
    return saved(image or picture(), "JPEG", **{"quality": 95, "subsampling": 0} | options)


def see_through() -> Image.Image:
    """The right half is transparent, and black underneath."""
    image = picture().convert("RGBA")
    image.paste((0, 0, 0, 0), (48, 0, 96, 64))
    return image


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[274] = orientation
    return tags.tobytes()


UNDO = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(kind: str, orientation: int) -> bytes:
    undo = UNDO[orientation]
    image = picture() if undo is None else picture().transpose(undo)
    return saved(image, kind, exif=exif(orientation), quality=95)


def damaged_exif() -> bytes:
    """An entry that points outside the segment, before the orientation: libraries warn about it."""
    entries = struct.pack("<HHII", 270, 2, 5000, 90_000) + struct.pack("<HHII", 274, 3, 1, 6)
    tiff = b"II*\0" + struct.pack("<IH", 8, 2) + entries
    return jpeg(picture().transpose(UNDO[6]), exif=b"Exif\0\0" + tiff)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segments(*segments: bytes) -> bytes:
    data = jpeg()
    return data[:2] + b"".join(segments) + data[2:]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


PNG = b"\x89PNG\r\n\x1a\n"


def with_chunks(*chunks: bytes) -> bytes:
    data = saved(picture(), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def blank_png(width: int, height: int) -> bytes:
    """A complete, valid file however large: rows of one bit, all zero."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def sixteen_bit_gray(transparent: bool = False) -> bytes:
    """8-bit gray in the upper byte, something in the lower: clipping or wrapping shows at once."""
    gray = np.asarray(picture().convert("L")).astype(">u2")
    if transparent:
        gray[:, 48:] = 7
    rows = b"".join(b"\0" + (row * 256 + 99).astype(">u2").tobytes() for row in gray)
    header = struct.pack(">IIBBBBB", 96, 64, 16, 0, 0, 0, 0)
    extra = chunk(b"tRNS", struct.pack(">H", 7 * 256 + 99)) if transparent else b""
    return PNG + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sixteen_bit_rgb() -> bytes:
    rows = b"".join(
        b"\0" + (row.astype(">u2") * 256 + 99).astype(">u2").tobytes() for row in np.asarray(picture())
    )
    header = struct.pack(">IIBBBBB", 96, 64, 16, 2, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def one_bit() -> bytes:
    image = Image.new("1", (96, 64), 0)
    image.paste(1, (48, 0, 96, 64))
    return saved(image, "PNG")


def palette(transparent: bool) -> Image.Image:
    """Indices 0 to 3 are the quadrants' colours, 7 (where it is transparent) is black."""
    image = Image.new("P", (96, 64), 0)
    image.putpalette([value for colour in QUADRANTS for value in colour] + [0] * 12)
    for index, corner in enumerate(((0, 0), (48, 0), (0, 32), (48, 32))):
        image.paste(7 if transparent and corner[0] else index, (*corner, corner[0] + 48, corner[1] + 32))
    return image


def palette_alphas() -> bytes:
    """An alpha for every entry of the palette: Pillow warns when it is converted straight to RGB."""
    alphas = bytearray(b"\xff" * 8)
    alphas[7] = 0
    alphas[6] = 254
    return saved(palette(True), "PNG", transparency=bytes(alphas))


def gray_alpha() -> bytes:
    image = picture().convert("LA")
    image.paste((0, 0), (48, 0, 96, 64))
    return saved(image, "PNG")


def gray_transparent() -> bytes:
    image = picture().convert("L")
    image.paste(7, (48, 0, 96, 64))
    return saved(image, "PNG", transparency=7)


def animation(kind: str, **options: object) -> bytes:
    frames = [Image.new("RGB", (96, 64), (10 * n, 0, 0)) for n in range(5)]
    return saved(picture(), kind, save_all=True, append_images=frames, duration=40, **options)


def cmyk(adobe: bool) -> bytes:
    """Pillow writes inverted CMYK with Adobe's marker; readers take it so without the marker too."""
    data = jpeg(picture().convert("CMYK"))
    at = data.find(b"\xff\xee")
    assert data[at + 4 : at + 9] == b"Adobe"
    return data if adobe else data[:at] + data[at + 16 :]


def bmp32(alpha: int) -> bytes:
    """The layout with masks for red, green, blue and alpha (BITMAPV4HEADER)."""
    pixels = np.full((64, 96, 4), alpha, np.uint8)
    pixels[..., :3] = np.asarray(picture())[::-1, :, ::-1]
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 96, 64, 1, 32, 3, pixels.nbytes, 2835, 2835, 0, 0) + masks
    header = header.ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 122 + pixels.nbytes, 0, 0, 122) + header + pixels.tobytes()


def huge_bmp() -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(1000)


def large_icc() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return jpeg(icc_profile=profile + bytes(4_000_000))


def gif_frame(width: int, height: int) -> bytes:
    """A GIF whose first frame is larger than its screen."""
    data = bytearray(saved(palette(False), "GIF"))
    at = data.index(b"\x2c\0\0\0\0\x60\0\x40\0")
    data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def gif_comments(size: int) -> bytes:
    data = saved(palette(False), "GIF")
    at = 13 + (3 << (data[10] & 7) + 1)
    comment = b"\x21\xfe" + (b"\xff" + b"x" * 255) * (size // 256) + b"\0"
    return data[:at] + comment + b"\0\0" + data[at:]


def webp_canvas() -> bytes:
    """A few bytes that claim 16,384 x 16,384 pixels."""
    data = bytearray(saved(see_through(), "WEBP", exif=exif(1)))
    data[24:30] = b"\xff\x3f\0\xff\x3f\0"
    return bytes(data)


def avif_size() -> bytes:
    data = saved(picture(), "AVIF")
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", 12_000, 12_000) + data[at + 8 :]


def scan_bomb() -> bytes:
    """A progressive JPEG of 16 megapixels whose last scan comes a hundred times: each is a pass over all."""
    data = jpeg(Image.new("RGB", (4096, 4096)), progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * 100 + data[-2:]


def run_length_picture() -> bytes:
    """The quadrants in runs of 48, bottom row first."""
    rows = [bytes((48, 2 * lower, 48, 2 * lower + 1, 0, 0)) for lower in (1,) * 32 + (0,) * 32]
    body = b"".join(rows) + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 96, 64, 1, 8, 1, len(body), 0, 0, 4, 0)
    colours = b"".join(bytes((*colour[::-1], 0)) for colour in QUADRANTS)
    return b"BM" + struct.pack("<IHHI", 70 + len(body), 0, 0, 70) + header + colours + body


def run_lengths(pixels: int) -> bytes:
    """A BMP of runs of one pixel."""
    body = b"\1\7" * pixels
    header = struct.pack("<IiiHHIIiiII", 40, 4096, 4096, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + header + bytes(range(256)) * 4 + body


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


def noise(side: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return saved(Image.fromarray(pixels), "PNG", compress_level=0)


def multi_picture() -> bytes:
    return saved(picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (96, 64))], quality=95)


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    for n in range(3):
        info.add_text(f"note{n}", "x" * 30_000_000, zip=True)
    return saved(picture(), "PNG", pnginfo=info)


def profile_bomb() -> bytes:
    return with_chunks(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(50_000_000))))


def ftyp(*brands: bytes) -> bytes:
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", len(body) + 4) + body + bytes(200)


_FORMATS = {
    "jpeg": jpeg,
    "png": lambda: saved(picture(), "PNG"),
    "webp": lambda: saved(picture(), "WEBP", quality=95),
    "gif": lambda: saved(palette(False), "GIF"),
    "bmp": lambda: saved(picture(), "BMP"),
    "avif": lambda: saved(picture(), "AVIF", quality=95),
}

_GOOD = [
    *(Case(name, make) for name, make in _FORMATS.items()),
    *(Case(f"exif-{n}.jpg", lambda n=n: turned("JPEG", n)) for n in UNDO),
    Case("exif-6.png", lambda: turned("PNG", 6)),
    Case("exif-8.webp", lambda: turned("WEBP", 8)),
    Case("exif-6.avif", lambda: turned("AVIF", 6)),
    Case("exif-damaged.jpg", damaged_exif),
    Case("progressive.jpg", lambda: jpeg(progressive=True)),
    Case("gray.jpg", lambda: jpeg(picture().convert("L")), corners=GRAYS),
    Case("gray.png", lambda: saved(picture().convert("L"), "PNG"), corners=GRAYS),
    Case("gray.bmp", lambda: saved(picture().convert("L"), "BMP"), corners=GRAYS),
    Case("gray-16-bit.png", sixteen_bit_gray, corners=GRAYS, tolerance=1),
    Case(
        "gray-16-bit-transparent.png",
        lambda: sixteen_bit_gray(True),
        corners=(GRAYS[0], WHITE, GRAYS[2], WHITE),
    ),
    Case("rgb-16-bit.png", sixteen_bit_rgb, tolerance=1),
    Case("one-bit.png", one_bit, corners=((0, 0, 0), WHITE, (0, 0, 0), WHITE)),
    Case("palette.png", lambda: saved(palette(False), "PNG")),
    Case(
        "palette-transparent.png",
        lambda: saved(palette(True), "PNG", transparency=7),
        corners=RIGHT_TRANSPARENT,
    ),
    Case(
        "palette-transparent.gif",
        lambda: saved(palette(True), "GIF", transparency=7),
        corners=RIGHT_TRANSPARENT,
    ),
    Case("palette-alphas.png", palette_alphas, corners=RIGHT_TRANSPARENT),
    Case("palette.bmp", lambda: saved(palette(False), "BMP")),
    Case("run-length.bmp", run_length_picture),
    Case("alpha.png", lambda: saved(see_through(), "PNG"), corners=RIGHT_TRANSPARENT),
    Case("alpha.webp", lambda: saved(see_through(), "WEBP", lossless=True), corners=RIGHT_TRANSPARENT),
    Case("alpha.avif", lambda: saved(see_through(), "AVIF", quality=95), corners=RIGHT_TRANSPARENT),
    Case("gray-alpha.png", gray_alpha, corners=(GRAYS[0], WHITE, GRAYS[2], WHITE)),
    Case("gray-transparent.png", gray_transparent, corners=(GRAYS[0], WHITE, GRAYS[2], WHITE)),
    Case("bmp-alpha.bmp", lambda: bmp32(255)),
    Case("bmp-empty-alpha.bmp", lambda: bmp32(0)),
    Case("cmyk-adobe.jpg", lambda: cmyk(True)),
    Case("cmyk.jpg", lambda: cmyk(False)),
    Case("animated.gif", lambda: animation("GIF"), tolerance=40),
    Case("animated.webp", lambda: animation("WEBP", quality=95)),
    Case("animated.png", lambda: animation("PNG")),
    Case("animated.avif", lambda: animation("AVIF", quality=95)),
    Case("bad-animation.png", lambda: with_chunks(chunk(b"acTL", bytes(8)), chunk(b"acTL", bytes(8)))),
    Case("large-icc.jpg", large_icc),
    Case("profile-bomb.png", profile_bomb),
    Case("text-bomb.png", text_bomb),
    Case("comments.jpg", lambda: with_segments(*[segment(0xFE, b"x" * 60_000)] * 100)),
    Case("comments.gif", lambda: gif_comments(1_000_000)),
    Case("multi-picture.jpg", multi_picture),
    Case("motion.jpg", lambda: jpeg() + b"ftypmp42" + b"\xff\xda\xff\xd9" * 50_000),
    Case("junk-between-segments.jpg", lambda: with_segments(segment(0xFE, b"x"), bytes(1_000_000))),
    Case("1x1", lambda: saved(Image.new("RGB", (1, 1), RED), "PNG"), corners=(RED,) * 4, tolerance=0),
    Case("1x4000", lambda: saved(picture(1, 4000), "PNG"), corners=None),
    Case("4000x1", lambda: saved(picture(4000, 1), "PNG"), corners=None),
    Case("25000000x1", lambda: blank_png(25_000_000, 1), corners=((0, 0, 0),) * 4),
]

_BAD = [
    Case("empty", lambda: b"", "undecodable"),
    Case("text.jpg", lambda: b"This is not a photo.\n" * 100, "unsupported_format"),
    Case("address", lambda: b"\nhttps://example.com/cat.jpg", "unsupported_format"),
    Case("json", lambda: b'{"url": "https://example.com/cat.jpg"}', "unsupported_format"),
    Case("heic", lambda: ftyp(b"heic", b"mif1", b"heic"), "unsupported_format"),
    Case("heif-without-avif", lambda: ftyp(b"mif1", b"heic"), "unsupported_format"),
    Case("mp4", lambda: ftyp(b"isom", b"mp42"), "unsupported_format"),
    Case("tiff", lambda: saved(picture(), "TIFF"), "unsupported_format"),
    Case("icon", lambda: saved(picture(), "ICO"), "unsupported_format"),
    Case("pdf", lambda: b"%PDF-1.7\n" + bytes(100), "unsupported_format"),
    Case("svg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
    *(
        Case(f"half.{name}", lambda m=make: m()[: len(m()) // 2], "undecodable")
        for name, make in _FORMATS.items()
    ),
    *(
        Case(f"first-32-bytes.{name}", lambda m=make: m()[:32], "undecodable")
        for name, make in _FORMATS.items()
    ),
    *(
        Case(f"header-and-noise.{name}", lambda m=make: m()[:40] + noise(20)[60:], "undecodable")
        for name, make in _FORMATS.items()
        if name != "bmp"  # any bytes are pixels to it
    ),
    Case("without-end.png", lambda: saved(picture(), "PNG")[:-12], "undecodable"),
    Case("flipped-bit.png", lambda: flipped(saved(picture(), "PNG"), 70), "undecodable"),
    Case("zero-width.png", lambda: blank_png(0, 5), "undecodable"),
    Case("zero-height.jpg", lambda: jpeg().replace(b"\0\x40\0\x60\3", b"\0\0\0\x60\3"), "undecodable"),
    Case("many-segments.jpg", lambda: with_segments(*[segment(0xFE, b"")] * 100_000), "undecodable"),
    Case("many-chunks.png", lambda: with_chunks(*[chunk(b"teST", b"")] * 100_000), "undecodable"),
    Case("scan-bomb.jpg", scan_bomb, "undecodable"),
    Case("run-length-bomb.bmp", lambda: run_lengths(5_000_000), "undecodable"),
    Case("bomb.png", lambda: blank_png(30_000, 30_000), "too_large"),
    Case("51-megapixels.png", lambda: blank_png(51_000, 1_000), "too_large"),
    Case("large-frame.gif", lambda: gif_frame(15_000, 7_000), "too_large"),
    Case("huge-frame.gif", lambda: gif_frame(65_535, 65_535), "too_large"),
    Case("huge-canvas.webp", webp_canvas, "too_large"),
    Case("huge.bmp", huge_bmp, "too_large"),
    Case("huge.avif", avif_size, "too_large"),
    Case("12-mebibytes.png", lambda: noise(2048), "too_large"),
]

CASES = {case.name: case for case in (*_GOOD, *_BAD)}
GOOD = {case.name: case for case in _GOOD}
BAD = {case.name: case for case in _BAD}


@cache
def photo(name: str) -> bytes:
    """The bytes of a case."""
    return CASES[name].make()
