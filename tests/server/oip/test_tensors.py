"""Tensor encodings: what goes in comes out, and what is wrong is said precisely."""

import base64
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from alexnet_server.errors import InvalidRequest
from alexnet_server.oip import tensors
from alexnet_server.oip.tensors import Spec

IMAGES = Spec("images", "UINT8", (256, 256, 3))
SMALL = Spec("images", "UINT8", (2, 3))
PHOTOS = Spec("image", "BYTES", (1,))


def test_images_from_raw_bytes():
    array = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(tensors.from_raw(SMALL, 2, array.tobytes()), array)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_bytes_elements_as_tritonclient_writes_them(elements):
    array = np.array(elements, dtype=np.object_)
    raw = b"".join(struct.pack("<I", len(each)) + each for each in elements)
    assert raw == serialize_byte_tensor(array).item()
    assert tensors.from_raw(PHOTOS, len(elements), raw) == tuple(elements)
    assert tensors.to_raw(array) == raw
    assert deserialize_bytes_tensor(tensors.to_raw(array)).tolist() == elements


@given(st.binary(max_size=64), st.integers(1, 4))
def test_any_bytes_are_read_or_refused(raw, rows):
    for spec in (PHOTOS, SMALL):
        try:
            found = tensors.from_raw(spec, rows, raw)
        except InvalidRequest:
            continue
        assert len(found) == rows


@pytest.mark.parametrize(
    ("spec", "rows", "raw", "says"),
    [
        (IMAGES, 1, b"abc", r"expected 196608 bytes for 1 rows, got 3"),
        (PHOTOS, 1, b"", r"expected 1 elements, but the data ends after 0"),
        (PHOTOS, 2, struct.pack("<I", 1) + b"a", r"expected 2 elements, but the data ends after 1"),
        (PHOTOS, 1, struct.pack("<I", 2**32 - 1) + b"a", r"element 0 announces 4294967295 bytes, 1 are left"),
        (PHOTOS, 1, struct.pack("<I", 1) + b"ab", r"1 bytes follow the last of 1 elements"),
    ],
)
def test_wrong_lengths_are_counted(spec, rows, raw, says):
    with pytest.raises(InvalidRequest, match=says):
        tensors.from_raw(spec, rows, raw)


@pytest.mark.parametrize(
    ("datatype", "shape", "says"),
    [
        ("FP32", [1, 256, 256, 3], "expected datatype UINT8, got 'FP32'"),
        ("", [1, 256, 256, 3], "expected datatype UINT8, got ''"),
        ("UINT8", [1, 3, 256, 256], r"expected shape \[-1, 256, 256, 3\], got \[1, 3, 256, 256\]"),
        ("UINT8", [256, 256, 3], "expected shape"),
        ("UINT8", [], "expected shape"),
        ("UINT8", [True, 256, 256, 3], "expected shape"),
        ("UINT8", ["1", 256, 256, 3], "expected shape"),
        ("UINT8", [1.0, 256, 256, 3], "expected shape"),
        ("UINT8", [0, 256, 256, 3], "1 to 8 rows per request, got 0"),
        ("UINT8", [-1, 256, 256, 3], "1 to 8 rows per request, got -1"),
        ("UINT8", [9, 256, 256, 3], "1 to 8 rows per request, got 9"),
        ("UINT8", [2**63, 256, 256, 3], "1 to 8 rows per request, got 9223372036854775808"),
    ],
)
def test_a_wrong_datatype_or_shape_is_named(datatype, shape, says):
    with pytest.raises(InvalidRequest, match=says) as caught:
        tensors.check(IMAGES, datatype, shape, 8)
    assert "'images'" in caught.value.message


