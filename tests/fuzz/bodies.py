"""Mutated request bodies and weight files against their parsers, in this process, for `make fuzz`."""

import argparse
import io
import json
import logging
import random
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable

import numpy as np

from alexnet_server.errors import ServingError
from alexnet_server.http import oip_wire
from alexnet_server.http.form import Form
from alexnet_server.models.public.errors import WeightsError
from alexnet_server.models.weights import WeightFileError, read_weights
from tests import hostile
from tests.fuzz import files
from tests.fuzz.mutations import changed
from tests.server.oip.test_rest_wire import PHOTOS, ROW, TENSORS, body

BOUNDARY = b"----border"
OVER_BYTES = 64 * 2**20


def form() -> bytes:
    """Two photos and a field, as `curl -F` sends them."""
    photo = hostile.photo("png")
    parts = [
        b'Content-Disposition: form-data; name="image"; filename="cat.png"\r\n\r\n' + photo,
        b'Content-Disposition: form-data; name="image"\r\n\r\nphoto.jpg',
        b'Content-Disposition: form-data; name="note"\r\n\r\nhello',
    ]
    border = b"--" + BOUNDARY
    return b"".join(border + b"\r\n" + part + b"\r\n" for part in parts) + border + b"--\r\n"


def read_form(data: bytes, draw: random.Random) -> None:
    parts = Form(BOUNDARY, 10 * 2**20)
    while data:
        length = draw.randrange(1, 5000)
        parts.write(data[:length])
        data = data[length:]
    parts.finish()


def documents(draw: random.Random) -> bytes:
    """An inference in JSON, with values of other types in places."""
    values = (None, True, -1, 1e308, 10**400, "", "\ud800", [], {}, [[]], "x" * 5000, ["a" * 2000] * 50)
    pixels = {"name": "images", "datatype": "UINT8", "shape": [1, 256, 256, 3]}
    pixels["data"] = [7] * (ROW if draw.random() < 0.02 else 3)
    document = json.loads(draw.choice((body(), json.dumps({"inputs": [pixels]}))))
    places = [
        document,
        document["inputs"][0],
        *[v for v in document["inputs"][0].values() if isinstance(v, dict)],
    ]
    for _ in range(draw.choice((0, 1, 2))):
        place = draw.choice(places)
        place[draw.choice([*place, "id", "outputs", "parameters"])] = draw.choice(values)
    return json.dumps(document).encode()


def read_json(data: bytes, draw: random.Random) -> None:
    oip_wire.read_call(data, None, draw.choice((PHOTOS, TENSORS)))


def binary(draw: random.Random) -> bytes:
    entry = {"name": "images", "datatype": "UINT8", "shape": [1, 256, 256, 3]}
    entry["parameters"] = {"binary_data_size": draw.choice((ROW, 0, -1, 2**40, "3", None))}
    return json.dumps({"inputs": [entry]}).encode() + bytes(draw.choice((ROW, 100)))


def read_binary(data: bytes, draw: random.Random) -> None:
    length = draw.choice((max(0, data.find(b"\0")), 0, len(data), 2**70))
    oip_wire.read_call(data, str(length), draw.choice((PHOTOS, TENSORS)))


def weights() -> bytes:
    """A small weight file."""
    file = io.BytesIO()
    rows = np.arange(12, dtype=np.int8).reshape(3, 4)
    scales, bias = np.ones(3, np.float32), np.zeros(3, np.float32)
    np.savez_compressed(file, **{"fc8.weight.codes": rows, "fc8.weight.scales": scales, "fc8.bias": bias})
    return file.getvalue()


Made = Callable[[random.Random], bytes]
READERS: dict[str, tuple[Made, Callable[[bytes, random.Random], None]]] = {
    "multipart": (lambda draw: form(), read_form),
    "json": (documents, read_json),
    "binary": (binary, read_binary),
    "weights": (lambda draw: weights(), files.reader(".weights", read_weights)),
    **files.READERS,
}


def judge(kind: str, seed: int, index: int) -> str:
    """What became of an input: read, refused, or what is wrong with its reader."""
    draw = random.Random(f"{kind} {seed} {index}")
    make, read = READERS[kind]
    data = make(draw)
    if draw.random() < (0.3 if kind == "json" else 0.8):  # most of whose mutants are no JSON
        data = changed(data, draw)
    tracemalloc.start()
    try:
        read(data, draw)
        verdict = "read"
    except (ServingError, WeightFileError, WeightsError):
        verdict = "refused"
    except Exception as error:
        verdict = f"raised {type(error).__name__}: {error}"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return verdict if peak < len(data) * 8 + OVER_BYTES else f"took {peak >> 20} MiB"


def main() -> int:
    """Print what all inputs came to; 1 where a reader failed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=2000, help="inputs of each kind")
    options.add_argument("--seed", type=int, default=1)
    asked, failed = options.parse_args(), False
    logging.disable()  # the multipart parser warns of each mutant
    for kind in READERS:
        verdicts = Counter(judge(kind, asked.seed, index) for index in range(asked.count))
        sys.stdout.write(f"{asked.count} {kind}: {dict(verdicts)}\n")
        failed |= any(" " in verdict for verdict in verdicts)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
