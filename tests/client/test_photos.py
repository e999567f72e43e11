"""Whatever holds a photo becomes the right message."""

import io

import numpy as np
import pytest
from PIL import Image

from alexnet_client import photos
from alexnet_server import preprocess
from tests.processes import ROOT

DAMAGED_EXIF = ROOT / "tests" / "data" / "exif"


def gradient(height, width, channels=3):
    rows, columns = np.mgrid[:height, :width]
    planes = [rows % 256, columns % 256, (rows + columns) % 256, np.full((height, width), 200)]
    return np.stack(planes[:channels], axis=-1).astype(np.uint8)


def decoded(message):
    return Image.open(io.BytesIO(message.encoded))


def test_bytes_like_paths_and_files_travel_as_they_are(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"a photo")
    assert photos.image(b"a photo").encoded == b"a photo"
    assert photos.image(bytearray(b"a photo")).encoded == b"a photo"
    assert photos.image(memoryview(b"a photo")).encoded == b"a photo"
    assert photos.image(path).encoded == b"a photo"
    assert photos.image(str(path)).encoded == b"a photo"
    assert photos.image(io.BytesIO(b"a photo")).encoded == b"a photo"
    with path.open("rb") as file:
        assert photos.image(file).encoded == b"a photo"


def test_a_prepared_array_travels_raw():
    array = gradient(256, 256)
    message = photos.image(array)
    assert message.WhichOneof("kind") == "prepared"
    assert message.prepared == array.tobytes()


def test_a_strided_view_travels_in_row_order():
    view = gradient(256, 256)[:, ::-1]
    assert photos.image(view).prepared == np.ascontiguousarray(view).tobytes()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_an_array_becomes_the_same_pixels(channels, mode):
    array = gradient(37, 300, channels)
    picture = decoded(photos.image(array))
    assert picture.mode == mode
    assert np.array_equal(np.asarray(picture).reshape(array.shape), array)


def test_a_gray_array_needs_no_channel_axis():
    array = gradient(20, 30, 1)[..., 0]
    assert np.array_equal(np.asarray(decoded(photos.image(array))), array)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((8, 8, 3), np.float32), "uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"\(H, W, 3\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"\(H, W, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), r"\(H, W, 3\)"),
    ],
)
def test_other_arrays_are_refused(array, says):
    with pytest.raises(ValueError, match=says):
        photos.image(array)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "HSV"])
def test_a_pillow_image_of_any_mode_can_be_read_back(mode):
    picture = Image.new(mode, (40, 30))
    assert decoded(photos.image(picture)).size == (40, 30)


def test_a_pillow_image_keeps_its_pixels_and_its_turn():
    picture = Image.fromarray(gradient(30, 40))
    picture.getexif()[0x0112] = 6
    read = decoded(photos.image(picture))
    assert np.array_equal(np.asarray(read), gradient(30, 40))
    assert read.getexif()[0x0112] == 6


def test_a_large_pillow_image_travels_as_a_fine_jpeg():
    picture = Image.fromarray(gradient(300, 400)).resize((4000, 3000))
    read = decoded(photos.image(picture))
    assert read.format == "JPEG"
    difference = np.abs(np.asarray(read.reduce(8), np.int16) - np.asarray(picture.reduce(8), np.int16))
    assert difference.mean() < 1


def test_a_picture_of_many_modes_comes_out_right():
    """White, half transparent over white or not, in each mode; 16 bits by the upper byte."""
    wide = Image.fromarray(np.full((40, 30), 0x4000, np.uint16))
    for mode in ("I;16", "I;16B", "I;16L"):
        read = decoded(photos.image(wide.convert("I").convert(mode)))
        assert np.array_equal(np.asarray(read), np.full((40, 30), 0x4000)), mode
    clear = Image.new("RGBA", (40, 30), (200, 100, 50, 128))
    for picture in (clear.convert("RGBa"), clear.convert("RGB").convert("P").convert("PA")):
        read = decoded(photos.image(picture))
        assert read.mode == "RGBA", picture.mode
        expected = np.asarray(picture.convert("RGBA"))
        assert np.array_equal(np.asarray(read), expected)
    assert decoded(photos.image(Image.new("LA", (4, 4)).convert("La"))).mode == "LA"


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_mode_without_a_range_is_refused(mode):
    with pytest.raises(ValueError, match="0 to 255"):
        photos.image(Image.new(mode, (4, 4)))


def test_a_large_picture_with_a_transparent_colour_keeps_it():
    picture = Image.new("RGB", (1200, 1000))
    picture.info["transparency"] = (0, 0, 0)
    assert decoded(photos.image(picture)).info["transparency"] == (0, 0, 0)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "data" / "exif").glob("*.jpg")), ids=lambda p: p.stem
)
def test_an_opened_file_is_the_same_pixels_as_its_path(path):
    by_path = preprocess.prepare(path.read_bytes())
    with Image.open(path) as picture:
        assert np.array_equal(preprocess.prepare(photos.image(picture).encoded), by_path)


@pytest.mark.parametrize("pixels", [(40, 30), (1200, 1000)])
def test_more_exif_than_jpeg_holds_is_left_behind(pixels):
    picture = Image.new("RGB", pixels)
    picture.getexif()[0x0112] = 8
    picture.getexif()[0x9286] = "x" * 70_000
    read = decoded(photos.image(picture))
    assert dict(read.getexif()) == {0x0112: 8}


@pytest.mark.parametrize("thing", [None, 7, ["cat.jpg"], object()])
def test_other_things_are_refused(thing):
    with pytest.raises(TypeError, match="a photo is bytes, a path"):
        photos.image(thing)


def test_a_text_file_says_how_to_open_it():
    with pytest.raises(TypeError, match="'rb'"):
        photos.image(io.StringIO("a photo"))
