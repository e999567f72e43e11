"""What an operator asks: photos a second of a process with one core and with two, and the memory it takes.

    python -m bench.sizing [--photos FOLDER] [--seconds 8] [--json FILE]

With one core the server is kept on core 0, as a CPU limit of 1 would, and the client elsewhere. With two, the
client has no core of its own on a machine of two, so that `CPU ms` is what carries over to another: it is the
server's alone. Photos as people send them come from the folder; the large one is made here, as a phone
takes it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from bench.load import drive, post_photo
from bench.options import parse, parser, photo_files
from bench.processes import ROOT, Server

LARGE = (4032, 3024)
"""Twelve megapixels."""


class Load(NamedTuple):
    """Requests that are sent over and over."""

    name: str
    path: str
    photos: list[bytes]
    connections: int


def main() -> None:
    options = _arguments()
    photos = [path.read_bytes() for path in photo_files(options.photos)]
    mean = sum(map(len, photos)) / len(photos)
    loads = (
        Load("center", "/classify", photos, 32),
        Load("ten", "/classify?views=ten", photos, 8),
        Load("dense", "/classify?views=dense", photos, 8),
        Load("center, 12 megapixels", "/classify", [large_photo()], 8),
    )
    rows = []
    for cores in (1, 2):
        if len(os.sched_getaffinity(0)) < 2:
            raise SystemExit("needs two cores: one for the client")
        with _server_on(cores) as server:
            idle = server.rss_mib()
            for load in loads:
                rows.append({"cores": cores, "load": load.name, **_measure(server, load, options.seconds)})
            memory = {"idle MiB": idle, "peak MiB": server.peak_mib()}
        rows.append({"cores": cores, "load": "memory", **memory})
    report = {"photos": len(photos), "mean bytes": round(mean), "large bytes": len(loads[-1].photos[0])}
    sys.stdout.write(_table(rows) + "\n" + json.dumps(report) + "\n")
    if options.json:
        options.json.write_text(json.dumps(report | {"rows": rows}, indent=1))


@contextmanager
def _server_on(cores: int) -> Iterator[Server]:
    """A server that has `cores` cores; the client gets the others, or shares them where there are none."""
    everything = os.sched_getaffinity(0)
    own = set(sorted(everything)[:cores])
    os.sched_setaffinity(0, own)  # the child inherits it, and takes as many threads
    try:
        server = Server([])
        os.sched_setaffinity(0, everything - own or everything)
        with server:
            yield server
    finally:
        os.sched_setaffinity(0, everything)


def _measure(server: Server, load: Load, seconds: float) -> dict[str, float]:
    requests = [post_photo(load.path, photo) for photo in load.photos]
    drive(server.port, requests, connections=load.connections, count=2 * load.connections)
    cpu = server.cpu_s()
    result = drive(server.port, requests, connections=load.connections, seconds=seconds)
    cpu = server.cpu_s() - cpu
    if result.answers != len(result.latencies_s):
        raise SystemExit(f"not all answers were 200: {result.statuses}")
    lone = drive(server.port, requests, connections=1, seconds=seconds / 4)
    alone = sorted(lone.latencies_s)
    return {
        "photos/s": result.rate,
        "CPU ms": 1e3 * cpu / result.answers,
        "client ms": 1e3 * result.client_cpu_s / result.answers,
        "alone p50 ms": 1e3 * alone[len(alone) // 2],
    }


def large_photo() -> bytes:
    """A photo of twelve megapixels, as JPEG."""
    with Image.open(ROOT / "tests" / "data" / "cc0" / "coffee.jpg") as small:
        file = io.BytesIO()
        small.resize(LARGE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
        return file.getvalue()


def _table(rows: list[dict[str, object]]) -> str:
    columns = (
        "cores",
        "load",
        "photos/s",
        "CPU ms",
        "client ms",
        "alone p50 ms",
        "idle MiB",
        "peak MiB",
    )
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        words = [f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=8.0, help="of each loaded run")
    options.add_argument("--json", type=Path, help="write all figures here")
    return parse(options)[0]


if __name__ == "__main__":
    main()
