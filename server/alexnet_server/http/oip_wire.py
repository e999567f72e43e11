"""The REST form of an inference: JSON, with tensors inside it or as bytes behind it. Pure functions."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alexnet_server.errors import InvalidRequest, TooLarge, UnsupportedFormat
from alexnet_server.oip import inference, tensors
from alexnet_server.oip.inference import Output, Wanted
from alexnet_server.oip.models import Served
from alexnet_server.oip.tensors import Rows

HEADER_LENGTH = "Inference-Header-Content-Length"

_MAX_JSON_BYTES = 16 * 2**20
"""One photo of the usual limit in base64; larger tensors travel as binary data."""
_MAX_JSON_VALUES = 2**20
"""Four images as numbers. Parsing holds the interpreter, for a tenth of a second for this many."""
_PIECE_BYTES = 2**20
_PHOTOS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM")
_WORTH_COMPRESSING_BYTES = 1024
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class InferCall:
    """A request, read."""

    id: str | None
    rows: Rows
    wanted: list[Wanted]
    timeout_s: float | None


def inflated(body: bytes, encoding: str, limit: int) -> Iterator[bytes]:
    """A body without its Content-Encoding, in pieces, so that what they take can be counted as it comes.

    Args:
        body: As received.
        encoding: gzip or deflate (zlib's or raw).
        limit: Most bytes to come out; no more than that is ever made.

    Raises:
        TooLarge: more would come out.
        InvalidRequest: the data is corrupt, or ends too early or too late.
        UnsupportedFormat: another encoding.
    """
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedFormat(f"Content-Encoding {encoding[:40]!r} is not supported; use gzip or deflate.")
    # 47: gzip or zlib, by the first bytes; "deflate" without zlib's header is common enough to be read too.
    raw = encoding == "deflate" and (not body or body[0] & 0x0F != 8)
    inflater, size = zlib.decompressobj(-15 if raw else 47), 0
    while body and not inflater.eof:
        try:
            piece = inflater.decompress(body, min(_PIECE_BYTES, limit + 1 - size))
        except zlib.error:
            raise InvalidRequest(f"The body is not valid {encoding} data.") from None
        body = inflater.unconsumed_tail
        size += len(piece)
        if size > limit:
            raise TooLarge.request(limit, " once decompressed")
        yield piece
    if not inflater.eof or inflater.unused_data:
        raise InvalidRequest(f"The body has bytes left over after its {encoding} data ends.")


def check_json_bytes(count: int) -> None:
    """Refuse JSON of more bytes than the largest sensible one; as soon as so many have come out of a body.

    Raises:
        TooLarge: it is.
    """
    if count > _MAX_JSON_BYTES:
        limit = f"{_MAX_JSON_BYTES // 2**20} MiB"
        raise TooLarge(f"The JSON is larger than {limit}; send tensors as binary data after it.")


def compressed(body: bytes, accept_encoding: str) -> tuple[bytes, dict[str, str]]:
    """A body in an encoding that the client accepts, and the headers that say so."""
    accepted = {each.strip().partition(";")[0].lower() for each in accept_encoding.split(",")}
    if len(body) < _WORTH_COMPRESSING_BYTES:
        return body, {}
    if "gzip" in accepted:
        return gzip.compress(body, 1, mtime=0), {"content-encoding": "gzip", "vary": "accept-encoding"}
    if "deflate" in accepted:
        return zlib.compress(body, 1), {"content-encoding": "deflate", "vary": "accept-encoding"}
    return body, {}


def read_call(body: bytes, header_length: str | None, served: Served) -> InferCall:
    """A request's body for a model.

    Args:
        body: Decompressed.
        header_length: Inference-Header-Content-Length: where the JSON ends and binary data begins; 0 when the
            whole body is the input; None when all is JSON.
        served: The model.

    Raises:
        InvalidRequest: it is not a valid request for this model; the message says where.
    """
    if header_length is None:
        return _from_json(_object(body), memoryview(b""), served)
    if not (header_length.isascii() and header_length.isdigit()) or int(header_length) > len(body):
        raise InvalidRequest(f"{HEADER_LENGTH} must be a number of bytes within the body.")
    length = int(header_length)
    if length == 0:
        count, raw = tensors.from_whole(served.input, body)
        rows = tensors.check(
            served.input, served.input.datatype, [count, *served.input.dims], served.model.max_batch_size
        )
        return InferCall(
            None,
            tensors.from_raw(served.input, rows, raw),
            inference.all_outputs(served, binary=True),
            None,
        )
    return _from_json(_object(body[:length]), memoryview(body)[length:], served)


def answer(
    served: Served, call_id: str | None, outputs: list[Output], accept_encoding: str
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of an answer."""
    described: list[dict[str, Any]] = []
    tail = []
    for output in outputs:
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.values.shape),
        }
        if output.binary:
            tail.append(tensors.to_raw(output.values))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = tensors.to_json(output.values)
        described.append(entry)
    document: dict[str, Any] = {"model_name": served.name, "model_version": served.model.version}
    if call_id is not None:
        document["id"] = call_id
    document["outputs"] = described
    header = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    body, headers = compressed(b"".join([header, *tail]), accept_encoding)
    if tail:
        return body, {**headers, HEADER_LENGTH: str(len(header)), "content-type": "application/octet-stream"}
    return body, {**headers, "content-type": "application/json"}


