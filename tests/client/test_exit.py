"""A program that has used the client ends, and no finished call outlives its photo."""

import asyncio
import gc
import subprocess
import sys
import time

import grpc
import pytest

from alexnet_client import AsyncClient, Client
from tests.client.conftest import Failure
from tests.processes import ROOT

BLOCKING = """
import sys
from alexnet_client import Client
client = Client(sys.argv[1])
labels = [outcome.top.label for outcome in client.classify_many([b"%d" % number for number in range(9)])]
assert labels == [str(number) for number in range(9)], labels
"""
LEFT = """
import sys
from alexnet_client import Client
outcomes = Client(sys.argv[1]).classify_many(b"%d" % number for number in range(10**9))
assert next(outcomes).top.label == "0"
"""
ASYNCIO = """
import asyncio, sys
from alexnet_client import AsyncClient
async def main():
    async with AsyncClient(sys.argv[1]) as client:
        photos = [b"%d" % number for number in range(9)]
        return [outcome.top.label async for outcome in client.classify_many(photos)]
assert asyncio.run(main()) == [str(number) for number in range(9)]
"""
SAY_SO = """
print("done", flush=True)
"""
AT_A_TIME = 8


@pytest.mark.parametrize("program", [BLOCKING, LEFT, ASYNCIO], ids=["blocking", "left half way", "asyncio"])
@pytest.mark.parametrize(
    "count", [AT_A_TIME, pytest.param(400, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_a_program_that_has_classified_ends(fake, program, count):
    command = [sys.executable, "-c", program + SAY_SO, fake.address]
    running = []
    for number in range(count + AT_A_TIME):
        if number < count:
            running.append(
                subprocess.Popen(
                    command, cwd=ROOT / "clients", stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
            )
        if len(running) > AT_A_TIME or number >= count:
            ends(running.pop(0))


def ends(process):
    """It gets all the time it wants to do its work, and then a minute to end."""
    with process:
        try:
            said = process.stdout.readline()
            _, complaints = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (said, process.returncode, complaints) == (b"done\n", 0, b"")


@pytest.fixture
def without_gc():
    """What lives on now is held by something, or by a cycle."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def calls_alive():
    """Of either kind of client."""
    kinds = ("_MultiThreadedRendezvous", "UnaryUnaryCall")
    return [type(each).__name__ for each in gc.get_objects() if type(each).__name__ in kinds]


def refuse_some(attempt):
    return (
        Failure(grpc.StatusCode.INVALID_ARGUMENT, "bad", x_error_code="undecodable")
        if attempt % 3 == 0
        else None
    )


def test_no_finished_call_is_alive(fake, without_gc):
    fake.fail = refuse_some
    with Client(fake.address) as client:
        outcomes = list(client.classify_many([b"a photo"] * 30))
        assert len(outcomes) == 30
        settled(lambda: not calls_alive())


def test_no_finished_asynchronous_call_is_alive(fake, without_gc):
    fake.fail = refuse_some

    async def run():
        async with AsyncClient(fake.address) as client:
            outcomes = [outcome async for outcome in client.classify_many([b"a photo"] * 30)]
            assert len(outcomes) == 30
            await asyncio.sleep(0)
            assert not calls_alive()

    asyncio.run(run())


def settled(condition):
    """gRPC's thread may take a moment to let go."""
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, calls_alive()
        time.sleep(0.01)
