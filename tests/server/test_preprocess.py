"""The photo path: every kind of file people send, every kind meant to harm."""

import ast
import contextlib
import io
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from alexnet_server import preprocess
from alexnet_server.preprocess import PhotoError, decode, open_photo, prepare, resize_and_crop
from tests import hostile
from tests.outside import outside

DATA = Path(__file__).parents[1] / "data"
SAMPLES = ((44, 44), (211, 44), (44, 211), (211, 211))


@pytest.mark.parametrize("name", hostile.GOOD)
def test_good_photo_looks_right(name):
    case = hostile.CASES[name]
    image = prepare(hostile.photo(name))
    assert image.shape == (256, 256, 3)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    if case.corners is not None:
        seen = np.array([image[y, x] for x, y in SAMPLES], int)
        np.testing.assert_allclose(seen, np.array(case.corners), atol=case.tolerance)


@pytest.mark.parametrize("name", hostile.BAD)
def test_bad_photo_is_refused_in_words(name):
    with pytest.raises(PhotoError) as caught:
        prepare(hostile.photo(name))
    assert caught.value.code == hostile.CASES[name].code
    message = str(caught.value)
    assert len(message) > 40
    assert not any(word in message for word in ("Pillow", "PIL", "libjpeg", "object at", "Error"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("heic", ("HEIC", "Most Compatible", "sips", "heif-convert")),
        ("tiff", ("TIFF", "JPEG or PNG")),
        ("text.jpg", ("not a photo", "are accepted")),
        ("bomb.png", ("30,000 x 30,000", "900,000,000", "50,000,000")),
        ("12-mebibytes.png", ("10,485,760", "scale it down")),
        ("half.jpeg", ("JPEG", "truncated", "save it again")),
    ],
)
def test_messages_say_how_to_fix_it(name, words):
    with pytest.raises(PhotoError) as caught:
        prepare(hostile.photo(name))
    assert all(word in str(caught.value) for word in words)


def scaled(data: bytes) -> tuple[Image.Image, tuple[int, int]]:
    """The photo and the size that its shorter side of 256 gives it."""
    with Image.open(io.BytesIO(data)) as image:
        image = image.convert("RGB")
    shorter = min(image.size)
    width, height = (max(256, round(side * 256 / shorter)) for side in image.size)
    return image, (width, height)


def plain(data: bytes) -> np.ndarray:
    """Design section 2, word for word, without any precaution; scaled is the part that the crop keeps."""
    image, (width, height) = scaled(data)
    left, top = (width - 256) // 2, (height - 256) // 2
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + 256) * across, (top + 256) * down)
    box = (*box[:2], min(box[2], image.width), min(box[3], image.height))
    return np.array(image.resize((256, 256), Image.BILINEAR, box))


@pytest.mark.parametrize("name", ["cat", "coffee", "rocket"])
def test_photos_equal_the_plain_rule(name):
    data = (DATA / "cc0" / f"{name}.jpg").read_bytes()
    assert np.array_equal(prepare(data), plain(data))


@pytest.mark.parametrize("name", ["cat", "coffee", "rocket"])
def test_scaling_all_and_cutting_then_is_the_same_to_a_level(name):
    data = (DATA / "cc0" / f"{name}.jpg").read_bytes()
    image, (width, height) = scaled(data)
    left, top = (width - 256) // 2, (height - 256) // 2
    whole = image.resize((width, height), Image.BILINEAR).crop((left, top, left + 256, top + 256))
    difference = np.abs(prepare(data).astype(int) - np.array(whole))
    assert difference.max() <= 1
    assert difference.mean() < 0.1


@pytest.mark.parametrize("name", ["cat", "coffee", "rocket"])
def test_golden_pixels(name):
    """Stored as PNG: JPEG decoders may differ by a step or two, a change of the rule by far more."""
    with Image.open(DATA / "golden" / f"{name}.png") as stored:
        golden = np.array(stored).astype(int)
    difference = np.abs(prepare((DATA / "cc0" / f"{name}.jpg").read_bytes()) - golden)
    assert difference.max() <= 6
    assert difference.mean() < 0.5


