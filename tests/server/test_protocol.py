"""What is on the wire below a request: bounds of headers, upgrades, half-closed clients, silent ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator

import grpc
import pytest

from alexnet_server.http.protocol import MAX_FIELDS, MAX_HEAD_BYTES, Protocol
from tests.server.fakes import (
    FakeEngine,
    Reply,
    Running,
    eventually,
    photo,
    read_reply,
    request_bytes,
    running,
)

PHOTO = photo()
HOST = b"Host: test\r\n"
CHUNKED = b"%x\r\n" % len(PHOTO) + PHOTO + b"\r\n0\r\n"


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running(FakeEngine()) as subject:
        yield subject


@contextlib.asynccontextmanager
async def connected(server: Running) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def ended(reader: asyncio.StreamReader) -> bool:
    return await asyncio.wait_for(reader.read(), 20) == b""


async def alive(server: Running) -> None:
    assert (await server.send("/classify", PHOTO)).status == 200


def lines(count: int, length: int = 10) -> bytes:
    return b"".join(b"x-%d: %s\r\n" % (n, b"v" * length) for n in range(count))


LONG = MAX_HEAD_BYTES + 100
HEADS = {
    "one endless header": (b"GET /livez HTTP/1.1\r\n" + HOST + b"x: " + b"v" * 10 * LONG, 431),
    "one endless name": (b"GET /livez HTTP/1.1\r\n" + HOST + b"v" * 10 * LONG, 431),
    "an endless url": (b"GET /" + b"v" * 10 * LONG, 431),
    "a long url": (b"GET /" + b"v" * LONG + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431),
    "long headers": (b"GET /livez HTTP/1.1\r\n" + HOST + lines(30, 2500) + b"\r\n", 431),
    "many headers": (b"GET /livez HTTP/1.1\r\n" + HOST + lines(MAX_FIELDS) + b"\r\n", 431),
    "empty lines": (b"\r\n" * LONG, 431),
    "as many headers as may be": (b"GET /livez HTTP/1.1\r\n" + HOST + lines(MAX_FIELDS - 1) + b"\r\n", 200),
    "no host": (b"GET /livez HTTP/1.1\r\n\r\n", 400),
    "no host in 1.0": (b"GET /livez HTTP/1.0\r\n\r\n", 200),
    "two hosts": (b"GET /livez HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", HEADS)
async def test_headers_are_bounded(server, name):
    head, status = HEADS[name]
    async with connected(server) as (reader, writer):
        for start in range(0, len(head), 10_000):
            writer.write(head[start : start + 10_000])
            await asyncio.sleep(0)
        reply = await asyncio.wait_for(read_reply(reader), 20)
        assert reply.status == status
        if status != 200:
            assert json.loads(reply.body)["code"] == "invalid_request"
            assert await ended(reader)
    await alive(server)


TRAILERS = {
    "many": lines(MAX_FIELDS),
    "long": lines(30, 2500),
    "endless": b"x: " + b"v" * 10 * LONG,
}


@pytest.mark.parametrize("name", TRAILERS)
async def test_trailers_are_bounded_too(server, name):
    async with connected(server) as (reader, writer):
        head = b"POST /classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST
        writer.write(head + b"\r\n" + CHUNKED + TRAILERS[name] + b"\r\n")
        assert (await asyncio.wait_for(read_reply(reader), 20)).status == 431
        assert await ended(reader)
    await alive(server)


async def test_trailers_are_no_headers():
    """One that came as a trailer must not be taken for the key, nor for the length of the JSON."""
    async with running(FakeEngine(), api_keys="first-key") as server, connected(server) as (reader, writer):
        head = b"POST /classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST
        writer.write(head + b"\r\n" + CHUNKED + b"x-api-key: first-key\r\n\r\n")
        assert (await read_reply(reader)).status == 401
        writer.write(head + b"x-api-key: first-key\r\n\r\n" + CHUNKED + b"x-request-id: trailer\r\n\r\n")
        reply = await read_reply(reader)
        assert reply.status == 200
        assert reply.headers["x-request-id"] != "trailer"


UPGRADES = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n",
    "tls": b"Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
}


@pytest.mark.parametrize("parts", [1, 2, 50])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("name", UPGRADES)
async def test_a_request_that_offers_another_protocol_keeps_its_body(server, name, framing, parts):
    length = b"Content-Length: %d\r\n" % len(PHOTO)
    frame, body = (
        (length, PHOTO) if framing == "length" else (b"Transfer-Encoding: chunked\r\n", CHUNKED + b"\r\n")
    )
    head = b"POST /classify HTTP/1.1\r\n" + HOST + UPGRADES[name] + frame + b"\r\n"
    sent = head + body
    async with connected(server) as (reader, writer):
        step = -(-len(sent) // parts)
        for start in range(0, len(sent), step):
            writer.write(sent[start : start + step])
            await asyncio.sleep(0.002)
        reply = await read_reply(reader)
        assert reply.status == 200, reply.body
        assert reply.headers["connection"] == "close"
        assert await ended(reader)
    assert len(server.engine.batches) == 1


@pytest.mark.parametrize("pause_s", [0, 0.05])
async def test_nothing_is_smuggled_behind_such_a_request(server, pause_s):
    inner = b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
    outer = b"POST /classify HTTP/1.1\r\n" + HOST + UPGRADES["h2c"]
    for body, status in ((inner, 415), (PHOTO, 200)):
        async with connected(server) as (reader, writer):
            writer.write(outer + b"Content-Length: %d\r\n\r\n" % len(body))
            await asyncio.sleep(pause_s)
            writer.write(body + inner * 3)  # the request's own, and what would follow on the connection
            assert (await read_reply(reader)).status == status
            assert await ended(reader)  # one answer
    async with connected(server) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\n" + HOST + UPGRADES["h2c"] + b"\r\n" + inner)
        assert (await read_reply(reader)).status == 200
        assert await ended(reader)


async def test_ordinary_pipelining_stays(server):
    async with connected(server) as (reader, writer):
        writer.write(request_bytes("/classify", PHOTO) * 3)
        assert [(await read_reply(reader)).status for _ in range(3)] == [200, 200, 200]
        writer.write(request_bytes("/classify", PHOTO))
        assert (await read_reply(reader)).status == 200


async def test_garbage_behind_a_request_waits_for_its_answer(server):
    server.engine.gate.clear()
    async with connected(server) as (reader, writer):
        writer.write(request_bytes("/classify", PHOTO) + b"no request\r\n\r\n")
        await eventually(server.engine.entered.is_set)
        server.engine.gate.set()
        assert (await read_reply(reader)).status == 200
        assert await ended(reader)


async def test_a_client_that_has_sent_all_and_half_closed_is_answered(server):
    server.engine.gate.clear()
    async with connected(server) as (reader, writer):
        writer.write(request_bytes("/classify", PHOTO))
        writer.write_eof()
        await eventually(server.engine.entered.is_set)
        await asyncio.sleep(0.05)
        server.engine.gate.set()
        # An interim answer first, which every client must pass over (RFC 9110, 15.2): it finds who has left.
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        reply = await read_reply(reader)
        assert reply.status == 200
        assert await ended(reader)


async def test_a_client_that_half_closes_before_its_end_is_not(server):
    async with connected(server) as (reader, writer):
        writer.write(request_bytes("/classify", PHOTO)[:-5])
        writer.write_eof()
        assert await ended(reader)
    assert server.engine.batches == []


async def test_a_client_that_left_is_told_from_one_that_half_closed(server):
    server.engine.gate.clear()
    blocking = asyncio.create_task(server.send("/classify", PHOTO))
    await eventually(server.engine.entered.is_set)
    async with connected(server) as (_, writer):
        writer.write(request_bytes("/classify", PHOTO))
        await eventually(lambda: server.waiting_views == 1)
    assert await eventually(lambda: server.waiting_views == 0) < 5
    server.engine.gate.set()
    assert (await blocking).status == 200


@pytest.mark.skipif(shutil.which("nc") is None, reason="nc is not installed")
async def test_nc_is_answered(server):
    process = await asyncio.create_subprocess_exec(
        "nc", "-N", "127.0.0.1", str(server.port), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    answer, _ = await process.communicate(request_bytes("/classify", PHOTO))
    assert b"HTTP/1.1 200" in answer


async def test_silent_connections_are_closed(server, monkeypatch):
    monkeypatch.setattr(Protocol, "head_limit_s", 0.2)
    began = time.monotonic()
    for sent, status in ((b"", None), (b"\r\n", 408), (b"GET /livez HTTP/1.1\r\nx: y", 408)):
        async with connected(server) as (reader, writer):
            writer.write(sent)
            if status is not None:
                assert (await read_reply(reader)).status == status
            assert await ended(reader)
    async with connected(server) as (reader, writer):  # a later request has no longer
        writer.write(b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await read_reply(reader)).status == 200
        await asyncio.sleep(0.4)  # idle for longer
        writer.write(b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\nGET /li")
        assert (await read_reply(reader)).status == 200
        writer.write(b"v")
        assert (await read_reply(reader)).status == 408
    assert time.monotonic() - began < 20


async def test_a_header_that_trickles_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(Protocol, "head_limit_s", 0.3)
    async with connected(server) as (reader, writer):
        reply = asyncio.create_task(read_reply(reader))
        began = time.monotonic()
        writer.write(b"GET /")
        while not reply.done():
            writer.write(b"x")
            await asyncio.sleep(0.02)
            assert time.monotonic() - began < 20
        assert (await reply).status == 408


async def test_the_log_tells_once_of_grpc_at_the_http_port(server, caplog):
    """As its own client tells whoever gave it the port."""
    for _ in range(2):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/alexnet.v1.Classifier/ListModels")(b"")
    assert [record.levelname for record in caplog.records if "--grpc-port" in record.message] == ["WARNING"]


async def test_above_the_limit_the_longest_idle_connection_makes_room():
    async with running(FakeEngine(), max_connections=3) as server, contextlib.AsyncExitStack() as opened:
        idle = [await opened.enter_async_context(connected(server)) for _ in range(3)]
        await asyncio.sleep(0.1)
        await alive(server)
        with contextlib.suppress(ConnectionError):
            assert await idle[0][0].read() == b""
        for reader, writer in idle[1:]:
            writer.write(b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n")
            assert (await read_reply(reader)).status == 200


async def test_above_the_limit_of_busy_connections_new_ones_are_told():
    async with running(FakeEngine(), max_connections=2) as server:
        server.engine.gate.clear()
        busy = [asyncio.create_task(server.send("/classify", PHOTO)) for _ in range(2)]
        await eventually(lambda: server.engine.entered.is_set() and server.waiting_views == 1)
        async with connected(server) as (reader, _):
            reply = await read_reply(reader)
            assert reply.status == 503
            assert json.loads(reply.body)["code"] == "unavailable"
        server.engine.gate.set()
        assert [reply.status for reply in await asyncio.gather(*busy)] == [200, 200]


def refused_upload(path: str, close: bool) -> bytes:
    headers = {"connection": "close"} if close else {}
    return request_bytes(path, bytes(3 * 2**20), headers)


def answer_of_one_who_reads_late(port: int, data: bytes) -> Reply:
    """As a client that looks for the answer once all is sent, when a reset would have thrown it away."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(data)
        time.sleep(0.2)
        client.settimeout(20)
        file = client.makefile("rb")
        status = int(file.readline().split()[1])
        headers = {}
        while line := file.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return Reply(status, headers, file.read(int(headers["content-length"])))


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize(
    ("path", "status"),
    [("/classify?model=resnet", 404), ("/nothing", 404), ("/livez", 405), ("/labels", 405)],
)
async def test_a_refusal_reaches_a_client_that_still_sends(server, path, status, close):
    data = refused_upload(path, close)
    reply = await asyncio.to_thread(answer_of_one_who_reads_late, server.port, data)
    assert reply.status == status
    assert json.loads(reply.body)["status"] == status


