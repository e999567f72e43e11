"""What hangs in a library does not keep the process from ending."""

import subprocess
import sys
import threading
import time

import pytest

from alexnet_server.threads import DaemonThreads

HANGING = """
import asyncio, threading, time
import numpy as np
from alexnet_server import preprocess
from alexnet_server.batching.admission import Admission
from alexnet_server.batching.batcher import Batcher
from alexnet_server.decoding import Decoders
from tests.server.fakes import FakeEngine, photo

begun = threading.Event()

def hang(*_):
    begun.set()
    time.sleep(600)

async def engine():
    engine = FakeEngine()
    engine.fail = hang
    batcher = Batcher(engine, Admission(64), engine_timeout_s=0.1)
    with batcher.reserve(batcher.models["alexnet"], time.monotonic() + 60) as place:
        task = asyncio.create_task(place.infer(np.zeros((256, 256, 3), np.uint8)))
        await asyncio.to_thread(begun.wait)
        await batcher.close()
        assert not engine.closed, "it is in use"
        task.cancel()

async def decoder():
    preprocess.finish = hang
    decoders = Decoders(1, max_bytes=10**6, max_pixels=10**6, memory_bytes=10**6)
    task = asyncio.create_task(decoders.decode(photo()))
    await asyncio.to_thread(begun.wait)
    decoders.close()
    task.cancel()
"""


@pytest.mark.parametrize("what", ["engine", "decoder"])
def test_what_hangs_does_not_delay_the_exit(what):
    program = f"{HANGING}\nasyncio.run({what}())\nprint('end', flush=True)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "end\n"
        began = time.monotonic()
        assert process.wait(60) == 0
        assert time.monotonic() - began < 30


def test_what_has_not_begun_is_refused_at_the_end():
    threads = DaemonThreads(1, "test")
    begun, end = threading.Event(), threading.Event()
    first = threads.submit(lambda: begun.set() or end.wait(5))
    rest = [threads.submit(int) for _ in range(3)]
    begun.wait(5)
    threads.shutdown(cancel_futures=True)
    assert [type(each.exception(0)) for each in rest] == [RuntimeError] * 3
    end.set()
    assert first.result(5) is True


def test_what_was_given_is_finished_first():
    threads = DaemonThreads(1, "test")
    given = [threads.submit(pow, 2, power) for power in range(4)]
    threads.shutdown()
    assert [each.result(5) for each in given] == [1, 2, 4, 8]
    with pytest.raises(RuntimeError):
        threads.submit(int)
