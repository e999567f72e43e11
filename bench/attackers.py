"""The attacks of `bench.attacks`, each from a process of its own.

    python -m bench.attackers NAME HTTP_PORT GRPC_PORT

Answers lines as `bench.processes.Child` asks them: `allowed` with the bytes that the server's own budgets let
the attack hold, `go SECONDS` with what became of its requests.
"""

import asyncio
import contextlib
import gzip
import itertools
import json
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc

from alexnet_client.pb import classifier_pb2 as pb
from alexnet_client.pb.classifier_pb2_grpc import ClassifierStub
from alexnet_server.preprocess import PhotoError, open_photo
from bench.load import post_photo, post_raw
from tests import hostile, seeds
from tests.server.oip.test_hostile_bodies import BODIES, INFER
from tests.server.rpc.test_door import frame, opened_with
from tests.server.test_protocol import HEADS, HOST

MEBIBYTE = 2**20
BUDGET_BYTES = 512 * MEBIBYTE
"""By default, of bodies and of decoders each."""
_PATIENCE_S = 3.0
"""Longest that answers are waited for once an attack is over."""
_PAUSE_S = 0.2
_LARGE = hostile.jpeg() + bytes(9 * MEBIBYTE)

Answers = Counter[str]
Send = Callable[[int, float], Awaitable[Answers]]
"""To a port, for so many seconds."""


@dataclass(frozen=True)
class Attack:
    """What is sent, and what the server may hold for it."""

    send: Send
    allowed: int = 0
    """Bytes."""
    grpc: bool = False


def http(requests: Sequence[bytes], connections: int, *, holds: int = 0, photo: bytes = b"") -> Attack:
    """The same requests again and again, each on a new connection once the one before is answered.

    Args:
        requests: Whole ones.
        connections: At a time.
        holds: Bytes of a body once it is inflated, if it is.
        photo: What of them announces memory for its decoder.
    """

    async def send(port: int, seconds: float) -> Answers:
        answers: Answers = Counter()
        until = time.monotonic() + seconds

        async def one(first: int) -> None:
            for request in itertools.islice(itertools.cycle(requests), first, None):
                left = until - time.monotonic()
                if left <= 0:
                    return
                answers[await answered(port, request, left + _PATIENCE_S)] += 1
                await asyncio.sleep(_PAUSE_S)

        await asyncio.gather(*(one(number) for number in range(connections)))
        return answers

    body = max(holds, *map(len, requests))
    announced = 0
    with contextlib.suppress(PhotoError):
        announced = open_photo(photo).memory_bytes
    return Attack(send, sum(min(BUDGET_BYTES, connections * count) for count in (body, announced)))


async def answered(port: int, request: bytes, patience_s: float) -> str:
    """The status, `closed` without one, or `none` in time."""
    writer = None
    try:
        async with asyncio.timeout(patience_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            line = await reader.readline()
            return line[9:12].decode() or "closed"
    except TimeoutError:
        return "none"
    except OSError:
        return "closed"
    finally:
        if writer is not None:
            writer.transport.abort()


def zipped(body: bytes) -> bytes:
    """An inference in JSON, compressed."""
    small = gzip.compress(body)
    lines = (f"POST {INFER} HTTP/1.1", "Host: localhost", "Content-Encoding: gzip")
    head = "\r\n".join((*lines, f"Content-Length: {len(small)}")).encode()
    return head + b"\r\n\r\n" + small


async def streams(port: int, seconds: float) -> Answers:
    """Sixty streams of five large photos, each with a connection of its own."""
    answers: Answers = Counter()
    item = pb.ClassifyStreamRequest(id="1", request=pb.ClassifyRequest(image=pb.Image(encoded=_LARGE)))
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1))

    async def one() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            call = ClassifierStub(channel).ClassifyStream(
                itertools.repeat(item, 5), timeout=seconds + _PATIENCE_S
            )
            try:
                async for answer in call:
                    answers[answer.error.code or "ok"] += 1
            except grpc.aio.AioRpcError as error:
                # `internal`: the call ended while a message was written.
                answers[error.code().name.lower()] += 1

    await asyncio.gather(*(one() for _ in range(60)))
    return answers


