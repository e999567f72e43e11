"""Bodies on their way: whole at the end, in memory that is given back, and few at a time."""

import asyncio
import random
import subprocess
import sys

import pytest

from alexnet_server.http import pieces
from alexnet_server.http.pieces import Flow, Gathered, Pieces, Turns
from tests.server.fakes import FakeEngine, photo, running


@pytest.mark.parametrize("count", [0, 1, 2**18 - 1, 2**18, 2**18 + 1, 2**20, 3 * 2**20 + 7])
@pytest.mark.parametrize("longest", [1000, 2**17, 2**21])
def test_what_was_gathered_is_what_came(count, longest):
    body, gathered, done = random.Random(count).randbytes(count), Gathered(), 0
    lengths = random.Random(longest)
    while done < count:
        piece = body[done : done + lengths.randint(1, longest)]
        gathered.add(piece)
        done += len(piece)
    assert len(gathered) == count
    assert gathered.whole() == body


def test_pieces_that_are_fetched_one_by_one_are_not_copied():
    waiting, piece = Pieces(), bytes(2**16)
    waiting += piece
    assert bytes(waiting) is piece
    waiting += b"more"
    assert (len(waiting), bytes(waiting)) == (2**16 + 4, piece + b"more")


PROGRAM = """
import re
from pathlib import Path
from alexnet_server.http.pieces import Gathered
from alexnet_server.machine import configure_allocator

def mebibytes(word):
    return int(re.search(word + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

configure_allocator()
before = mebibytes("VmRSS")
uploads = [Gathered() for _ in range(20)]
for _ in range(9 * 16):  # of 64 KiB, which come by turns
    for upload in uploads:
        upload.add(bytearray(2**16))
photos = []
while uploads:
    photos.append(uploads.pop().whole())
print(mebibytes("VmHWM") - before)
"""


def test_uploads_that_end_give_back_what_their_pieces_took():
    """They lay between each other's in the heap, which kept all of it: twice the memory."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert 180 <= float(done.stdout) < 230


class Transport:
    """Of a connection that may be read from or not."""

    closing = False

    def __init__(self, resumed):
        self.resumed = resumed

    def is_closing(self):
        return self.closing

    def pause_reading(self):
        pass

    def resume_reading(self):
        self.resumed.append(self)


async def test_few_uploads_go_on_in_each_turn_of_the_event_loop_and_each_has_its_own():
    turns, resumed = Turns(), []
    flows = [Flow(Transport(resumed), turns) for _ in range(20)]
    for flow in flows:
        flow.pause_reading()
        flow.resume_reading()
        flow.resume_reading()
    flows[10]._transport.closing = True
    counts = []
    while turns._line or not counts:
        counts.append(len(resumed))
        await asyncio.sleep(0)
    assert counts == [8, 15]
    assert resumed == [flow._transport for flow in flows if flow is not flows[10]]
    assert not any(flow.read_paused for flow in flows if flow is not flows[10])
    late = Flow(Transport(resumed), turns)
    late.pause_reading()
    await asyncio.sleep(0)
    late.resume_reading()  # nobody is before it
    assert resumed[-1] is late._transport


async def test_connections_take_their_turns(monkeypatch):
    """Twenty uploads of two megabytes: all at once would fill a turn with five."""
    loop, current, went_on, go_on = asyncio.get_running_loop(), 0, [], Flow.go_on

    def count():
        nonlocal current, ticking
        current += 1
        ticking = loop.call_soon(count)

    def recorded(flow):
        went_on.append(current)
        go_on(flow)

    monkeypatch.setattr(Flow, "go_on", recorded)
    async with running(FakeEngine()) as server:
        ticking = loop.call_soon(count)
        body = photo() + bytes(2**21)
        replies = await asyncio.gather(*(server.send("/classify", body) for _ in range(20)))
        ticking.cancel()
    assert [reply.status for reply in replies] == [200] * 20
    assert len(went_on) >= 20
    assert max(went_on.count(each) for each in went_on) <= pieces._UPLOADS
