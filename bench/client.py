"""What the client costs: `classify_many` against the bare loop that feeds the same graph, in turns.

    python -m bench.client [--photos FOLDER] [--count 2000] [--repeats 3] [-- SERVER FLAGS]

`ratio` is the photos a second of `classify_many`, read from disk and sent to a server on the same cores,
over those of the bare loop (`bench.bare`) in the same turn, half of it before and half after. Each run
has a process of its own. Medians. `CPU ratio` is the same of CPU time, client and server together.
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from itertools import cycle, islice
from pathlib import Path

from alexnet_client import AlexNetError, Client
from alexnet_server.machine import usable_cores
from bench.options import parse, parser, photo_files
from bench.processes import ROOT, Child, Server, Steal

CHILD = "--one-run"


def main() -> None:
    options, flags = arguments()
    if options.one_run:
        one_run(options)
        return
    turns = []
    steal = Steal()
    with (
        Child([sys.executable, "-m", "bench.bare", str(options.photos), *flags]) as bare,
        Server(flags) as server,
    ):
        bare.expect("ready")
        for turn in range(options.repeats):
            sys.stderr.write(f"turn {turn + 1} of {options.repeats}\n")
            turns.append(one_turn(bare, server, options))
    medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    report = {
        "cores": usable_cores(),
        "flags": flags,
        "count": options.count,
        "hypervisor's share": round(steal.share(), 3),
        "turns": turns,
        "medians": medians,
    }
    for name, value in medians.items():
        sys.stdout.write(f"{name:30} {value:10.3f}\n")
    sys.stdout.write(f"{'hypervisor, of all CPU time':30} {steal.share():10.3f}\n")
    sys.stdout.write(json.dumps(report) + "\n")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def one_turn(bare: Child, server: Server, options: argparse.Namespace) -> dict[str, float]:
    before = bare.ask(f"loop {options.seconds / 2}")
    cpu_s, rows, batches = server.cpu_s(), *batch_counts(server)
    command = [
        sys.executable,
        "-m",
        "bench.client",
        CHILD,
        "--address",
        f"127.0.0.1:{server.grpc_port}",
    ]
    command += [
        "--photos",
        str(options.photos),
        "--count",
        str(options.count),
        "--window",
        str(options.window),
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    run = json.loads(done.stdout)
    server_cpu_s = server.cpu_s() - cpu_s
    after = bare.ask(f"loop {options.seconds / 2}")
    loop = {name: before[name] + after[name] for name in before}
    bare_rate, rate = loop["images"] / loop["seconds"], options.count / run["seconds"]
    return {
        "bare loop, images/s": bare_rate,
        "classify_many, images/s": rate,
        "ratio": rate / bare_rate,
        "CPU ratio": loop["cpu_s"] / loop["images"] * options.count / (server_cpu_s + run["cpu_s"]),
        "bare loop, CPU ms": 1e3 * loop["cpu_s"] / loop["images"],
        "server, CPU ms": 1e3 * server_cpu_s / options.count,
        "client, CPU ms": 1e3 * run["cpu_s"] / options.count,
        "client, MiB at its end": run["rss_mib"],
        "client, MiB it grew by": run["grew_mib"],
        "server, MiB": server.rss_mib(),
        "rows a batch": (batch_counts(server)[0] - rows) / (batch_counts(server)[1] - batches),
    }


def batch_counts(server: Server) -> tuple[float, float]:
    """Rows and batches that the engine has seen of `alexnet`."""
    pattern = r'^alexnet_batch_size_(sum|count)\{model="alexnet"\} (\S+)$'
    counts = dict(re.findall(pattern, server.metrics(), re.MULTILINE))
    return float(counts.get("sum", 0)), float(counts.get("count", 0))


def one_run(options: argparse.Namespace) -> None:
    """In a process of its own: the photos in turn, from their files."""
    paths = photo_files(options.photos)
    with Client(options.address) as client:
        for _ in client.classify_many(islice(cycle(paths), 2 * options.window), window=options.window):
            pass  # connected, and everything imported
        before_mib, cpu_s, began = peak_mib(), process_cpu_s(), time.perf_counter()
        outcomes = client.classify_many(islice(cycle(paths), options.count), window=options.window)
        failures = Counter(str(each) for each in outcomes if isinstance(each, AlexNetError))
        seconds = time.perf_counter() - began
    if failures:
        raise SystemExit(f"{failures.total()} of {options.count} photos failed: {failures.most_common(3)}")
    figures = {"seconds": seconds, "cpu_s": process_cpu_s() - cpu_s, "rss_mib": peak_mib()}
    sys.stdout.write(json.dumps(figures | {"grew_mib": peak_mib() - before_mib}) + "\n")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def process_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def arguments() -> tuple[argparse.Namespace, list[str]]:
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=2000, help="photos of each run")
    options.add_argument("--window", type=int, default=96, help="classify_many's window")
    options.add_argument("--seconds", type=float, default=16.0, help="of the bare loop in a turn")
    options.add_argument("--repeats", type=int, default=3, help="turns")
    options.add_argument("--json", type=Path, help="write all turns here")
    options.add_argument("--address", help=argparse.SUPPRESS)
    options.add_argument(CHILD, action="store_true", help=argparse.SUPPRESS)
    return parse(options)


if __name__ == "__main__":
    main()
