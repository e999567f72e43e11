"""What serving costs: the server against a bare loop that feeds the same graph, in one interleaved run.

    python -m bench.serve [--photos FOLDER] [--seconds 8] [--repeats 5] [--json FILE] [--plain-lrn]
        [-- SERVER FLAGS]

Both run as processes of their own and take turns, so that a noisy machine is noisy for both. `ratio` is the
server's images a second over the bare loop's of the same turn. The client shares the cores with the server
and not with the bare loop; `client ms` says what it took of them, and `ratio, client apart` compares with the
bare loop on the cores that are left. Medians over the turns.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alexnet_server.machine import usable_cores
from bench.load import drive, post_photo
from bench.options import parse, parser, photo_files
from bench.plain_lrn import plain_repository
from bench.processes import Child, Server

CONNECTIONS = (1, 16, 64)
Figures = dict[str, dict[str, float]]


def main() -> None:
    options, flags = _arguments()
    photos = [path.read_bytes() for path in photo_files(options.photos)]
    requests = [post_photo("/classify", photo) for photo in photos]
    turns: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (
        Child([sys.executable, "-m", "bench.bare", str(options.photos), *flags]) as bare,
        Server(flags) as server,
        _plain_server(options) as plain,
    ):
        bare.expect("ready")
        for turn in range(options.repeats):
            sys.stderr.write(f"turn {turn + 1} of {options.repeats}\n")
            for row, figures in _turn(bare, server, plain, requests, options).items():
                for name, value in figures.items():
                    turns[row][name].append(value)
    medians = {
        row: {name: statistics.median(values) for name, values in figures.items()}
        for row, figures in turns.items()
    }
    report = {
        "photos": len(photos),
        "cores": usable_cores(),
        "flags": flags,
        "turns": options.repeats,
        "rows": medians,
    }
    sys.stdout.write(_table(medians) + "\n" + json.dumps(report) + "\n")
    if options.json:
        options.json.write_text(json.dumps(report | {"all": turns}, indent=1))


@contextmanager
def _plain_server(options: argparse.Namespace) -> Iterator[Server | None]:
    """The same server on the same function with plain `LRN` operators in fp32, if it is asked for."""
    if not options.plain_lrn:
        yield None
        return
    with plain_repository() as folder, Server([f"--model-repository={folder}"]) as server:
        yield server


def _turn(
    bare: Child, server: Server, plain: Server | None, requests: list[bytes], options: argparse.Namespace
) -> Figures:
    lone = bare.ask(f"lone {options.lone}")
    figures = {"decode + batch of one": _latencies(lone["latencies_s"], lone["cpu_s"])}
    rate = cpu_ms = 0.0
    for connections in CONNECTIONS:  # what is compared follows at once: the machine's pace drifts
        limit = {"count": options.lone} if connections == 1 else {"seconds": options.seconds}
        if connections == 16:
            loop = bare.ask(f"loop {options.seconds}")
            rate, cpu_ms = loop["images"] / loop["seconds"], 1e3 * loop["cpu_s"] / loop["images"]
            figures["bare loop, batches of 32"] = {"images/s": rate, "CPU ms": cpu_ms}
        cpu, (rows, batches) = server.cpu_s(), server.batches()
        result = drive(server.port, requests, connections=connections, **limit)
        if result.answers != len(result.latencies_s):
            raise SystemExit(f"not all answers were 200: {result.statuses}")
        row = _latencies(result.latencies_s, server.cpu_s() - cpu)
        row["images/s"] = result.rate
        rows, batches = (now - before for now, before in zip(server.batches(), (rows, batches), strict=True))
        row["batch"] = rows / batches
        row["client ms"] = 1e3 * result.client_cpu_s / result.answers
        if connections == 1:
            row["over lone ms"] = row["p50 ms"] - figures["decode + batch of one"]["p50 ms"]
        else:
            left = 1 - result.client_cpu_s / (usable_cores() * result.seconds)
            row |= {"ratio": row["images/s"] / rate, "ratio, client apart": row["images/s"] / (rate * left)}
            row["CPU ms over bare"] = row["CPU ms"] - cpu_ms
        figures[f"server, {connections} connection{'s' * (connections > 1)}"] = row
    if plain is not None:
        result = drive(plain.port, requests, connections=16, seconds=options.seconds)
        rate, own = result.answers / result.seconds, figures["server, 16 connections"]
        figures["plain LRN in fp32, 16 connections"] = {"images/s": rate}
        own["times plain LRN"] = own["images/s"] / rate
    return figures


def _latencies(latencies_s: list[float], cpu_s: float) -> dict[str, float]:
    ordered = sorted(latencies_s)
    return {
        "p50 ms": 1e3 * ordered[len(ordered) // 2],
        "p99 ms": 1e3 * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        "CPU ms": 1e3 * cpu_s / len(ordered),
    }


def _table(rows: Figures) -> str:
    columns = [
        "images/s",
        "batch",
        "p50 ms",
        "p99 ms",
        "CPU ms",
        "CPU ms over bare",
        "over lone ms",
        "client ms",
        "ratio",
        "ratio, client apart",
        "times plain LRN",
    ]
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, figures in rows.items():
        cells = [f"{figures[column]:.2f}" if column in figures else "" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=8.0, help="of each loaded run in a turn")
    options.add_argument("--repeats", type=int, default=5, help="turns")
    options.add_argument("--lone", type=int, default=100, help="lone requests in a turn")
    options.add_argument("--json", type=Path, help="write all turns here")
    options.add_argument(
        "--plain-lrn", action="store_true", help="also serve the same function with plain LRN operators, fp32"
    )
    return parse(options)


if __name__ == "__main__":
    main()
