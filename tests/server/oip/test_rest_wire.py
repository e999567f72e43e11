"""The REST form, byte by byte."""

import base64
import gzip
import json
import zlib

import numpy as np
import pytest

from alexnet_server.engines import Model
from alexnet_server.errors import InvalidRequest, TooLarge, UnsupportedFormat
from alexnet_server.http import oip_wire
from alexnet_server.oip.inference import Output, Wanted
from alexnet_server.oip.models import Served
from alexnet_server.oip.tensors import Spec
from tests.server.fakes import fake_model

MODEL: Model = fake_model(max_batch_size=4)
PROBABILITIES, FEATURES = Spec("probabilities", "FP32", (10,)), Spec("features", "FP32", (4096,))
TENSORS = Served(
    "alexnet", MODEL, "onnxruntime_onnx", Spec("images", "UINT8", (256, 256, 3)), (PROBABILITIES, FEATURES)
)
PHOTOS = Served("classify", MODEL, "ensemble", Spec("image", "BYTES", (1,)), (PROBABILITIES,))
ROW = 256 * 256 * 3


def photo_entry(**changes):
    photo = base64.b64encode(b"a photo").decode()
    entry = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1, 1],
        "parameters": {"content_type": "base64"},
        "data": [photo],
    }
    return {key: value for key, value in (entry | changes).items() if value is not None}


def body(**changes):
    document = {"inputs": [photo_entry()]} | changes
    return json.dumps(document).encode()


def test_json_alone():
    call = oip_wire.read_call(body(id="mine", parameters={"timeout": 250_000}), None, PHOTOS)
    assert call.rows == (b"a photo",)
    assert (call.id, call.timeout_s) == ("mine", 0.25)
    assert call.wanted == [Wanted("probabilities")]


def test_binary_data_behind_the_json():
    pixels = np.arange(2 * ROW, dtype=np.uint32).astype(np.uint8)
    entry = {"name": "images", "datatype": "UINT8", "shape": [2, 256, 256, 3]}
    entry["parameters"] = {"binary_data_size": 2 * ROW}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    call = oip_wire.read_call(head + pixels.tobytes(), str(len(head)), TENSORS)
    assert np.array_equal(call.rows.ravel(), pixels)
    assert call.wanted == [Wanted("probabilities", binary=True), Wanted("features", binary=True)]


def test_a_body_that_is_nothing_but_the_input():
    call = oip_wire.read_call(b"a photo", "0", PHOTOS)
    assert call.rows == (b"a photo",)
    assert call.wanted == [Wanted("probabilities", binary=True)]
    assert oip_wire.read_call(bytes(3 * ROW), "0", TENSORS).rows.shape == (3, 256, 256, 3)


def test_outputs_are_chosen_one_by_one():
    outputs = [
        {"name": "features", "parameters": {"binary_data": True}},
        {"name": "probabilities", "parameters": {"classification": 3}},
    ]
    call = oip_wire.read_call(body(outputs=outputs), None, PHOTOS)
    assert call.wanted == [Wanted("features", binary=True), Wanted("probabilities", 3)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON .*character"),
        (b"\xff\xd8\xff", "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"inputs": NaN}', "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (body(id=7), "`id` must be a string"),
        (body(inputs=[]), "takes one input, 'image'; got none"),
        (body(inputs="image"), "`inputs` must be a list"),
        (body(inputs=[7]), "`inputs` must be a list"),
        (body(inputs=[{"datatype": "BYTES"}]), "`inputs` must be a list of objects, each with a `name`"),
        (body(inputs=[photo_entry(name="photo")]), "takes one input, 'image'; got 'photo'"),
        (body(inputs=[photo_entry(), photo_entry()]), "takes one input, 'image'; got 'image', 'image'"),
        (body(inputs=[photo_entry(datatype="UINT8")]), "expected datatype BYTES"),
        (body(inputs=[photo_entry(datatype=None)]), "expected datatype BYTES"),
        (body(inputs=[photo_entry(shape=None)]), "`shape` must be a list"),
        (body(inputs=[photo_entry(shape=[1, 2])]), "expected shape"),
        (body(id="\ud800"), "not a character"),
        (body(parameters={"timeout": 10**400}), "microseconds"),
        (b"\xff\xd8\xff photo", "Send photos to /classify"),
        (b"--boundary\r\n", "Send photos to /classify"),
        (body(inputs=[photo_entry(shape=[5, 1])]), "1 to 4 rows per request, got 5"),
        (body(inputs=[photo_entry(shape=[2, 1])]), "expected 2 strings"),
        (body(inputs=[photo_entry(data=None)]), "`data` must be a list"),
        (body(inputs=[photo_entry(parameters=[])]), "parameters of input 'image' must be an object"),
        (body(inputs=[photo_entry(parameters={"shared_memory_region": "r"})]), "shared memory is not"),
        (body(inputs=[photo_entry(parameters={"binary_data_size": 7})]), "not both"),
        (body(inputs=[photo_entry(parameters={"binary_data_size": 7}, data=None)]), "is 7, 0 bytes follow"),
        (body(inputs=[photo_entry(parameters={"binary_data_size": "0"}, data=None)]), "is 0, 0 bytes follow"),
        (body(parameters=7), "parameters of the request must be an object"),
        (body(parameters={"timeout": -1}), "microseconds"),
        (body(parameters={"timeout": 1.5}), "microseconds"),
        (body(outputs={}), "`outputs` must be a list"),
        (body(outputs=[{"name": "probabilities", "parameters": {"classification": -1}}]), "from 0"),
        (body(outputs=[{"name": "probabilities", "parameters": {"classification": "3"}}]), "from 0"),
        (
            body(outputs=[{"name": "probabilities", "parameters": {"shared_memory_region": "r"}}]),
            "shared memory is not",
        ),
    ],
)
def test_what_is_wrong_is_said(content, says):
    with pytest.raises(InvalidRequest, match=says):
        oip_wire.read_call(content, None, PHOTOS)


