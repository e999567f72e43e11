"""What `--workers` gains where Python is the limit: ready rows, an engine that costs nothing.

    python -m bench.workers [--seconds 8] [--repeats 5]

One worker kept to one core against two on two cores, in turns; medians. The client is a process of its own,
and shares the cores: two workers have less than twice as much. `client ms` says what it takes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict

from bench.load import drive
from bench.processes import ROOT, Server

CONNECTIONS = 32


class FakeServer(Server):
    """`alexnet-server` with the tests' engine, which computes nothing."""

    def __init__(self, flags: list[str], cores: set[int]) -> None:
        command = [sys.executable, "-m", "tests.server.fake_server", "--http-port=0", "--grpc-port=0", *flags]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        for line in self.process.stderr:
            if found := re.search(r"listening on http://127.0.0.1:(\d+)", line):
                self.port = int(found[1])
            if "ready after" in line:
                return
        raise SystemExit("the server does not start")


def ready_row() -> bytes:
    """A request of the Open Inference Protocol with one decoded image, in binary."""
    image = bytes(256 * 256 * 3)
    tensor = {
        "name": "images",
        "datatype": "UINT8",
        "shape": [1, 256, 256, 3],
        "parameters": {"binary_data_size": len(image)},
    }
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    lines = [
        "POST /v2/models/alexnet/infer HTTP/1.1",
        "Host: localhost",
        f"Inference-Header-Content-Length: {len(head)}",
        f"Content-Length: {len(head) + len(image)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + head + image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run in a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    rates: dict[str, list[float]] = defaultdict(list)
    with (
        FakeServer(["--workers=1"], {cores[0]}) as one,
        FakeServer(["--workers=2"], set(cores)) as two,
    ):
        for _ in range(options.repeats):
            for name, server in (("one", one), ("two", two)):
                result = drive(server.port, [ready_row()], connections=CONNECTIONS, seconds=options.seconds)
                rates[name].append(result.rate)
                rates[f"{name}, client ms"].append(1e3 * result.client_cpu_s / result.answers)
            rates["two against one"].append(rates["two"][-1] / rates["one"][-1])
    sys.stdout.write(json.dumps({name: statistics.median(values) for name, values in rates.items()}) + "\n")


if __name__ == "__main__":
    main()
