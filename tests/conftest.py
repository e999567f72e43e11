from collections.abc import Callable

import pytest

from tests.repositories import structured_photos, write_repository

FIGURE = "figure"
"""A line of a test's report, under xdist too: what a worker keeps for itself is lost."""


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Take a line for the end of the report, passed or failed: counts and figures."""
    return lambda line: request.node.user_properties.append((FIGURE, line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    lines = [
        str(value)
        for report in reports
        if report.when == "call"
        for name, value in report.user_properties
        if name == FIGURE
    ]
    if lines:
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