@pytest.mark.parametrize("length", ["-1", "1e3", "x", "99999999", "٣"])
def test_a_wrong_header_length_is_refused(length):
    with pytest.raises(InvalidRequest, match="Inference-Header-Content-Length"):
        oip_wire.read_call(body(), length, PHOTOS)


def test_bytes_that_nobody_asked_for_are_refused():
    with pytest.raises(InvalidRequest, match="3 bytes follow the JSON"):
        oip_wire.read_call(body() + b"abc", str(len(body())), PHOTOS)


def test_large_json_is_refused_unparsed():
    with pytest.raises(TooLarge, match="16 MiB"):
        oip_wire.read_call(b" " * (16 * 2**20 + 1), None, PHOTOS)


@pytest.mark.parametrize("sign", [b"[],", b"0,", b"{},"])
def test_json_of_many_values_is_refused_unparsed(sign):
    with pytest.raises(TooLarge, match="1,048,576 values"):
        oip_wire.read_call(b"[" + sign * (2**20 + 1) + b"0]", None, PHOTOS)


def test_images_as_nested_numbers_are_read():
    entry = {"name": "images", "datatype": "UINT8", "shape": [3, 256, 256, 3]}
    entry["data"] = np.full((3, 256, 256, 3), 255).tolist()
    assert oip_wire.read_call(body(inputs=[entry]), None, TENSORS).rows.shape == (3, 256, 256, 3)


def test_what_is_null_is_absent():
    call = oip_wire.read_call(body(id=None, parameters=None, outputs=None), None, PHOTOS)
    assert call == oip_wire.read_call(body(), None, PHOTOS)
    photo = photo_entry() | {"parameters": None}
    assert oip_wire.read_call(
        body(inputs=[photo], parameters={"content_type": "base64"}), None, PHOTOS
    ).rows == (b"a photo",)


def test_a_column_of_photos_may_be_a_list():
    assert oip_wire.read_call(body(inputs=[photo_entry(shape=[1])]), None, PHOTOS).rows == (b"a photo",)


def inflated(data, encoding, limit):
    return b"".join(oip_wire.inflated(data, encoding, limit))


def test_inflated_in_pieces():
    """So that the budget is asked before the next is made."""
    pieces = oip_wire.inflated(gzip.compress(bytes(10 * 2**20)), "gzip", 2**26)
    assert max(map(len, pieces)) <= 2**20


def raw_deflate(data):
    squeeze = zlib.compressobj(wbits=-15)
    return squeeze.compress(data) + squeeze.flush()


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
    ],
)
def test_encodings_are_undone(encoding, encode):
    data = bytes(range(256)) * 40
    assert inflated(encode(data), encoding, len(data)) == data


@pytest.mark.parametrize("encode", [gzip.compress, zlib.compress, raw_deflate])
def test_a_bomb_is_refused_before_it_goes_off(encode):
    encoding = "gzip" if encode is gzip.compress else "deflate"
    with pytest.raises(TooLarge, match="larger than 1 MiB once decompressed"):
        inflated(encode(bytes(2**20 + 1)), encoding, 2**20)


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"", "gzip"),
        (b"", "deflate"),
        (b"not compressed", "gzip"),
        (gzip.compress(b"data", mtime=0)[:-3], "gzip"),
        (gzip.compress(b"data", mtime=0) + b"more", "gzip"),
        (zlib.compress(b"data")[:-3], "deflate"),
    ],
)
def test_corrupt_data_is_refused(data, encoding):
    with pytest.raises(InvalidRequest, match=encoding):
        inflated(data, encoding, 2**20)


def test_another_encoding_is_refused():
    with pytest.raises(UnsupportedFormat, match="'br'"):
        inflated(b"", "br", 2**20)


VALUES = np.linspace(0, 1, 4096, dtype=np.float32)[None]


@pytest.mark.parametrize(
    ("accept", "encoding", "decode"),
    [
        ("", None, bytes),
        ("br", None, bytes),
        ("gzip", "gzip", gzip.decompress),
        ("deflate", "deflate", zlib.decompress),
        ("deflate, gzip;q=0.5", "gzip", gzip.decompress),
    ],
)
def test_answers_in_an_encoding_that_is_accepted(accept, encoding, decode):
    outputs = [Output("features", "FP32", VALUES, binary=True)]
    content, headers = oip_wire.answer(TENSORS, "mine", outputs, accept)
    assert headers.get("content-encoding") == encoding
    content = decode(content)
    length = int(headers[oip_wire.HEADER_LENGTH])
    document = json.loads(content[:length])
    assert document["id"] == "mine"
    assert document["model_name"] == "alexnet"
    assert document["outputs"] == [
        {
            "name": "features",
            "datatype": "FP32",
            "shape": [1, 4096],
            "parameters": {"binary_data_size": 4 * 4096},
        }
    ]
    assert np.array_equal(np.frombuffer(content[length:], "<f4"), VALUES[0])


def test_small_answers_and_json_answers_are_left_alone():
    outputs = [Output("probabilities", "FP32", VALUES[:, :10], binary=False)]
    content, headers = oip_wire.answer(TENSORS, None, outputs, "gzip")
    assert "content-encoding" not in headers
    assert oip_wire.HEADER_LENGTH not in headers
    document = json.loads(content)
    assert "id" not in document
    assert np.allclose(document["outputs"][0]["data"], VALUES[0, :10])
