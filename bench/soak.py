"""What many requests leave behind: `python -m bench.soak [--requests 20000] [-- SERVER FLAGS]`.

Good photos of every size, broken ones, very tall ones and ten views at 16 connections; uploads that are
refused, clients that leave, gRPC streams to their end and cancelled ones. After each twentieth of them the
server is left alone until nothing is under way: prints its memory, file descriptors, threads and tasks then.
Fails when memory has grown by more than `--growth` MiB since the first tenth or was ever above `--most`, or
when one of the others has grown by more than `--leak`.
"""

import argparse
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, islice

import grpc
from PIL import Image

from alexnet_client.pb import classifier_pb2 as pb
from alexnet_client.pb.classifier_pb2_grpc import ClassifierStub
from bench.load import drive, post_photo, post_raw
from bench.options import parse, parser, photo_files
from bench.processes import Server
from tests import hostile, seeds

CONNECTIONS = 16
STEPS = 20
_STREAMED = 8
"""Photos in a stream."""
_REST_S = 30.0
"""Longest wait for the server to be done."""

Counts = Counter[str]


class Mix:
    """The requests, each kind in its share: of twenty, two streamed, one refused, one left.

    Args:
        photos: Good ones.
    """

    def __init__(self, photos: Sequence[bytes]) -> None:
        large = photos[0] + bytes(12 * 2**20)
        refused = (
            post_raw("/classify", large),
            post_photo("/classify", large),
            post_photo("/classify?model=resnet", large),
            post_raw("/nothing", large),
            post_raw("/classify", b"This is not a photo.\n" * 1000),
        )
        self._answered, self._refused = cycle(_answered(photos)), cycle(refused)
        self._photos = cycle(photos)
        self._leaving = cycle((post_photo("/classify", photos[0]), _half(post_photo("/classify", photos[0]))))
        self._cancelled = cycle((False, False, True))

    def send(self, server: Server, count: int) -> Counts:
        """Send that many; counts their statuses, `left`, and `streamed` or `cancelled` photos."""
        counts: Counts = Counter()
        for _ in range(count // 20):
            counts[str(status(server.port, next(self._refused)))] += 1
            leave(server.port, next(self._leaving))
            counts["left"] += 1
        for _ in range(count // 10 // _STREAMED):
            photos = list(islice(self._photos, _STREAMED))
            counts += stream(server.grpc_port, photos, cancelled=next(self._cancelled))
        requests = list(islice(self._answered, count - counts.total()))
        try:
            result = drive(server.port, requests, connections=CONNECTIONS, count=len(requests))
        except ConnectionError:  # on a machine that stood still all deadlines are over at once
            return counts + Counter({"given up": len(requests)})
        return counts + Counter({str(number): answers for number, answers in result.statuses.items()})


def _answered(photos: Sequence[bytes]) -> list[bytes]:
    """Of a hundred, or as many as there are photos: a tenth broken, some tall, some for ten views."""
    tall = cycle(
        (seeds.gray_png(1, 9_000_000), hostile.jpeg(Image.new("RGB", (1, 65_000)), progressive=True))
    )
    requests = []
    for number, photo in enumerate(islice(cycle(photos), max(100, len(photos)))):
        if number % 10 == 7:
            photo = _half(photo) if number % 20 == 7 else photo.replace(b"\xff", b"\0")
        elif number % 25 == 3:
            photo = next(tall)
        requests.append(post_photo("/classify?views=ten" if number % 50 == 9 else "/classify", photo))
    return requests


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def status(port: int, request: bytes) -> int:
    """The status of a request that is sent to its end whatever the server says meanwhile."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(request)
        with link.makefile("rb") as answer:
            return int(answer.readline().split()[1])


def leave(port: int, request: bytes) -> None:
    """A client that sends a request, or a part of one, and does not wait."""
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(request)


def stream(port: int, photos: Sequence[bytes], *, cancelled: bool) -> Counts:
    """Photos in a stream on a connection of its own; `cancelled` after the first answer."""
    items = [
        pb.ClassifyStreamRequest(id=str(number), request=pb.ClassifyRequest(image=pb.Image(encoded=photo)))
        for number, photo in enumerate(photos)
    ]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = ClassifierStub(channel).ClassifyStream(iter(items))
        streamed = sum(1 for _ in islice(call, 1 if cancelled else None))
        call.cancel()
    return Counter(streamed=streamed, cancelled=len(photos) - streamed)


def rested(server: Server) -> dict[str, float]:
    """What the server holds once it has been the same for a second."""
    began = since = time.monotonic()
    held = server.held()
    while time.monotonic() - since < 1.0 and time.monotonic() - began < _REST_S:
        time.sleep(0.1)
        if (now := server.held()) != held:
            held, since = now, time.monotonic()
    return {"rss_mib": round(server.rss_mib(), 1), **held}


def main() -> None:
    options, flags = _arguments()
    mix = Mix([path.read_bytes() for path in photo_files(options.photos)])
    counts: Counts = Counter()
    with Server(flags) as server:
        steps = []
        for _ in range(STEPS):
            counts += mix.send(server, options.requests // STEPS)
            steps.append(rested(server))
            sys.stderr.write(f"{counts.total()}: {steps[-1]}\n")
        peak = server.peak_mib()
    early, last = steps[: STEPS // 10], steps[-1]
    growth = {name: round(last[name] - max(step[name] for step in early), 1) for name in last}
    report = {"requests": dict(counts), "steps": steps, "growth": growth, "peak_mib": round(peak, 1)}
    sys.stdout.write(json.dumps(report) + "\n")
    allowed = {name: options.growth if name == "rss_mib" else options.leak for name in growth}
    failed = [f"{name} grew by {more:g}" for name, more in growth.items() if more > allowed[name]]
    if peak > options.most:
        failed.append(f"{peak:.0f} MiB at worst")
    if failed:
        raise SystemExit(", ".join(failed))


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=20_000)
    options.add_argument("--growth", type=float, default=20.0, help="MiB that memory may grow by")
    options.add_argument("--most", type=float, default=1200.0, help="MiB that it may reach")
    options.add_argument("--leak", type=int, default=4, help="descriptors, threads, tasks that may be added")
    return parse(options)


if __name__ == "__main__":
    main()
