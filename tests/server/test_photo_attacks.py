"""Photos that cost far more than they say, or say two things: refused at once, or paid for as announced."""

import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from alexnet_server import preprocess
from alexnet_server.preprocess import PhotoError, open_photo, prepare
from tests import hostile, seeds
from tests.server.test_preprocess import PEAK, SAMPLES

MEBIBYTE = 2**20
BLACK = (0, 0, 0)


def corners(data: bytes) -> list[tuple[int, ...]]:
    image = prepare(data)
    return [tuple(image[y, x].tolist()) for x, y in SAMPLES]


def refusal(data: bytes) -> str:
    with pytest.raises(PhotoError) as caught:
        prepare(data)
    return caught.value.code


def test_scans_are_counted_behind_what_looks_like_the_end():
    few, many = seeds.jpeg_scans(1_000, side=2000), seeds.jpeg_scans(30_000, side=2000)
    start = time.process_time()
    assert refusal(few) == refusal(many) == refusal(seeds.jpeg_scans(60_000)) == "undecodable"
    assert time.process_time() - start < 1.0
    np.testing.assert_allclose(corners(seeds.jpeg_scans(5)), hostile.QUADRANTS, atol=12)


def test_the_decoder_sees_what_was_walked():
    """A scan behind the end marker, and one inside a comment."""
    data = hostile.jpeg(progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    for more in (data + scan * 100_000, data[:-2] + hostile.segment(0xFE, scan * 1000) + data[-2:]):
        assert open_photo(more).image.fp.getvalue().count(b"\xff\xda") == data.count(b"\xff\xda")
        assert (prepare(more) == prepare(data)).all()


@pytest.mark.parametrize("name", ["arithmetic.jpg", "arithmetic-progressive.jpg"])
def test_arithmetic_codes_are_read(name):
    np.testing.assert_allclose(corners(seeds.fault(name)), hostile.QUADRANTS, atol=12)


def test_an_avif_is_as_large_as_its_coded_picture():
    assert refusal(seeds.fault("avif-8000-says-64.avif")) == "undecodable"
    small, large = (hostile.saved(hostile.picture(*size), "AVIF") for size in ((96, 64), (192, 128)))
    at = large.index(b"ispe") + 8
    assert refusal(large[:at] + small[small.index(b"ispe") + 8 :][:8] + large[at + 8 :]) == "undecodable"


def test_avif_grids_are_added_up():
    assert corners(seeds.avif_grid())[0] == pytest.approx(hostile.GREEN, abs=12)
    grid = open_photo(seeds.avif_grid(40, same=True))
    assert grid.image.size == (3840, 64)
    assert grid.memory_bytes >= 16 * 3840 * 64
    assert refusal(seeds.avif_grid(2, size=(8000, 8000))) == "too_large"
    with pytest.raises(PhotoError):
        prepare(seeds.avif_grid(200, same=True), max_pixels=96 * 64 * 99)
    data = seeds.avif_grid()
    at = data.rindex(b"\xc0\x00\x40")  # the grid's own word for its size, not its property's
    assert refusal(data[:at] + b"\xa0" + data[at + 1 :]) == "undecodable"


def test_a_webp_has_one_size():
    assert refusal(seeds.webp_sizes((97, 64), animated=False)) == "undecodable"
    assert refusal(seeds.webp_frame((800, 700))) == "undecodable"
    assert refusal(seeds.webp_sizes((90, 64), animated=True)) == "undecodable"
    assert refusal(seeds.webp_sizes((16_000, 16_000), animated=True)) == "too_large"


def test_an_animations_frame_lies_on_white():
    assert corners(seeds.webp_sizes((96, 64), animated=True))[1] == hostile.WHITE


def test_run_lengths_are_bounded_by_the_pixels_they_stand_for():
    data = seeds.fault("rle-eol-5000000.bmp")
    start = time.process_time()
    assert refusal(data) == "undecodable"
    assert time.process_time() - start < 0.1
    palette_of_ones = hostile.saved(hostile.picture().convert("P"), "BMP")
    assert prepare(palette_of_ones).shape == (256, 256, 3)


def test_rows_longer_than_a_decoder_holds_are_the_photos_fault():
    with pytest.raises(PhotoError) as caught:
        open_photo(seeds.fault("wide-tiny.png"))
    assert caught.value.code == "too_large"


def test_no_decoder_runs_out_of_memory_at_our_expense(monkeypatch):
    monkeypatch.setattr(preprocess, "_to_rgb", lambda image: bytearray(2**62))
    assert refusal(hostile.photo("alpha.png")) == "too_large"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: seeds.gray_png(1, 9_000_000), id="tall gray png"),
        pytest.param(lambda: seeds.gray_png(1, 5_000_000, 6), id="tall rgba png"),
        pytest.param(lambda: seeds.gray_png(9_000_000, 1, 6), id="wide rgba png"),
        pytest.param(lambda: seeds.fault("fuzz-5154.png"), id="fuzz-5154.png"),
        pytest.param(lambda: hostile.jpeg(Image.new("RGB", (1, 65_000)), progressive=True), id="tall jpeg"),
        pytest.param(lambda: hostile.saved(Image.new("P", (3, 60_000)), "GIF"), id="tall gif"),
        pytest.param(lambda: seeds.webp_sizes((3000, 2500), animated=True), id="webp canvas"),
        pytest.param(lambda: seeds.avif_grid(100, same=True), id="avif grid"),
        pytest.param(lambda: seeds.keyed_png(16, 2), id="16-bit key"),
    ],
)
def test_no_photo_takes_64_mebibytes_more_than_announced(tmp_path, data):
    small, large = tmp_path / "small", tmp_path / "large"
    large.write_bytes(data())
    small.write_bytes(hostile.jpeg())
    command = [sys.executable, "-c", PEAK, str(large), str(small)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    told, took = (int(kib) / 1024 for kib in result.stdout.split())
    assert took < told + 64


def truncated(data: bytes, share: float) -> bytes:
    start = data.rindex(b"\xff\xda")
    return data[: start + int((len(data) - start) * share)]


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth, so that no two blocks are alike."""
    small = np.random.default_rng(1).integers(60, 200, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


KINDS = {
    "4:4:4": {},
    "4:2:0": {"subsampling": 2},
    "restarts": {"restart_marker_blocks": 3},
    "gray": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "progressive": {"progressive": True},
    "drafted": {"size": (2100, 1090)},
}


def of_kind(kind: str) -> bytes:
    options = {"size": (203, 161), "mode": "RGB"} | KINDS[kind]
    return hostile.jpeg(noise(*options.pop("size"), options.pop("mode")), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_without_its_end_marker_is_whole(kind):
    data = of_kind(kind)
    assert (prepare(data[:-2]) == prepare(data)).all()
    assert (prepare(data[:-1]) == prepare(data)).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_whose_rows_are_missing_is_not(kind, share):
    cut = truncated(of_kind(kind), share)
    assert refusal(cut) == "undecodable"
    if kind != "progressive":  # whose last scan adds nothing but detail
        assert refusal(cut + b"\xff\xd9") == "undecodable"


def test_the_first_scan_of_a_progressive_jpeg_has_all_rows():
    data = of_kind("progressive")
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xc4", first)
    cut = data[: first + (second - first) // 2]
    assert refusal(cut) == refusal(cut + b"\xff\xd9") == "undecodable"


def test_gray_that_was_photographed_is_no_missing_row():
    for mode, colour in (("L", 128), ("RGB", (128, 128, 128)), ("CMYK", (127, 127, 127, 127))):
        data = hostile.jpeg(Image.new(mode, (90, 70), colour))
        assert len(set(corners(data))) == len(set(corners(data[:-2]))) == 1


def test_the_given_jpeg_without_an_end():
    np.testing.assert_allclose(corners(seeds.fault("no-eoi-baseline.jpg")), hostile.QUADRANTS, atol=12)


@pytest.mark.parametrize("depth_and_colours", [(2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
def test_a_transparent_key_is_white_at_any_depth(depth_and_colours):
    found = corners(seeds.keyed_png(*depth_and_colours))
    near = BLACK if depth_and_colours[0] == 16 else hostile.WHITE
    assert found == [BLACK, near, BLACK, hostile.WHITE]


def test_the_given_gray_png_with_a_key():
    assert corners(seeds.fault("gray-4bit-trns-mid.png"))[1::2] == [hostile.WHITE] * 2


def test_a_gif_is_white_where_nothing_was_drawn():
    assert corners(seeds.fault("gif-frame-smaller.gif")) == [hostile.RED, *[hostile.WHITE] * 3]
    image = prepare(seeds.fault("gif-local-palette-offset.gif"))
    assert tuple(image[44, 44].tolist()) == hostile.WHITE
    inside = [tuple(image[y, x].tolist()) for x, y in ((90, 90), (166, 90), (90, 166), (166, 166))]
    np.testing.assert_allclose(inside, hostile.QUADRANTS, atol=2)