async def compressed(port: int, seconds: float) -> Answers:
    """Forty messages of 60 MiB, of which a thousandth is sent."""
    message = gzip.compress(
        pb.ClassifyRequest(image=pb.Image(encoded=bytes(60 * MEBIBYTE))).SerializeToString()
    )
    framed = b"\x01" + struct.pack(">I", len(message)) + message
    pieces = [framed[start : start + 16_384] for start in range(0, len(framed), 16_384)]
    sent = opened_with("gzip") + b"".join(frame(0, 0, 1, piece) for piece in pieces)
    answers: Answers = Counter()

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        try:
            async with asyncio.timeout(seconds):
                await reader.readuntil(b"grpc-status")
            answers["answered"] += 1
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            answers["none"] += 1
        writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(40)))
    return answers


async def silent(port: int, seconds: float) -> Answers:
    """Two thousand connections that say nothing; more than are left open have to be closed."""
    answers: Answers = Counter()

    async def one() -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds + _PATIENCE_S):
                    await reader.read()
                    answers["closed"] += 1
            writer.transport.abort()
        except OSError:
            answers["closed"] += 1

    await asyncio.gather(*(one() for _ in range(2000)))
    answers["still open"] = 2000 - answers["closed"]
    return answers


def _tall() -> Attack:
    photo = seeds.gray_png(1, 9_000_000)
    return http([post_raw("/classify", photo)], 8, photo=photo)


def _photos(*photos: bytes, connections: int = 4) -> Attack:
    return http([post_raw("/classify", photo) for photo in photos], connections)


_ENDLESS = b"GET /livez HTTP/1.1\r\n" + HOST + b"x: " + b"v" * 50 * MEBIBYTE
_ODD = ("half a character", "half a character in a name", "a long time")

ATTACKS: dict[str, Callable[[], Attack]] = {
    "JPEG of 30,000 scans": lambda: _photos(seeds.jpeg_scans(30_000, side=2000), connections=2),
    "tensors of text": lambda: http(
        [zipped(BODIES[name][0]) for name in ("strings", "strings of the right number", "deep lists")], 4
    ),
    "endless header": lambda: Attack(http([_ENDLESS], 2).send),
    "AVIF that says less": lambda: _photos(seeds.fault("avif-8000-says-64.avif")),
    "JSON that inflates": lambda: http([zipped(b" " * 60 * MEBIBYTE)], 30, holds=60 * MEBIBYTE),
    "tall PNG": _tall,
    "run lengths": lambda: _photos(seeds.fault("rle-eol-5000000.bmp"), hostile.run_lengths(2_000_000)),
    "wide PNG": lambda: _photos(seeds.fault("wide-tiny.png")),
    "100 uploads at once": lambda: http([post_raw("/classify", _LARGE)], 100),
    "forms": lambda: http([post_photo("/classify", _LARGE), post_photo("/classify", _LARGE * 2)], 16),
    "gRPC streams": lambda: Attack(streams, BUDGET_BYTES, grpc=True),
    "gRPC bombs": lambda: Attack(compressed, grpc=True),
    "silence": lambda: Attack(silent),
    "silence at gRPC": lambda: Attack(silent, grpc=True),
    "odd requests": lambda: http(
        [
            *(zipped(BODIES[name][0]) for name in _ODD),
            *(HEADS[name][0] for name in ("no host", "two hosts", "many headers")),
        ],
        2,
    ),
}


def main() -> None:
    name, *ports = sys.argv[1:]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    attack = ATTACKS[name]()
    port = int(ports[attack.grpc])
    for said in itertools.chain(["ready"], sys.stdin):
        match said.split():
            case ["ready"]:
                answer = "ready"
            case ["allowed"]:
                answer = json.dumps(attack.allowed)
            case ["go", seconds]:
                answer = json.dumps(asyncio.run(attack.send(port, float(seconds))))
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
