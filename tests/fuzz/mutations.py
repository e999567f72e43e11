"""Structure-aware mutations: files taken apart into segments, chunks, blocks or boxes, and put together."""

import random
import struct
from collections.abc import Callable

from tests import hostile

Units = list[bytes]
NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 4095, 8000, 32767, 65535, 2**24 - 1, 2**31 - 1, 2**32 - 1)


def jpeg_units(data: bytes) -> Units:
    """Markers with their segments, and what is coded behind a scan's."""
    units, at = [], 0
    while at < len(data):
        end = data.find(b"\xff", at + 2)
        while 0 <= end < len(data) - 1 and (data[end + 1] in (0, 255) or 0xD0 <= data[end + 1] <= 0xD7):
            end = data.find(b"\xff", end + 1)
        if data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xd8", b"\xd9", b""):
            length = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            end = length if data[at + 1] != 0xDA else max(end, length)
        end = len(data) if end < 0 else min(max(end, at + 2), len(data))
        units.append(data[at:end])
        at = end
    return units


def png_units(data: bytes) -> Units:
    """The signature, and chunks without their checksums."""
    units, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        units.append(data[at + 4 : end])
        at = end + 4
    return units


def png_file(units: Units) -> bytes:
    """With lengths and checksums that are right."""
    chunks = [u for u in units if len(u) >= 4 and u != hostile.PNG]
    return hostile.PNG + b"".join(hostile.chunk(u[:4], u[4:]) for u in chunks)


def riff_units(data: bytes) -> Units:
    """The header, and chunks."""
    units, at = [data[:12]], 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length + (length & 1)
        units.append(data[at:end])
        at = end
    return units


def riff_file(units: Units) -> bytes:
    """With the length that it has."""
    body = b"".join(units)[8:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def box_units(data: bytes) -> Units:
    """Boxes of the outermost level, those of `meta` each for itself."""
    units, at = [], 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big") or len(data) - at
        if data[at + 4 : at + 8] == b"meta":
            length = 12
        units.append(data[at : at + max(8, length)])
        at += max(8, length)
    return units


def box_file(units: Units) -> bytes:
    """With the length that `meta` has, up to `mdat` or `moov`."""
    kinds = [unit[4:8] for unit in units]
    if b"meta" in kinds:
        first = kinds.index(b"meta")
        last = next((i for i in range(first, len(kinds)) if kinds[i] in (b"mdat", b"moov")), len(kinds))
        length = sum(map(len, units[first:last]))
        units = [*units[:first], struct.pack(">I", length) + units[first][4:], *units[first + 1 :]]
    return b"".join(units)


def gif_units(data: bytes) -> Units:
    """Header with colours, extensions, frames."""
    at = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    units = [data[:at]]
    while at < len(data):
        start, kind = at, data[at]
        if kind == 0x2C and at + 10 < len(data):
            at += 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0)
        else:
            at += 2 if kind == 0x21 else 1
        while kind in (0x21, 0x2C) and at < len(data) and data[at]:
            at += 1 + data[at]
        at += kind in (0x21, 0x2C)
        units.append(data[start:at])
    return units


def bmp_units(data: bytes) -> Units:
    """File header, fields of four bytes, colours and pixels."""
    return [data[:14], *(data[i : i + 4] for i in range(14, 54, 4)), data[54:]]


FORMATS: dict[str, tuple[Callable[[bytes], Units], Callable[[Units], bytes]]] = {
    "JPEG": (jpeg_units, b"".join),
    "PNG": (png_units, png_file),
    "WebP": (riff_units, riff_file),
    "AVIF": (box_units, box_file),
    "GIF": (gif_units, b"".join),
    "BMP": (bmp_units, b"".join),
}


def changed(unit: bytes, draw: random.Random) -> bytes:
    """Some bytes overwritten, cut out or repeated, or a number put in."""
    data = bytearray(unit)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(max(1, min(len(data), draw.choice((16, 64, len(data) or 1)))))
        width = draw.choice((1, 2, 3, 4))
        match draw.choice(("number", "number", "bit", "byte", "cut", "repeat")):
            case "number":
                value = draw.choice(NUMBERS) & (1 << 8 * width) - 1
                data[at : at + width] = value.to_bytes(width, draw.choice(("big", "little")))
            case "bit" if at < len(data):
                data[at] ^= 1 << draw.randrange(8)
            case "byte" if at < len(data):
                data[at] = draw.randrange(256)
            case "cut":
                del data[at : at + draw.randrange(1, 20)]
            case "repeat":
                data[at:at] = data[at : at + draw.randrange(1, 20)] * draw.choice((1, 1, 50))
    return bytes(data)


def mutated(units: Units, others: Units, draw: random.Random) -> Units:
    """Units changed, repeated, left out, exchanged, or brought in from another file of the format."""
    units = list(units)
    for _ in range(draw.choice((1, 1, 2, 3))):
        if not units:
            break
        at, other = draw.randrange(len(units)), draw.randrange(len(units))
        match draw.choice(("change", "change", "change", "repeat", "many", "drop", "swap", "bring")):
            case "change":
                units[at] = changed(units[at], draw)
            case "repeat":
                units[at:at] = [units[at]] * draw.choice((1, 2, 30))
            case "many":
                units[at:at] = [units[at]] * min(3000, 300_000 // (len(units[at]) + 1))
            case "drop":
                del units[at]
            case "swap":
                units[at], units[other] = units[other], units[at]
            case "bring" if others:
                units.insert(at, draw.choice(others))
    return units
