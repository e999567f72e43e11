"""Connections that never get as far as TLS: closed in time at both doors, with nothing left behind."""

import asyncio
import gc
import os
import shutil
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest

from alexnet_client.pb.classifier_pb2_grpc import ClassifierStub
from alexnet_server.http.protocol import Protocol
from alexnet_server.rpc import door
from tests.server.doors import doors
from tests.server.fakes import FakeEngine, Running, eventually, photo, running
from tests.server.rpc.test_classifier import request
from tests.server.test_tls import make_certificate

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")

LIMIT_S = 2.0
"""In place of ten seconds, and enough for the innocent."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"), "localhost")


def test_both_doors_leave_a_handshake_as_long():
    assert Protocol.head_limit_s == door._HANDSHAKE_S


def hello() -> bytes:
    """What a client of TLS says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


SAID = {
    "nothing": b"",
    "half a hello": hello()[:100],
    "a hello, and no more": hello(),
    "no TLS": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "noise": bytes(range(256)) * 100,
}


async def closed(port: int, said: bytes) -> None:
    """Connects, says that, and waits for the end; AssertionError where it does not come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(said)
        async with asyncio.timeout(20):
            await reader.read()
    except TimeoutError:
        raise AssertionError(f"still open after {said[:20]!r}") from None
    except ConnectionError:
        pass
    finally:
        writer.close()


def leave(port: int, said: bytes, *, reset: bool) -> None:
    """Connects, says that, and goes."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(said)


async def ask(server: Running, cert: str) -> None:
    """An innocent client, whom a certificate that it trusts satisfies."""
    trust = ssl.create_default_context(cafile=cert)
    async with httpx.AsyncClient(verify=trust, timeout=20) as client:
        url = f"https://127.0.0.1:{server.port}"
        assert (await client.post(f"{url}/classify", content=photo())).status_code == 200


async def distrust(port: int) -> None:
    """A client that likes the certificate less than the server."""
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.open_connection("127.0.0.1", port, ssl=ssl.create_default_context())


def held() -> int:
    return len(os.listdir("/proc/self/fd"))


async def rest() -> tuple[int, int]:
    """Descriptors and tasks, once they stay the same."""
    found = [(held(), len(asyncio.all_tasks()))]
    async with asyncio.timeout(20):
        while len(found) < 20 or len(set(found[-20:])) > 1:
            await asyncio.sleep(0.02)
            found.append((held(), len(asyncio.all_tasks())))
    return found[-1]


def uvloops() -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    return loop


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloops])
def test_http_closes_them_and_serves_others(pair, monkeypatch, caplog, loop_factory: Callable[[], Any]):
    monkeypatch.setattr(Protocol, "head_limit_s", LIMIT_S)
    cert, key = map(str, pair)
    complaints: list[dict[str, Any]] = []

    async def attacked() -> None:
        loop = asyncio.get_running_loop()
        async with running(FakeEngine(), tls_cert_file=cert, tls_key_file=key) as server:
            await ask(server, cert)
            before = await rest()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            ends = [asyncio.create_task(closed(server.port, said)) for said in SAID.values()]
            for said in SAID.values():
                leave(server.port, said, reset=False)
                leave(server.port, said, reset=True)
            await distrust(server.port)
            await ask(server, cert)
            await asyncio.gather(*ends)
            assert await rest() == before
            monkeypatch.setattr(Protocol, "head_limit_s", 60.0)
            late.connect(("127.0.0.1", server.port))
            await eventually(lambda: held() > before[0])  # it has been accepted

    with socket.socket() as late:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(attacked())
        late.settimeout(20)
        assert late.recv(1) == b"", "a handshake that was under way at the end is closed with the rest"
    gc.collect()  # tells of exceptions that nobody asked for, and of what was left open
    assert complaints == []
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []


async def test_grpc_closes_them_and_serves_others(pair, monkeypatch):
    monkeypatch.setattr(door, "_HANDSHAKE_S", LIMIT_S)
    cert, key = pair
    trust = grpc.ssl_channel_credentials(cert.read_bytes())
    async with doors(tls_cert_file=cert, tls_key_file=key) as served:

        async def innocent() -> None:
            async with grpc.aio.secure_channel(f"localhost:{served.grpc.port}", trust) as channel:
                assert (await ClassifierStub(channel).Classify(request())).predictions

        await innocent()
        before = (await rest())[0]
        ends = [asyncio.create_task(closed(served.grpc.port, said)) for said in SAID.values()]
        for said in SAID.values():
            leave(served.grpc.port, said, reset=False)
            leave(served.grpc.port, said, reset=True)
        await innocent()
        await asyncio.gather(*ends)
        await eventually(lambda: held() <= before)


async def test_grpc_without_tls_closes_the_silent_too(monkeypatch):
    monkeypatch.setattr(door, "_HANDSHAKE_S", LIMIT_S)
    async with doors() as served:
        await closed(served.grpc.port, b"")
        assert (await served.stub.Classify(request())).predictions
