"""The images are small, unprivileged and clean, answer a photo, and stop when told to."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alexnet_server.golden import TOLERANCE
from alexnet_server.photos import PHOTO
from tests.image.conftest import ENVIRONMENT, ROOT, Image

pytestmark = [pytest.mark.image, pytest.mark.slow, pytest.mark.timeout(4000)]

log = logging.getLogger(__name__)

MOST_BYTES = 500_000_000
"""Of `cpu`, without its base image."""
Build = Callable[[str], Image]


@pytest.fixture(scope="module")
def cpu(build: Build) -> Image:
    return build("cpu")


@pytest.fixture(params=["cpu", "triton"])
def image(request: pytest.FixtureRequest, build: Build) -> Image:
    return build(request.param)


def test_configuration(image: Image) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    config = image.config
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["alexnet-server"]  # no shell that would keep SIGTERM to itself
    assert config.get("StopSignal", "SIGTERM") == "SIGTERM"
    assert set(config["ExposedPorts"]) == {"8080/tcp", "8081/tcp"}
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Labels"]["org.opencontainers.image.version"] == version
    assert {"title", "description", "licenses", "revision"} <= {
        name.removeprefix("org.opencontainers.image.") for name in config["Labels"]
    }
    assert not [variable for variable in config["Env"] if variable.startswith(("PIP_", "UV_"))]


def test_nothing_left_over_from_building(image: Image) -> None:
    root = image.root
    tools = ("gcc", "cc", "clang", "make", "ld", "uv")
    assert [
        tool for tool in tools for folder in ("usr/bin", "usr/local/bin") if (root / folder / tool).exists()
    ] == []
    assert not list(root.glob("opt/alexnet/lib/python3*/site-packages/pip*"))
    # Where the host's pip settings were mounted, an empty file remains; nothing else.
    for leftover in (
        "root/.cache",
        "tmp/.cache",
        "src",
        "wheels",
        "opt/build",
        "etc/pip.conf",
        "root/.config",
    ):
        path = root / leftover
        files = [path] if path.is_file() else list(path.rglob("*"))
        assert [file for file in files if file.is_file() and file.stat().st_size] == []


def test_its_user_can_change_nothing(image: Image) -> None:
    """Owned by root, and not writable by others: the file system may as well be read-only, and then is."""
    own = ("opt", "models")
    for folder in (image.root / name for name in own if (image.root / name).exists()):
        for path in (folder, *folder.rglob("*")):
            stat = path.lstat()
            assert stat.st_uid == 0, path
            assert path.is_symlink() or not stat.st_mode & 0o022, path


def test_cpu_is_small(cpu: Image) -> None:
    log.info("cpu: %.0f MB without its base", cpu.added_bytes / 1e6)
    assert cpu.added_bytes <= MOST_BYTES


def test_triton_has_no_onnx_runtime(build: Build) -> None:
    image = build("triton")
    log.info("triton: %.0f MB without its base", image.added_bytes / 1e6)
    assert not list(image.root.glob("opt/alexnet/lib/python3*/site-packages/onnxruntime*"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


class Running:
    """A container of the image, started as its configuration says."""

    def __init__(self, image: Image, **settings: str) -> None:
        self.port = free_port()
        settings = {"ALEXNET_HTTP_PORT": str(self.port), "ALEXNET_GRPC_PORT": str(free_port())} | settings
        environment = [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]
        command = image.config["Entrypoint"]
        self.started_at = time.time()
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the container
        self.process = subprocess.Popen(
            ["buildah", "run", "--user", image.config["User"], *environment, image.container, "--", *command],
            env=ENVIRONMENT,
            stderr=self.log,
        )

    def get(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                status: int = answer.status
        except urllib.error.HTTPError as error:
            status = error.code
        except OSError:
            status = 0
        return status

    def wait_ready(self, timeout_s: float = 120) -> None:
        until = time.monotonic() + timeout_s
        while self.get("/readyz") != 200:
            assert self.process.poll() is None, self.logged()
            assert time.monotonic() < until, self.logged()
            time.sleep(0.2)

    def logged(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def server_pid(self) -> int:
        """The process that listens on the port."""
        inode = _listening_inode(self.port)
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                links = [os.readlink(link) for link in (folder / "fd").iterdir()]
            except OSError:
                continue
            if f"socket:[{inode}]" in links:
                return int(folder.name)
        raise AssertionError("nobody listens")


def _listening_inode(port: int) -> str:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
            return fields[9]
    raise AssertionError(f"nobody listens on {port}")


@pytest.fixture
def running(cpu: Image) -> Iterator[Running]:
    container = Running(cpu, ALEXNET_DRAIN_DELAY_S="1")
    yield container
    if container.process.poll() is None:
        os.kill(container.server_pid(), signal.SIGKILL)
    container.process.wait(30)
    container.log.close()


def test_a_container_answers_and_stops(cpu: Image, running: Running) -> None:
    running.wait_ready()
    request = urllib.request.Request(
        f"http://127.0.0.1:{running.port}/classify", PHOTO.read_bytes(), {"content-type": "image/jpeg"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        predictions = json.loads(answer.read())["predictions"]
    assert len(predictions) == 5
    # What the card says of this photo: right or wrong, it is this model's answer.
    card = json.loads((cpu.root / "models" / "card.json").read_text())["models"]["alexnet"]["golden"]
    assert predictions[0]["index"] == card["index"]
    assert predictions[0]["score"] == pytest.approx(card["score"], abs=TOLERANCE)

    pid = running.server_pid()
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["Uid"].split() == ["10001"] * 4
    assert Path(f"/proc/{pid}/cmdline").read_text().split("\0")[1].endswith("alexnet-server")  # no shell

    healthcheck = cpu.config["Healthcheck"]["Test"][1:]
    check = subprocess.run(
        ["buildah", "run", "--env", f"ALEXNET_HTTP_PORT={running.port}", cpu.container, "--", *healthcheck],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert check.returncode == 0, check.stderr

    os.kill(pid, signal.SIGTERM)
    assert running.process.wait(30) == 0
    # As under a read-only root: it has written nowhere but, perhaps, in /tmp.
    mounts = ("proc", "sys", "dev", "tmp", "run", "etc")
    files = [path for path in cpu.root.rglob("*") if path.relative_to(cpu.root).parts[0] not in mounts]
    assert [path for path in files if path.lstat().st_mtime > running.started_at] == []
