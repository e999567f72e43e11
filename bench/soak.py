"""Memory over many requests: `python -m bench.soak [--requests 20000] [-- SERVER FLAGS]`.

Good photos of every size, broken ones, ten views and clients that leave, at 16 connections. Prints resident
memory as it goes; fails when it has grown by more than `--growth` MiB since the first tenth.
"""

import argparse
import json
import socket
import sys

from bench.load import drive, post_photo
from bench.options import parse, parser, photo_files
from bench.processes import Server

CONNECTIONS = 16
STEPS = 20


def main() -> None:
    options, flags = _arguments()
    photos = [path.read_bytes() for path in photo_files(options.photos)]
    requests = [post_photo("/classify", photo) for photo in photos]
    requests[7::10] = [
        request[: len(request) // 2] + request[len(request) // 2 :].replace(b"\xff", b"\0")
        for request in requests[7::10]
    ]
    requests[9::50] = [post_photo("/classify?views=ten", photo) for photo in photos[9::50]]
    with Server(flags) as server:
        sizes = []
        for step in range(STEPS):
            result = drive(server.port, requests, connections=CONNECTIONS, count=options.requests // STEPS)
            leave(server.port, requests[0])
            sizes.append(server.rss_mib())
            sys.stderr.write(
                f"{(step + 1) * options.requests // STEPS} requests: {sizes[-1]:.0f} MiB {result.statuses}\n"
            )
    start, end = max(sizes[: STEPS // 10]), sizes[-1]
    report = {
        "requests": options.requests,
        "rss_mib": [round(size, 1) for size in sizes],
        "growth_mib": round(end - start, 1),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    if end - start > options.growth:
        raise SystemExit(f"memory grew by {end - start:.0f} MiB")


def leave(port: int, request: bytes) -> None:
    """Clients that send half a request, or a whole one, and do not wait."""
    for part in (request[: len(request) // 2], request):
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.sendall(part)


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=20_000)
    options.add_argument("--growth", type=float, default=20.0, help="MiB that memory may grow by")
    return parse(options)


if __name__ == "__main__":
    main()
