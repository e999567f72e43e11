"""Lines of the log: one for each record, whoever wrote what is in it."""

import io
import logging

import pytest

from alexnet_server.telemetry import logs
from tests.server.fakes import FakeEngine, running


@pytest.fixture
def written(monkeypatch):
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("info", "plain")
    yield stream
    root.handlers[:] = before[0]
    root.setLevel(before[1])


async def test_a_path_cannot_forge_a_line(written):
    async with running(FakeEngine(), access_log=True) as server:
        forged = "/x%0A2026-01-31T12:00:00.000Z%20INFO%20forged%1B%5B2J%E2%80%A8%C2%85%0D"
        assert (await server.send(forged)).status == 404
    lines = [line for line in written.getvalue().splitlines() if "POST /x" in line or "forged" in line]
    assert len(lines) == 1
    assert r"\x0a2026-01-31T12:00:00.000Z INFO forged\x1b[2J\u2028\x85\x0d" in lines[0]


def test_a_traceback_keeps_its_lines(written):
    try:
        raise ValueError("first\nsecond \x1b[2J")
    except ValueError:
        logging.getLogger("x").exception("it\nfailed")
    text = written.getvalue()
    assert r"it\x0afailed" in text
    assert text.count("\n") > 4
    assert "\x1b" not in text
