"""A rolling update under load: every gateway is replaced by one with another model; no request fails."""

from __future__ import annotations

import asyncio
import logging
import shutil
import statistics
from pathlib import Path

import pytest

from alexnet_server.models.repository import read_repository
from alexnet_server.models.unpack import unpack
from alexnet_server.photos import PHOTO as GOLDEN_PHOTO
from alexnet_server.preprocess import prepare
from tests.repositories import write_repository
from tests.rolling.fleet import ROOT, Fleet, Version
from tests.rolling.load import Callers

log = logging.getLogger(__name__)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PEAK_S = 5.0
PHOTO = ROOT / "tests" / "data" / "cc0" / "cat.jpg"
CALM_S = 2.0
"""Of load before, between and after the replacements."""
FLAGS = ("--drain-delay-s=3", "--shutdown-timeout-s=20", "--queue-size=512")


@pytest.fixture(autouse=True)
def _quiet_and_possible(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "httpx")
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")


def serving(repository: Path) -> Version:
    """`alexnet-server` with the models of a folder."""
    return Version("alexnet_server", (*FLAGS, f"--model-repository={repository}"), {})


async def test_no_request_fails(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for seed, folder in enumerate((old, new)):
        write_repository(folder, seed=seed, golden=(GOLDEN_PHOTO.name, prepare(GOLDEN_PHOTO.read_bytes())))
        unpack(read_repository(folder), "int8")
    await roll(serving(old), serving(new), tmp_path)


async def roll(old: Version, new: Version, folder: Path) -> None:
    """Measure the peak, then replace all gateways at half of it."""
    fleet = Fleet(folder)
    async with fleet.running(old), Callers(fleet.http_port, fleet.grpc_port, PHOTO.read_bytes()) as callers:
        before = await callers.http()
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
        after = await callers.http(), await callers.grpc()
    tally = callers.tally
    p99 = statistics.quantiles(tally.latencies_s, n=100)[98]
    log.info("peak %.0f/s; at half of it %d requests", peak, len(tally.latencies_s))
    log.info("answers %s, failures %s, p99 %.0f ms", dict(tally.answers), dict(tally.failures), p99 * 1e3)
    assert tally.failures == {}, fleet.logs()
    assert len(set(after)) == 1
    assert after[0] != before
    for door in ("http", "grpc"):
        assert set(tally.of(door)) == {before, after[0]}, "both models must have answered, and no other"


async def test_failures_are_seen(tmp_path: Path) -> None:
    """A killed gateway takes what it was working on with it, on both doors; callers count that."""
    fleet, slow = Fleet(tmp_path), Version("tests.server.fake_server", FLAGS, {"FAKE_SECONDS": "0.5"})
    async with fleet.running(slow), Callers(fleet.http_port, fleet.grpc_port, PHOTO.read_bytes()) as callers:
        load = asyncio.create_task(callers.peak_rate(PEAK_S))
        await asyncio.sleep(PEAK_S / 2)
        fleet.kill(2)
        await load
        assert {door for door, _ in callers.tally.failures} == {"http", "grpc"}
