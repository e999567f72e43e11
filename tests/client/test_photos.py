"""Whatever holds a photo becomes the right message."""

import io

import numpy as np
import pytest
from PIL import Image

from alexnet_client import photos


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


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F", "HSV"])
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


@pytest.mark.parametrize("thing", [None, 7, ["cat.jpg"], object()])
def test_other_things_are_refused(thing):
    with pytest.raises(TypeError, match="a photo is bytes, a path"):
        photos.image(thing)


def test_a_text_file_says_how_to_open_it():
    with pytest.raises(TypeError, match="'rb'"):
        photos.image(io.StringIO("a photo"))