def _object(data: bytes) -> dict[str, Any]:
    check_json_bytes(len(data))
    if sum(map(data.count, b",[{")) > _MAX_JSON_VALUES:
        raise TooLarge(
            f"The JSON has more than {_MAX_JSON_VALUES:,} values; send tensors as binary data after it."
        )
    try:
        document = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        if data.startswith(_PHOTOS) or data[4:8] == b"ftyp" or data.startswith(b"--"):
            raise InvalidRequest(
                "The body is a photo or a form, not JSON. Send photos to /classify, or unchanged to the "
                f"model `classify` with the header `{HEADER_LENGTH}: 0`."
            ) from None
        where = f" ({error.msg} at character {error.pos})" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidRequest(f"The body is not valid JSON{where}.") from None
    if not isinstance(document, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _from_json(document: Mapping[str, Any], tail: memoryview, served: Served) -> InferCall:
    call_id = document.get("id")
    if call_id is not None and not isinstance(call_id, str):
        raise InvalidRequest("`id` must be a string.")
    if call_id is not None and _SURROGATE.search(call_id):
        raise InvalidRequest("`id` contains half of a surrogate pair, which is not a character.")
    parameters = _parameters(document, "the request")
    entries = _entries(document, "inputs")
    inference.check_inputs(served, [entry["name"] for entry in entries])
    rows = _input(entries[0], tail, served, is_base64=parameters.get("content_type") == "base64")
    default = bool(parameters.get("binary_data_output", False))
    wanted = [_wanted(entry, default) for entry in _entries(document, "outputs")]
    timeout_us = parameters.get("timeout", 0)
    if type(timeout_us) is not int or not 0 <= timeout_us < 2**63:
        raise InvalidRequest("The parameter `timeout` must be a whole number of microseconds.")
    return InferCall(
        call_id,
        rows,
        wanted or inference.all_outputs(served, binary=default),
        timeout_us / 1e6 if timeout_us else None,
    )


def _input(entry: Mapping[str, Any], tail: memoryview, served: Served, *, is_base64: bool) -> Rows:
    spec = served.input
    shape = entry.get("shape")
    if not isinstance(shape, list):
        raise InvalidRequest(f"input {spec.name!r}: `shape` must be a list, such as {[1, *spec.dims]}")
    rows = tensors.check(spec, entry.get("datatype", ""), shape, served.model.max_batch_size)
    parameters = _parameters(entry, f"input {spec.name!r}")
    if "shared_memory_region" in parameters:
        raise InvalidRequest(f"input {spec.name!r}: shared memory is not supported; send the tensor itself")
    size = parameters.get("binary_data_size")
    if size is None:
        if len(tail):
            raise InvalidRequest(f"{len(tail)} bytes follow the JSON, and no input has `binary_data_size`.")
        is_base64 = is_base64 or parameters.get("content_type") == "base64"
        return tensors.from_json(spec, rows, entry.get("data"), is_base64=is_base64)
    if entry.get("data") is not None:
        raise InvalidRequest(f"input {spec.name!r}: give `data` or `binary_data_size`, not both")
    if isinstance(size, bool) or not isinstance(size, int) or size != len(tail):
        raise InvalidRequest(
            f"input {spec.name!r}: `binary_data_size` is {str(size)[:40]}, {len(tail)} bytes follow the JSON"
        )
    return tensors.from_raw(spec, rows, tail)


def _wanted(entry: Mapping[str, Any], default_binary: bool) -> Wanted:
    name = entry["name"]
    parameters = _parameters(entry, f"output {name[:100]!r}")
    if "shared_memory_region" in parameters:
        raise InvalidRequest(f"output {name[:100]!r}: shared memory is not supported")
    classes = inference.class_count(name, parameters.get("classification", 0))
    return Wanted(name, classes, bool(parameters.get("binary_data", default_binary)))


def _entries(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    entries = [] if document.get(key) is None else document[key]
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in entries
    ):
        raise InvalidRequest(f"`{key}` must be a list of objects, each with a `name`.")
    return entries


def _parameters(entry: Mapping[str, Any], whose: str) -> dict[str, Any]:
    parameters = {} if entry.get("parameters") is None else entry["parameters"]
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"The parameters of {whose} must be an object.")
    return parameters