def test_real_photos_equal_the_plain_rule():
    photos = sorted(outside("photos").glob("*.JPEG"))
    assert photos
    for path in photos:
        data = path.read_bytes()
        difference = np.abs(prepare(data).astype(int) - plain(data))
        assert difference.mean() < 0.5, path.name  # only those of 1,024 pixels and more are drafted
        assert difference.max() <= 12, path.name


@pytest.mark.parametrize("orientation", hostile.UNDO)
def test_draft_gives_nearly_the_same_pixels(orientation):
    """2,861 rows are 715.25 quarters: the last row must count for a quarter, wherever the turn puts it."""
    with Image.open(DATA / "cc0" / "rocket.jpg") as small:
        large = small.resize((4286, 2861), Image.Resampling.LANCZOS)
    data = hostile.jpeg(large, quality=92, subsampling=2, exif=hostile.exif(orientation))
    difference = np.abs(prepare(data).astype(int) - resize_and_crop(decode(data)))
    assert difference.mean() < 0.4
    assert np.percentile(difference, 99.9) <= 8


def test_draft_keeps_twice_the_target():
    for size, drafted, box in (
        ((4286, 2861), (1072, 716), (0, 0, 1071.5, 715.25)),
        ((1100, 1023), (1100, 1023), (0, 0, 1100, 1023)),
    ):
        photo = open_photo(hostile.jpeg(Image.new("RGB", size)))
        assert (photo.image.size, photo.box) == (drafted, box)


@pytest.mark.parametrize("strip_pixels", [1, 1000])
@pytest.mark.parametrize("name", hostile.GOOD)
def test_strips_give_the_same_pixels(monkeypatch, name, strip_pixels):
    whole = prepare(hostile.photo(name))
    monkeypatch.setattr(preprocess, "_STRIP_PIXELS", strip_pixels)
    assert np.array_equal(prepare(hostile.photo(name)), whole)


