"""What serving costs: the server against what it cannot beat and against what others would put together.

    python -m bench.serve [--photos FOLDER] [--seconds 8] [--repeats 5] [--json FILE] [--mosec] [--plain-lrn]
        [--baseline CHECKOUT] [-- SERVER FLAGS]

All run as processes of their own and take turns, so that a noisy machine is noisy for all; medians over the
turns. `share of the limit` is the photos a second over cores / (CPU time of decoding + CPU time of the
graph in batches of 8), and `CPU ms on top` the server's CPU time less those two. The bare loop feeds the same
engine without a server. The client shares the cores with the servers and not with the bare loop; `client ms`
says what it took of them. `--mosec` adds the peer (`bench.mosec_peer`; without waiting for a batch at one
connection), `--baseline` the server of another checkout with its own `.venv`. Photos are sent as raw bodies.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from alexnet_server.machine import usable_cores
from bench.load import Result, drive, post_raw
from bench.options import parse, parser, photo_files
from bench.plain_lrn import plain_repository
from bench.processes import Child, Peer, Server

CONNECTIONS = (1, 16, 64)
Figures = dict[str, dict[str, float]]


def main() -> None:
    options, flags = _arguments()
    photos = [path.read_bytes() for path in photo_files(options.photos)]
    turns: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with ExitStack() as stack:
        bare = stack.enter_context(Child([sys.executable, "-m", "bench.bare", str(options.photos), *flags]))
        server = stack.enter_context(Server(flags))
        others = _others(options, stack)
        bare.expect("ready")
        for turn in range(options.repeats):
            sys.stderr.write(f"turn {turn + 1} of {options.repeats}\n")
            for row, figures in _turn(bare, server, others, photos, options).items():
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


Other = Server | Peer


def _others(options: argparse.Namespace, stack: ExitStack) -> dict[str, dict[int, Other]]:
    """What the server is compared with, by name and number of connections."""
    others: dict[str, dict[int, Other]] = {}
    if options.mosec:
        alone, loaded = (stack.enter_context(Peer(wait_ms)) for wait_ms in (0, 10))
        others["Mosec"] = {1: alone, 16: loaded, 64: loaded}
    if options.baseline:
        baseline = stack.enter_context(Server([], options.baseline.resolve()))
        others["baseline"] = dict.fromkeys(CONNECTIONS, baseline)
    if options.plain_lrn:
        folder = stack.enter_context(plain_repository())
        plain = stack.enter_context(Server([f"--model-repository={folder}"]))
        others["plain LRN in fp32"] = {16: plain}
    return others


def _turn(
    bare: Child,
    server: Server,
    others: dict[str, dict[int, Other]],
    photos: list[bytes],
    options: argparse.Namespace,
) -> Figures:
    lone = bare.ask(f"lone {options.lone}")
    cost = bare.ask(f"cost {options.lone}")
    least_ms = cost["prepare_ms"] + cost["graph_ms"]
    figures = {
        "decode + batch of one": _latencies(lone["latencies_s"], lone["cpu_s"]),
        "decode": {"CPU ms": cost["prepare_ms"]},
        "graph in batches of 8": {"CPU ms": cost["graph_ms"]},
    }
    for connections in CONNECTIONS:  # what is compared follows at once: the machine's pace drifts
        limit = {"count": options.lone} if connections == 1 else {"seconds": options.seconds}
        name = f"server, {connections} connection{'s' * (connections > 1)}"
        if connections == 16:
            loop = bare.ask(f"loop {options.seconds}")
            rate, cpu_ms = loop["images"] / loop["seconds"], 1e3 * loop["cpu_s"] / loop["images"]
            figures["bare loop, batches of 32"] = {"images/s": rate, "CPU ms": cpu_ms}
        cpu, (rows, batches) = server.cpu_s(), server.batches()
        result = _drive(server, photos, connections, **limit)
        row = figures[name] = _latencies(result.latencies_s, server.cpu_s() - cpu)
        rows, batches = (now - before for now, before in zip(server.batches(), (rows, batches), strict=True))
        row |= {"images/s": result.rate, "batch": rows / batches}
        row["client ms"] = 1e3 * result.client_cpu_s / result.answers
        row["CPU ms on top"] = row["CPU ms"] - least_ms
        row["share of the limit"] = result.rate * least_ms / (1e3 * usable_cores())
        if connections == 1:
            row["over lone ms"] = row["p50 ms"] - figures["decode + batch of one"]["p50 ms"]
        for other, servers in others.items():
            if connections in servers:
                its = _drive(servers[connections], photos, connections, **limit)
                figures[f"{other}, {connections}"] = _latencies(its.latencies_s) | {"images/s": its.rate}
                row[f"times {other}"] = result.rate / its.rate
    return figures


def _drive(server: Other, photos: list[bytes], connections: int, **limit: float) -> Result:
    requests = [post_raw(server.path, photo) for photo in photos]
    result = drive(server.port, requests, connections=connections, **limit)
    if result.answers != len(result.latencies_s):
        raise SystemExit(f"not all answers were 200: {result.statuses}")
    return result


def _latencies(latencies_s: list[float], cpu_s: float | None = None) -> dict[str, float]:
    ordered = sorted(latencies_s)
    figures = {
        "p50 ms": 1e3 * ordered[len(ordered) // 2],
        "p99 ms": 1e3 * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
    }
    return figures if cpu_s is None else figures | {"CPU ms": 1e3 * cpu_s / len(ordered)}


def _table(rows: Figures) -> str:
    columns = [
        "images/s",
        "batch",
        "p50 ms",
        "p99 ms",
        "CPU ms",
        "CPU ms on top",
        "over lone ms",
        "client ms",
        "share of the limit",
        "times Mosec",
        "times baseline",
        "times plain LRN in fp32",
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
    options.add_argument("--mosec", action="store_true", help="also the Mosec peer")
    options.add_argument("--baseline", type=Path, metavar="CHECKOUT", help="also another checkout's server")
    options.add_argument(
        "--plain-lrn", action="store_true", help="also serve the same function with plain LRN operators, fp32"
    )
    return parse(options)


if __name__ == "__main__":
    main()
