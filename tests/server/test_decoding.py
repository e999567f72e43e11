"""Decoding threads: many huge photos at once take bounded memory, and small ones do not wait for them."""

import asyncio
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from alexnet_server import decoding, preprocess
from alexnet_server.decoding import Decoders
from alexnet_server.errors import TooLarge, Unavailable
from tests import hostile
from tests.processes import server_process
from tests.server.fakes import eventually, photo, send

SMALL = photo(7)
LARGE = photo(3, size=(600, 500))
LIMITS = {"max_bytes": 2**20, "max_pixels": 10**6}


class Gate:
    """`preprocess.finish` that waits with large photos, and counts them."""

    def __init__(self, monkeypatch):
        self.open, self.inside, self.begun = threading.Event(), 0, 0
        self._finish = preprocess.finish
        self._lock = threading.Lock()
        monkeypatch.setattr(preprocess, "finish", self)
        monkeypatch.setattr(decoding, "_SMALL_BYTES", 500_000)

    def __call__(self, opened):
        if opened.image.size != (600, 500):
            return self._finish(opened)
        with self._lock:
            self.inside, self.begun = self.inside + 1, self.begun + 1
        self.open.wait()
        with self._lock:
            self.inside -= 1
        return self._finish(opened)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


async def test_small_photos_do_not_wait_for_large_ones(gate):
    decoders = Decoders(2, memory_bytes=10**9, **LIMITS)
    large = [asyncio.create_task(decoders.decode(LARGE)) for _ in range(8)]
    await eventually(lambda: gate.inside == 2)
    for _ in range(20):
        assert (await decoders.decode(SMALL)).image[0, 0, 0] == 7
    gate.open.set()
    assert [decoded.image[0, 0, 0] for decoded in await asyncio.gather(*large)] == [3] * 8
    decoders.close()


@pytest.mark.parametrize(("memory_bytes", "together"), [(2_500_000, 2), (1, 1)])
async def test_large_photos_share_memory(gate, memory_bytes, together):
    """Each takes 600 x 500 x 4 bytes; one alone may take more than there is."""
    decoders = Decoders(4, memory_bytes=memory_bytes, **LIMITS)
    large = [asyncio.create_task(decoders.decode(LARGE)) for _ in range(8)]
    await eventually(lambda: gate.inside == together)
    await asyncio.sleep(0.1)
    assert gate.inside == together
    gate.open.set()
    await asyncio.gather(*large)
    assert gate.begun == 8
    decoders.close()


async def test_those_who_left_are_not_decoded(gate):
    decoders = Decoders(4, memory_bytes=1, **LIMITS)
    large = [asyncio.create_task(decoders.decode(LARGE)) for _ in range(8)]
    await eventually(lambda: gate.inside == 1)
    for task in large:
        task.cancel()
    await asyncio.gather(*large, return_exceptions=True)
    gate.open.set()
    assert (await decoders.decode(LARGE)).image[0, 0, 0] == 3
    assert gate.begun == 2
    decoders.close()


async def test_those_who_wait_are_told_of_the_end(gate):
    decoders = Decoders(2, memory_bytes=1, **LIMITS)
    large = [asyncio.create_task(decoders.decode(LARGE)) for _ in range(2)]
    await eventually(lambda: gate.inside == 1)
    decoders.close()
    done, _ = await asyncio.wait(large, return_when=asyncio.FIRST_COMPLETED, timeout=5)
    (refused,) = done
    assert isinstance(refused.exception(), Unavailable)
    gate.open.set()
    await asyncio.gather(*large, return_exceptions=True)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_bytes": 100}, ("more than the 100 allowed", "--max-photo-bytes")),
        ({"max_pixels": 1000}, ("300 x 280 = 84,000 pixels", "1,000 allowed", "--max-pixels")),
    ],
)
async def test_what_is_too_large_is_told_with_its_setting(limits, words):
    decoders = Decoders(1, memory_bytes=1, **LIMITS | limits)
    with pytest.raises(TooLarge) as refusal:
        await decoders.decode(SMALL)
    assert all(word in refusal.value.message for word in ("scale it down", *words))
    decoders.close()


async def test_a_damaged_large_photo_gives_its_memory_back(gate):
    gate.open.set()
    decoders = Decoders(2, memory_bytes=1, **LIMITS)
    with pytest.raises(decoding.PHOTO_ERRORS["undecodable"]):
        await decoders.decode(LARGE[:-40])
    assert (await asyncio.wait_for(decoders.decode(LARGE), 10)).image[0, 0, 0] == 3
    decoders.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_eight_huge_uploads_at_once(tmp_path):
    """Ten megapixels with alpha, 41 MB each once decoded: before, 130 MB each, and all at once."""
    row = np.linspace(0, 255, 3400, dtype=np.uint8)
    image = Image.fromarray(np.broadcast_to(row, (3000, 3400)).copy()).convert("RGBA")
    data = hostile.saved(image, "PNG", compress_level=1)
    flags = ("--decode-threads=8", f"--decode-memory-bytes={2**26}", "--request-timeout-s=120")
    with server_process(tmp_path / "log", *flags) as server:

        async def at_once(*photos):
            return await asyncio.gather(*(send(server.http_port, "/classify", one) for one in photos))

        asyncio.run(at_once(*[SMALL] * 16))
        before = server.peak_bytes
        replies = asyncio.run(at_once(*[data] * 8))
        assert [reply.status for reply in replies] == [200] * 8
        assert server.peak_bytes - before < 160 * 2**20


async def test_decoders_that_hang_are_a_problem(gate):
    """Large photos on all their threads; the small ones' are free, and large ones would wait for ever."""
    decoders = Decoders(2, memory_bytes=10**9, stuck_s=0.1, **LIMITS)
    first = asyncio.create_task(decoders.decode(LARGE))
    await eventually(lambda: gate.inside == 1)
    await asyncio.sleep(0.2)
    assert decoders.problem() is None  # another thread is free
    second = asyncio.create_task(decoders.decode(LARGE))
    await eventually(lambda: gate.inside == 2)
    assert decoders.problem() is None
    await eventually(lambda: decoders.problem() is not None)
    first.cancel()  # whether or not anybody still waits
    gate.open.set()
    await second
    await eventually(lambda: decoders.problem() is None)
    decoders.close()
