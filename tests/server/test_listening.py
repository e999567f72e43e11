"""Which addresses the two doors listen on, and how many connections they may have."""

import asyncio
import errno
import resource
import socket

import pytest

from alexnet_server.access.keys import ApiKeys
from alexnet_server.files import user_cache
from alexnet_server.http.server import Listener
from alexnet_server.listening import affordable, listen
from alexnet_server.rpc import GrpcDoor
from alexnet_server.settings import Settings
from tests.server.fakes import FakeEngine, running


def reaches(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize(
    ("host", "families"),
    [("::", (True, True)), ("0.0.0.0", (True, False)), ("127.0.0.1", (True, False)), ("::1", (False, True))],
)
async def test_both_doors_listen_on_the_same_addresses(host, families):
    sockets = listen(host, 0, "--http-port")
    http = sockets[0].getsockname()[1]
    assert (reaches("127.0.0.1", http), reaches("::1", http)) == families
    for each in sockets:
        each.close()
    async with running(FakeEngine()) as server:
        door = GrpcDoor(server.classifier, Settings(host=host, grpc_port=0), ApiKeys())
        await door.open()
        assert (reaches("127.0.0.1", door.port), reaches("::1", door.port)) == families
        await door.close(1)


def test_connections_are_as_many_as_the_files_allow(monkeypatch):
    limits = [100, 1000]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.__setitem__(slice(None), pair))
    assert affordable(300) == 300
    assert limits == [728, 1000]
    assert affordable(4096) == 436
    assert limits == [1000, 1000]


def test_a_user_without_a_home_has_a_folder_among_the_temporary(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def nobody() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", nobody)
    folder = user_cache()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path / "file")  # where nothing can be written
    assert user_cache() == folder
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        user_cache()


class Accepted(asyncio.Protocol):
    def __init__(self, made: list[asyncio.BaseTransport]) -> None:
        self.made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made.append(transport)


class Clients:
    """Connections that wait in the kernel, and the sockets they came to."""

    def __init__(self, count: int) -> None:
        (self.listening,) = listen("127.0.0.1", 0, "--http-port")
        address = self.listening.getsockname()
        self.sockets = [socket.create_connection(address) for _ in range(count)]

    def close(self) -> None:
        for each in (self.listening, *self.sockets):
            each.close()


def test_all_who_have_come_are_accepted_at_once():
    """uvloop's own server accepts one in each turn of its loop, and busy loops take long for theirs."""
    clients = Clients(60)

    async def turns_until_accepted() -> int:
        made: list[asyncio.BaseTransport] = []
        listener = Listener(clients.listening, lambda: Accepted(made), None)
        turns = 0
        while len(made) < 60:
            turns += 1
            await asyncio.sleep(0)
        listener.close()
        for transport in made:
            transport.abort()
        return turns

    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(asyncio.wait_for(turns_until_accepted(), 10)) < 20
    clients.close()


async def test_no_descriptors_left_is_waited_out(monkeypatch, caplog):
    clients = Clients(2)
    refusals = iter([OSError(errno.EMFILE, "Too many open files")])
    made: list[asyncio.BaseTransport] = []

    class Exhausted(socket.socket):
        def accept(self):
            for refusal in refusals:
                raise refusal
            return super().accept()

    monkeypatch.setattr("alexnet_server.http.server._REST_S", 0.05)
    exhausted = Exhausted(fileno=clients.listening.detach())
    listener = Listener(exhausted, lambda: Accepted(made), None)
    async with asyncio.timeout(10):
        while len(made) < 2:
            await asyncio.sleep(0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "cannot accept connections for 0.05 s: Too many open files"
    ]
    listener.close()
    for transport in made:
        transport.abort()
    exhausted.close()
    clients.close()