@pytest.mark.parametrize("size", [(601, 450), (450, 601), (1500, 300), (300, 1500)])
@pytest.mark.parametrize("orientation", hostile.UNDO)
def test_strips_of_turned_noise(monkeypatch, size, orientation):
    """Noise, so that no row or column may be another's."""
    monkeypatch.setattr(preprocess, "_STRIP_PIXELS", 20_000)
    monkeypatch.setattr(preprocess, "_NO_COPY", ())
    noise = np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), np.uint8)
    upright, undo = Image.fromarray(noise), hostile.UNDO[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    data = hostile.saved(stored, "PNG", compress_level=0, exif=hostile.exif(orientation))
    difference = np.abs(prepare(data).astype(int) - plain(hostile.saved(upright, "PNG", compress_level=0)))
    assert difference.max() <= 1  # in strips, and before it is turned: rounded elsewhere
    assert difference.mean() < 0.3


PEAK = """
import resource, sys
from alexnet_server.preprocess import open_photo, finish, prepare
prepare(open(sys.argv[2], "rb").read())  # what is loaded with the first photo
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
photo = open_photo(open(sys.argv[1], "rb").read())
finish(photo)
print(photo.memory_bytes >> 10, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("kind", "mode", "options", "bytes_a_pixel"),
    [
        ("PNG", "RGB", {}, 4),
        ("PNG", "RGBA", {}, 4),
        ("PNG", "LA", {}, 4),
        ("PNG", "P", {"transparency": 3}, 1),
        ("GIF", "P", {"transparency": 3}, 1),
        ("JPEG", "RGB", {}, 1),
        ("JPEG", "RGB", {"progressive": True}, 4),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}, 7),
        ("JPEG", "CMYK", {"progressive": True}, 9),
        ("WEBP", "RGB", {"method": 0}, 16),
        ("WEBP", "RGBA", {"lossless": True, "method": 0}, 16),
        ("AVIF", "RGBA", {"speed": 10}, 16),
    ],
)
def test_memory_is_told_before_it_is_taken(tmp_path, kind, mode, options, bytes_a_pixel):
    """Six megapixels in a process of its own, whose peak is then this photo's."""
    small, large = tmp_path / "small", tmp_path / "large"
    row = np.linspace(0, 255, 3000, dtype=np.uint8)
    image = Image.fromarray(np.broadcast_to(row, (2000, 3000)).copy()).convert(mode)
    small.write_bytes(hostile.saved(image.resize((300, 300)), kind, **options))
    large.write_bytes(hostile.saved(image, kind, **options))
    command = [sys.executable, "-c", PEAK, str(large), str(small)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    told, took = (int(kib) >> 10 for kib in result.stdout.split())
    pixels = 6_000_000 / 2**20
    assert told == pytest.approx(bytes_a_pixel * pixels, abs=2)
    assert took < told + 30, "strips, and the window before rows are scaled"


def test_decode_keeps_the_size():
    assert decode(hostile.photo("exif-6.jpg")).size == (96, 64)
    assert decode(hostile.photo("exif-6.jpg")).mode == "RGB"


@pytest.mark.parametrize(
    "size", [(1500, 1), (1, 1500), (4097, 16), (16, 4097), (1281, 300), (1300, 257), (9000, 1200)]
)
def test_long_images_equal_the_plain_rule(size):
    """Beyond four to one only the window is computed; it must be the same window."""
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise)
    data = hostile.saved(image, "PNG", compress_level=1)
    difference = np.abs(resize_and_crop(image).astype(int) - plain(data))
    assert difference.max() <= 1


def test_the_middle_of_a_very_long_image_is_found():
    """Pillow's boxes are float32, which tells no odd pixel from an even one here."""
    image = Image.new("RGB", (30_000_001, 1), hostile.RED)
    image.paste(hostile.BLUE, (15_000_000, 0, 15_000_001, 1))
    row = resize_and_crop(image)[128].astype(int)
    assert row[128].tolist() == [*hostile.BLUE]
    assert row[0].tolist() == pytest.approx(np.add(hostile.BLUE, hostile.RED) / 2, abs=2)


def test_extreme_aspect_ratio_stays_small():
    image = Image.new("RGB", (1, 4000))
    tracemalloc.start()
    resize_and_crop(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000
    assert resize_and_crop(Image.new("RGB", (30_000_000, 1), hostile.RED))[128, 128].tolist() == [
        *hostile.RED
    ]


def test_limits_are_arguments():
    data = hostile.photo("png")
    with pytest.raises(PhotoError, match="bytes") as caught:
        prepare(data, max_bytes=len(data) - 1)
    assert caught.value.code == "too_large"
    with pytest.raises(PhotoError, match="96 x 64"):
        prepare(data, max_pixels=96 * 64 - 1)
    assert prepare(data, max_bytes=len(data), max_pixels=96 * 64).shape == (256, 256, 3)


def test_bombs_are_refused_at_once():
    """Their CPU time, generously: decoded, each would take many seconds."""
    for name in ("scan-bomb.jpg", "run-length-bomb.bmp", "many-segments.jpg", "many-chunks.png", "bomb.png"):
        data = hostile.photo(name)
        start = time.process_time()
        with pytest.raises(PhotoError):
            prepare(data)
        assert time.process_time() - start < 1.0, name


def test_threads_share_it():
    """Same pixels from eight threads at once, good and bad files mixed."""
    names = ["jpeg", "avif", "exif-damaged.jpg", "half.png", "palette-alphas.png", "bomb.png", "animated.png"]
    start = threading.Barrier(8)

    def work(_):
        start.wait()
        outcome = []
        for name in names:
            try:
                outcome.append(prepare(hostile.photo(name)).tobytes())
            except PhotoError as error:
                outcome.append(error.code)
        return outcome

    for name in names:
        hostile.photo(name)
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(work, range(8)))
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_loads_alone(tmp_path):
    """As Triton's Python backend loads it: one file, no package, warnings as errors, Pillow untouched."""
    shutil.copy(preprocess.__file__, tmp_path / "preprocess.py")
    shutil.copy(DATA / "cc0" / "cat.jpg", tmp_path / "cat.jpg")
    code = (
        "import sys; sys.path.insert(0, '.'); import preprocess\n"
        "assert preprocess.prepare(open('cat.jpg', 'rb').read()).shape == (256, 256, 3)\n"
        "assert not [name for name in sys.modules if name.startswith('alexnet')]\n"
        "from PIL import Image, ImageFile\n"
        "assert Image.MAX_IMAGE_PIXELS and not ImageFile.LOAD_TRUNCATED_IMAGES\n"
    )
    subprocess.run(
        [sys.executable, "-I", "-W", "error", "-W", "ignore::ResourceWarning", "-c", code],
        cwd=tmp_path,
        check=True,
        timeout=60,
    )


def test_is_written_for_python_3_10():
    ast.parse(Path(preprocess.__file__).read_text(encoding="utf-8"), feature_version=(3, 10))


MODES = {
    "JPEG": ["L", "RGB", "CMYK"],
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["1", "L", "P"],
    "BMP": ["1", "L", "P", "RGB"],
    "AVIF": ["RGB", "RGBA"],
}


@st.composite
def photos(draw):
    kind = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[kind]))
    width, height = draw(st.integers(1, 400)), draw(st.integers(1, 400))
    seed = draw(st.integers(0, 2**16))
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[..., :2].copy().view(np.uint16)[..., 0])
    else:
        image = Image.fromarray(noise).convert(mode)
    options = {}
    if kind in ("JPEG", "PNG", "WEBP", "AVIF"):
        options["exif"] = hostile.exif(draw(st.integers(0, 9)))
    if kind == "JPEG":
        options["progressive"] = draw(st.booleans())
    if kind == "AVIF":
        options["speed"] = 10
    return hostile.saved(image, kind, **options)


relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@relaxed
@given(photos())
def test_any_size_mode_and_format(data):
    assert prepare(data).shape == (256, 256, 3)


def outcome(data: bytes) -> None:
    """An image or a `PhotoError`; anything else fails the test."""
    with contextlib.suppress(PhotoError):
        image = prepare(data)
        assert image.shape == (256, 256, 3)
        assert image.dtype == np.uint8


@relaxed
@given(st.binary(max_size=2000))
def test_any_bytes(data):
    outcome(data)


MAGIC = [b"\xff\xd8\xff", hostile.PNG, b"GIF89a", b"RIFF\0\0\0\0WEBPVP8X", b"BM", b"\0\0\0\x1cftypavif"]


@relaxed
@given(st.sampled_from(MAGIC), st.binary(max_size=2000))
def test_any_bytes_behind_a_magic_number(magic, data):
    outcome(magic + data)


@settings(relaxed, max_examples=400)
@given(st.data())
def test_damaged_photos(data):
    """Good files with bytes overwritten, removed or repeated."""
    name = data.draw(st.sampled_from([n for n in hostile.GOOD if len(hostile.photo(n)) < 30_000]))
    photo = bytearray(hostile.photo(name))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(photo) - 1))
        match data.draw(st.sampled_from(["write", "cut", "repeat", "end"])):
            case "write":
                patch = data.draw(st.binary(min_size=1, max_size=4))
                photo[at : at + len(patch)] = patch
            case "cut":
                del photo[at : at + data.draw(st.integers(1, 64))]
            case "repeat":
                photo[at:at] = photo[at : at + data.draw(st.integers(1, 64))]
            case "end":
                del photo[at:]
        if not photo:
            break
    outcome(bytes(photo))