async def test_the_wait_for_a_refused_client_is_bounded(server):
    """Of a body without an end no more is read than a body may have."""
    async with running(FakeEngine(), max_body_bytes=2**18, max_photo_bytes=2**18) as little:
        _, writer = await asyncio.open_connection("127.0.0.1", little.port)
        writer.write(b"POST /nothing HTTP/1.1\r\nConnection: close\r\nContent-Length: 9999999999\r\n" + HOST)
        writer.write(b"\r\n")

        async def send_on() -> None:
            for _ in range(200):
                writer.write(bytes(2**16))
                await writer.drain()
                await asyncio.sleep(0)

        with pytest.raises(ConnectionError):
            await send_on()
        writer.close()


async def test_resets_do_not_harm(server):
    for sent in (b"", b"GET", request_bytes("/classify", PHOTO)[:-5], request_bytes("/classify", PHOTO)):
        client = socket.create_connection(("127.0.0.1", server.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(sent)
        client.close()
    await alive(server)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_with_http2(server, tmp_path):
    (tmp_path / "photo.png").write_bytes(PHOTO)
    command = ["curl", "-sS", "--http2", "-F", f"image=@{tmp_path / 'photo.png'}", f"{server.url}/classify"]
    result = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["predictions"][0]["label"] == "class 7"
