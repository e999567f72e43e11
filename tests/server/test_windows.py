"""The server where POSIX is not: started, asked over both protocols, and stopped."""

import os
import signal
import subprocess
import sys
import tempfile

import httpx
import pytest

from alexnet_client import Client
from alexnet_server import files, listening
from tests import hostile
from tests.processes import server_process
from tests.server import without_posix

COMMAND = (
    "from tests.server.without_posix import hide; hide(); from alexnet_client.cli import main; exit(main())"
)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_it_serves_without_posix(engine, tmp_path):
    flags = (f"--engine={engine}", "--drain-delay-s=0")
    environ = {"PYTHONWARNDEFAULTENCODING": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    photo = (hostile.CC0 / "coffee.jpg").read_bytes()
    with server_process(tmp_path / "log", *flags, module=without_posix.__name__, **environ) as server:
        for path in ("", "docs", "network", "labels"):
            assert httpx.get(f"http://{server.http_target}/{path}", timeout=60).status_code == 200
        answer = httpx.post(f"http://{server.http_target}/classify", content=photo, timeout=60).json()
        with Client(server.target) as client:
            assert client.classify(photo).top.label == answer["predictions"][0]["label"] == "espresso"
        command = [sys.executable, "-c", COMMAND, "classify", hostile.CC0, "--address", server.target]
        told = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=60)
        assert (told.returncode, told.stderr) == (0, "")
        assert "coffee.jpg  espresso" in told.stdout
        assert server.end(signal.SIGINT) == 0
    assert "closed" in (tmp_path / "log").read_text()


def test_a_folder_without_locks_is_everybodys(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    with files.locked(tmp_path), files.locked(tmp_path):
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="Windows says of every file that its owner is 0")
def test_a_user_without_number_or_home_has_a_folder_among_the_temporary(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delattr(os, "getuid")
    assert files.user_cache() == tmp_path / "alexnet-0"


def test_connections_are_as_many_as_select_can_watch(monkeypatch):
    monkeypatch.setattr(listening, "resource", None)
    assert listening.affordable(4096) == 192
    assert listening.affordable(100) == 100
