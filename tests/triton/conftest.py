from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.triton.repositories import CHECKOUT, CPU, unpacked
from tests.triton.triton_process import TritonProcess


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that needs the server is marked by asking for it, so that `make test` runs the rest."""
    for item in items:
        if "tritonserver" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.triton)


@pytest.fixture(scope="session")
def tritonserver() -> Path:
    """The command that install.sh wrote; its absence is a failure, not a skip."""
    command = Path(os.environ.get("TRITON_PREFIX", CHECKOUT / ".venv-triton")) / "bin/tritonserver"
    assert command.exists(), f"{command} is missing; run make test-triton, which installs it"
    return command


@pytest.fixture(scope="session")
def session_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(tmp_path_factory.mktemp("repository") / "models")


@pytest.fixture(scope="session")
def triton(
    tritonserver: Path, session_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonProcess]:
    """One Triton for all tests that leave it as it is."""
    server = TritonProcess(tritonserver, session_repository, tmp_path_factory.mktemp("triton") / "log", [CPU])
    server.start()
    yield server
    server.clear()


Start = Callable[..., TritonProcess]


@pytest.fixture
def start_triton(tritonserver: Path, tmp_path: Path) -> Iterator[Start]:
    """Start Tritons of a test's own, to be killed, stopped and reloaded."""
    started: list[TritonProcess] = []

    def start(repository: Path, arguments: Sequence[str] = (), *, wait: bool = True) -> TritonProcess:
        server = TritonProcess(
            tritonserver, repository, tmp_path / f"triton-{len(started)}.log", [CPU, *arguments]
        )
        started.append(server)
        if wait:
            server.start()
        return server

    yield start
    for server in started:
        server.clear()
