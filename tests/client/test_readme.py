"""The code in clients/README.md runs as it stands, but for the ports."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, server_process

README = (ROOT / "clients" / "README.md").read_text()
CAT = ROOT / "tests" / "data" / "cc0" / "cat.jpg"


def blocks(language):
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with server_process(tmp_path_factory.mktemp("readme") / "log", FAKE_VIEWS="1") as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("cat.jpg", "coffee.jpg", "photos/one.jpg", "photos/two.jpg"):
        shutil.copy(CAT, tmp_path / name)
    return tmp_path


def run(command, folder, server):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    source = os.pathsep.join(str(ROOT / each) for each in ("clients", "server", "training"))
    environ = os.environ | {"PATH": path, "PYTHONPATH": source, "ALEXNET_CLIENT_ADDRESS": server.target}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def here(code, server):
    return code.replace("localhost:8081", server.target).replace("localhost:8080", server.http_target)


PYTHON = blocks("python")


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_blocks(number, folder, server):
    code = here(PYTHON[number], server)
    assert run([sys.executable, "-W", "error::DeprecationWarning", "-c", code], folder, server)


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_shell_lines(line, folder, server):
    line = re.sub(r"^alexnet ", f"{sys.executable} -m alexnet_client.cli ", here(line, server))
    before = set(folder.iterdir())
    answer = run(["bash", "-o", "pipefail", "-c", line], folder, server)
    written = set(folder.iterdir()) - before
    assert answer or [file for file in written if file.stat().st_size]


def test_every_exception_is_in_the_table():
    import alexnet_client

    for name in alexnet_client.__all__:
        kind = getattr(alexnet_client, name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert f"`{name}`" in README
