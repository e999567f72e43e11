"""A server with a fake engine, and the environment of other people's clients (install.sh)."""

import http.server
import io
import json
import shutil
import subprocess
import threading
from functools import partial

import pytest
from PIL import Image

from tests.processes import ROOT, server_process

ENVIRONMENT = ROOT / ".venv-interop"
PROGRAMS = ROOT / "tests" / "interop" / "programs"
VALUE = 7
"""Of every pixel of the photo; the fake engine calls it `class 7`."""


@pytest.fixture(scope="session")
def origin(tmp_path_factory):
    """Another site, from which a page may ask the server."""
    folder = tmp_path_factory.mktemp("origin")
    (folder / "index.html").write_text("<!doctype html><title>another origin</title>")
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder)))
    threading.Thread(target=site.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{site.server_port}"
    site.shutdown()
    site.server_close()


@pytest.fixture(scope="session")
def server(tmp_path_factory, origin):
    log = tmp_path_factory.mktemp("interop") / "log"
    with server_process(log, f"--cors-origins={origin}", FAKE_VIEWS="1") as running:
        yield running


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    """A file with a photo of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (300, 280), (VALUE, VALUE, VALUE)).save(buffer, "PNG")
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    path.write_bytes(buffer.getvalue())
    return path


@pytest.fixture(scope="session")
def python():
    """Run one of the programs where other people's packages are; what it prints as JSON."""

    def run(package, program, *arguments):
        interpreter = ENVIRONMENT / "bin" / "python"
        if not interpreter.exists() or finished([interpreter, "-c", f"import {package}"]).returncode:
            pytest.skip(f"{package} is not installed: make test-interop installs what can be had")
        done = finished([interpreter, PROGRAMS / program, *arguments])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def tool(name):
    """The path of a program, of the environment or the machine; skips where there is none."""
    found = shutil.which(name, path=str(ENVIRONMENT / "bin")) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def finished(command, **options):
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=280, check=False, **options
    )
