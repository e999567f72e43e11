from collections.abc import Callable

import pytest

from tests.repositories import structured_photos, write_repository

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figure(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Take a line for the end of the report, passed or failed: counts and figures."""
    return pytestconfig.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash.get(FIGURES, []):
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def photos():
    """Three (256, 256, 3) uint8 photos with structure at every scale."""
    return structured_photos()


@pytest.fixture(scope="session")
def exported_repository(tmp_path_factory):
    """A tiny model repository as export leaves it, not unpacked; copy it before changing anything."""
    folder = tmp_path_factory.mktemp("exported") / "model_repository"
    write_repository(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory):
    """A tiny model repository, unpacked in int8: three models of ten classes that answer in milliseconds."""
    from alexnet_server.models.repository import read_repository
    from alexnet_server.models.unpack import unpack

    folder = tmp_path_factory.mktemp("tiny") / "model_repository"
    write_repository(folder)
    unpack(read_repository(folder), "int8")
    return folder
