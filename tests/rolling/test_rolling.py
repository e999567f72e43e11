"""A rolling update under load: every gateway is replaced by one with another model; no request fails."""

from __future__ import annotations

import asyncio
import logging
import shutil
import statistics
from pathlib import Path

import pytest

from tests.rolling.fleet import Fleet, Version
from tests.rolling.load import Callers
from tests.server.fakes import photo

log = logging.getLogger(__name__)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PEAK_S = 5.0
CALM_S = 2.0
"""Of load before, between and after the replacements."""
FLAGS = ("--drain-delay-s=3", "--shutdown-timeout-s=20", "--queue-size=512")


def fake(version: str) -> Version:
    """The real server with an engine of a fixed speed, for machines without a model."""
    return Version("tests.server.fake_server", FLAGS, {"FAKE_VERSION": version, "FAKE_SECONDS": "0.01"})


@pytest.fixture(autouse=True)
def _quiet_and_possible(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "httpx")
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")


async def test_no_request_fails(tmp_path: Path) -> None:
    await roll(fake("1"), fake("2"), photo(), tmp_path)


async def roll(old: Version, new: Version, body: bytes, folder: Path) -> None:
    """Measure the peak, then replace all gateways at half of it."""
    fleet = Fleet(folder)
    async with fleet.running(old), Callers(fleet.http_port, fleet.grpc_port, body) as callers:
        peak = await callers.peak_rate(PEAK_S)
        callers.tally.latencies_s.clear()
        assert callers.tally.failures == {}, fleet.logs()
        stop = asyncio.Event()
        load = asyncio.create_task(callers.at_rate(peak / 2, stop))
        try:
            for number in (1, 2, 3):
                await asyncio.sleep(CALM_S)
                await fleet.replace(number, new)
            await asyncio.sleep(CALM_S)
        finally:
            stop.set()
            await load
        final = await callers.http(), await callers.grpc()
    tally = callers.tally
    p99 = statistics.quantiles(tally.latencies_s, n=100)[98]
    log.info("peak %.0f/s; at half of it %d requests", peak, len(tally.latencies_s))
    log.info("answers %s, failures %s, p99 %.0f ms", dict(tally.answers), dict(tally.failures), p99 * 1e3)
    assert tally.failures == {}, fleet.logs()
    for door in ("http", "grpc"):
        assert len(tally.of(door)) == 2, "both models must have answered"
    assert set(final) <= {model for _, model in tally.answers}
    assert all(model.startswith(new.environ.get("FAKE_VERSION", "")) for model in final)


async def test_failures_are_seen(tmp_path: Path) -> None:
    """A killed gateway takes what it was working on with it, on both doors; callers count that."""
    fleet, slow = Fleet(tmp_path), Version("tests.server.fake_server", FLAGS, {"FAKE_SECONDS": "0.5"})
    async with fleet.running(slow), Callers(fleet.http_port, fleet.grpc_port, photo()) as callers:
        load = asyncio.create_task(callers.peak_rate(PEAK_S))
        await asyncio.sleep(PEAK_S / 2)
        fleet.kill(2)
        await load
        assert {door for door, _ in callers.tally.failures} == {"http", "grpc"}
