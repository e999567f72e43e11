"""`classify_many` while the server is killed and started again."""

import asyncio
import signal
import threading
import time

import numpy as np
import pytest

from alexnet_client import AsyncClient, Client
from tests.processes import server_process

COUNT = 800


def photo(number):
    """Its class, of the fake engine's ten, is its number's last digit."""
    return np.full((256, 256, 3), number % 250, np.uint8)


def blocking(target, at):
    with Client(target) as client:
        found = []
        for outcome in client.classify_many((photo(number) for number in range(COUNT)), window=128):
            found.append(outcome)
            at(len(found))
        return found


def asynchronous(target, at):
    async def run():
        async with AsyncClient(target) as client:
            found = []
            async for outcome in client.classify_many((photo(number) for number in range(COUNT)), window=128):
                found.append(outcome)
                at(len(found))
            return found

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("classify", "number"),
    [
        (blocking, signal.SIGKILL),
        pytest.param(blocking, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(asynchronous, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(asynchronous, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_every_photo_ends_with_one_result_through_a_restart(tmp_path, classify, number):
    log = tmp_path / "log"
    with server_process(log, "--drain-delay-s=0", restarts=True, FAKE_SECONDS="0.02") as server:
        restarts = []

        def restart():
            server.end(number)
            time.sleep(0.5)
            server.start()

        def at(count):
            if count == COUNT // 2:
                restarts.append(threading.Thread(target=restart))
                restarts[0].start()

        found = classify(server.target, at)
        restarts[0].join()
    assert [each.top.index for each in found] == [number % 250 % 10 for number in range(COUNT)]
