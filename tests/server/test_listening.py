"""Which addresses the two doors listen on, and how many connections they may have."""

import resource
import socket

import pytest

from alexnet_server.access.keys import ApiKeys
from alexnet_server.files import user_cache
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