def test_numbers_flat_and_nested():
    array = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(tensors.from_json(SMALL, 2, array.tolist(), is_base64=False), array)
    assert np.array_equal(tensors.from_json(SMALL, 2, array.ravel().tolist(), is_base64=False), array)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([1, 2, 3], "expected 6 numbers for 1 rows, got 3"),
        ([[[1, 2, 3], [4, 5]]], "differ in length"),
        ([[1, 2], [3, 4], [5, 6]], r"nested as \[3, 2\], the shape says \[1, 2, 3\]"),
        ([1, 2, 3, 4, 5, 256], "0 to 255"),
        ([1, 2, 3, 4, 5, -1], "0 to 255"),
        ([1, 2, 3, 4, 5, 6.5], "whole numbers"),
        ([1, 2, 3, 4, 5, 2**70], "whole numbers"),
        ([1, 2, 3, 4, 5, "6"], "whole numbers"),
        ([1, 2, 3, 4, 5, None], "whole numbers"),
        ([True] * 6, "whole numbers"),
        ([1, 2, 3, 4, 5, [6]], "whole numbers"),
        ([[1, 2, 3], 4], "differ in length"),
        ([[]] * 6, "expected 6 numbers for 1 rows, got 0"),
        ([[[[1]] * 3] * 2], r"nested as \[1, 2, 3, 1\]"),
        ([[1] * 100_000] * 100_000, "expected 6 numbers for 1 rows, got 100000"),
        ("123456", "must be a list"),
        (None, "must be a list"),
        ({"0": 1}, "must be a list"),
    ],
)
def test_wrong_numbers_are_refused(data, says):
    with pytest.raises(InvalidRequest, match=says):
        tensors.from_json(SMALL, 1, data, is_base64=False)


def test_nothing_is_made_of_data_before_it_is_looked_at():
    """NumPy would make 2,001 strings of 300,000 characters of this."""
    data = ["x" * 300_000, *["a"] * 2000]
    tracemalloc.start()
    try:
        for count in (1, 2001):
            with pytest.raises(InvalidRequest):
                tensors.from_json(Spec("images", "UINT8", (count,)), 1, data, is_base64=False)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
@pytest.mark.parametrize("strip", [b"", b"="])
def test_base64_as_people_write_it(encode, strip):
    photo = bytes(range(256)) + b"a"
    text = encode(photo).rstrip(strip + b"\n").decode()
    assert tensors.from_json(PHOTOS, 1, [text], is_base64=True) == (photo,)


def test_photos_in_json_are_base64_and_say_so():
    photos = (b"\xff\xd8\xff", b"")
    data = [base64.b64encode(photo).decode() for photo in photos]
    assert tensors.from_json(PHOTOS, 2, data, is_base64=True) == photos
    assert tensors.from_json(PHOTOS, 2, [[each] for each in data], is_base64=True) == photos
    with pytest.raises(InvalidRequest, match="content_type: base64"):
        tensors.from_json(PHOTOS, 2, data, is_base64=False)
    with pytest.raises(InvalidRequest, match="not valid base64"):
        tensors.from_json(PHOTOS, 1, ["***"], is_base64=True)
    with pytest.raises(InvalidRequest, match="not valid base64"):
        tensors.from_json(PHOTOS, 1, ["é"], is_base64=True)
    with pytest.raises(InvalidRequest, match="expected 2 strings"):
        tensors.from_json(PHOTOS, 2, data[:1], is_base64=True)
    with pytest.raises(InvalidRequest, match="expected 1 strings"):
        tensors.from_json(PHOTOS, 1, [7], is_base64=True)


def test_a_whole_body_is_one_photo_or_rows_of_images():
    rows, raw = tensors.from_whole(PHOTOS, b"a photo")
    assert tensors.from_raw(PHOTOS, rows, raw) == (b"a photo",)
    rows, raw = tensors.from_whole(SMALL, bytes(12))
    assert tensors.from_raw(SMALL, rows, raw).shape == (2, 2, 3)
    rows, raw = tensors.from_whole(SMALL, b"")
    with pytest.raises(InvalidRequest, match="got 0"):
        tensors.from_raw(SMALL, rows, raw)


def test_outputs_as_numbers():
    values = np.array([[0.25, 0.75]], np.float32)
    assert tensors.to_json(values) == [0.25, 0.75]
    assert np.frombuffer(tensors.to_raw(values[:, ::-1]), "<f4").tolist() == [0.75, 0.25]


def test_classification_strings():
    values = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], np.float32)
    strings = tensors.classes(values, 2, ["n1\tcat", "n2\tdog, hound", "n3\té"])
    assert strings.tolist() == [
        [b"0.700000:1:n2\tdog, hound", "0.200000:2:n3\té".encode()],
        [b"0.500000:0:n1\tcat", b"0.250000:1:n2\tdog, hound"],
    ]
    assert tensors.classes(values, 99, ()).shape == (2, 3)
    assert tensors.to_json(strings)[1] == "0.200000:2:n3\té"
