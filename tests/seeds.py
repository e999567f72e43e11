"""Photos of rarer kinds, made in memory or kept as files: what `hostile` leaves out, also for fuzzing."""

import struct
import zlib
from pathlib import Path

from tests import hostile

FAULTS = Path(__file__).parent / "data" / "faults"


def fault(name: str) -> bytes:
    """A small file that once failed, or that no encoder here can write (arithmetic codes)."""
    return (FAULTS / name).read_bytes()


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _contained(data: bytes, kind: bytes) -> bytes:
    """A box of that type, whole; it contains none itself."""
    at = data.index(kind) - 4
    return data[at : at + int.from_bytes(data[at : at + 4], "big")]


def avif_grid(columns: int = 2, *, size: tuple[int, int] | None = None, same: bool = False) -> bytes:
    """A grid of one row of tiles of 96 x 64 pixels. `same`: all tiles lie at the same place in the file."""
    tile = hostile.saved(hostile.picture(), "AVIF", quality=90)
    coded = tile[tile.index(b"mdat") + 4 :]
    width, height = size or (96 * columns, 64)
    content = struct.pack(">4B2H", 0, 0, 0, columns - 1, width, height)
    items, tiles = range(1, columns + 2), range(1, columns + 1)
    entries = [
        box(b"infe", struct.pack(">IHH4sB", 2 << 24, i, 0, b"av01" if i in tiles else b"grid", 0))
        for i in items
    ]
    properties = [
        box(b"ispe", struct.pack(">3I", 0, 96, 64)),
        _contained(tile, b"pixi"),
        _contained(tile, b"av1C"),
        box(b"ispe", struct.pack(">3I", 0, width, height)),
    ]
    uses = [
        struct.pack(">HB", i, 3) + bytes((1, 2, 0x83))
        if i in tiles
        else struct.pack(">HB", i, 2) + bytes((4, 2))
        for i in items
    ]

    def file(start: int) -> bytes:
        places = [
            struct.pack(
                ">3H2I", i, 0, 1, start + (0 if same or i not in tiles else (i - 1) * len(coded)), len(coded)
            )
            if i in tiles
            else struct.pack(">3H2I", i, 0, 1, start + (1 if same else columns) * len(coded), len(content))
            for i in items
        ]
        meta = box(
            b"meta",
            bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", struct.pack(">IH", 0, columns + 1)),
            box(b"iloc", struct.pack(">IBBH", 0, 0x44, 0, len(items)), *places),
            box(b"iinf", struct.pack(">IH", 0, len(items)), *entries),
            box(
                b"iref", bytes(4), box(b"dimg", struct.pack(f">{2 + columns}H", columns + 1, columns, *tiles))
            ),
            box(b"iprp", box(b"ipco", *properties), box(b"ipma", struct.pack(">II", 0, len(items)), *uses)),
        )
        brands = box(b"ftyp", b"avif", bytes(4), b"avif", b"mif1", b"miaf")
        return brands + meta + box(b"mdat", coded * (1 if same else columns), content)

    return file(file(0).index(b"mdat") + 4)


def jpeg_scans(count: int, side: int = 40) -> bytes:
    """A progressive JPEG with that many last scans, behind a comment that looks like its end."""
    data = hostile.jpeg(hostile.picture(side, side), progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + hostile.segment(0xFE, b"\xff\xd9") + data[at:-2] * count + data[-2:]


def webp_sizes(canvas: tuple[int, int], *, animated: bool) -> bytes:
    """A picture of 96 x 64 pixels on a canvas of another size."""
    image = hostile.see_through()
    more = {"save_all": True, "append_images": [hostile.picture().convert("RGBA")]} if animated else {}
    data = bytearray(hostile.saved(image, "WEBP", quality=90, exif=hostile.exif(1), **more))
    data[24:30] = b"".join(struct.pack("<I", side - 1)[:3] for side in canvas)
    return bytes(data)


def webp_frame(size: tuple[int, int]) -> bytes:
    """An animation whose first frame says another size than its pixels have."""
    data = bytearray(webp_sizes((1000, 1000), animated=True))
    at = data.index(b"ANMF") + 14
    data[at : at + 6] = b"".join(struct.pack("<I", side - 1)[:3] for side in size)
    return bytes(data)


def keyed_png(depth: int, colours: int) -> bytes:
    """Gray (`colours` 0) or RGB (2) of that depth: black left, the transparent key right.

    At 16 bits a strip at the top differs from the key in its lower byte alone, and is no less black for it.
    """
    channels, largest = (3 if colours == 2 else 1), (1 << depth) - 1
    key = (5,) * channels if depth == 16 else (largest // 2,) * channels
    near = (6,) * channels if depth == 16 else key
    rows = b""
    for y in range(64):
        samples = [0] * (48 * channels) + list(near if y < 16 else key) * 48
        value = 0
        for sample in samples:
            value = value << depth | sample
        rows += b"\0" + value.to_bytes(len(samples) * depth // 8, "big")
    header = struct.pack(">IIBBBBB", 96, 64, depth, colours, 0, 0, 0)
    chunks = (
        hostile.chunk(b"IHDR", header),
        hostile.chunk(b"tRNS", struct.pack(f">{channels}H", *key)),
        hostile.chunk(b"IDAT", zlib.compress(rows)),
        hostile.chunk(b"IEND", b""),
    )
    return hostile.PNG + b"".join(chunks)


def gray_png(width: int, height: int, colours: int = 0) -> bytes:
    """A black PNG of 8 bits, however large."""
    packer = zlib.compressobj(9)
    row = bytes(1 + width * {0: 1, 2: 3, 6: 4}[colours])
    count = max(1, 1_000_000 // len(row))
    body = b"".join(packer.compress(row * min(count, height - y)) for y in range(0, height, count))
    header = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    end = hostile.chunk(b"IEND", b"")
    return hostile.PNG + hostile.chunk(b"IHDR", header) + hostile.chunk(b"IDAT", body + packer.flush()) + end
