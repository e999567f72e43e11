"""Small bodies that ask for much: time of the event loop, memory, an answer that cannot be written."""

import asyncio
import gzip
import json
import time

import pytest

from alexnet_server.bodies import BodyBudget
from tests.server.fakes import FakeEngine, running

INFER = "/v2/models/alexnet/infer"
GZIP = {"content-encoding": "gzip", "content-type": "application/json"}


def document(data: object, shape: tuple[int, ...] = (1, 256, 256, 3), **more: object) -> bytes:
    entry = {"name": "images", "datatype": "UINT8", "shape": shape, "data": data}
    return json.dumps({"inputs": [entry]} | more).encode()


BODIES = {
    "strings": (document(["x" * 300_000, *["a"] * 2000]), 400),
    "strings of the right number": (document(["x" * 3000] * 196_608)[: 2**20], 400),
    "empty lists": (document([[]] * 2_000_000), 413),
    "deep lists": (document(0).replace(b"0}", b"[" * 50_000 + b"]" * 50_000 + b"}"), 400),
    "half a character": (document([1], id="\ud800"), 400),
    "half a character in a name": (document([1], outputs=[{"name": "\ud800"}]), 400),
    "half a character in a datatype": (document([1]).replace(b"UINT8", b"\\ud800"), 400),
    "a long time": (document([1], parameters={"timeout": 10**400}), 400),
    "outputs": (document([0] * 196_608, outputs=[{"name": "features"}] * 50_000), 400),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_hostile_body(name):
    body, status = BODIES[name]
    async with running(FakeEngine()) as server:
        reply = await server.send(INFER, gzip.compress(body), GZIP)
        assert reply.status == status, reply.body
        assert json.loads(reply.body)["code"] == ("invalid_request" if status == 400 else "too_large")
        assert server.engine.batches == []


async def test_the_event_loop_turns_while_bodies_are_inflated_and_parsed():
    """Thirty at once; of 60 MiB each, of which a thousandth is sent."""
    body = gzip.compress(b" " * (60 * 2**20), 9)
    async with running(FakeEngine()) as server:
        work = asyncio.gather(*(server.send(INFER, body, GZIP) for _ in range(30)))
        longest_s, before = 0.0, time.monotonic()
        while not work.done():
            await asyncio.sleep(0.001)
            now = time.monotonic()
            longest_s, before = max(longest_s, now - before), now
        assert {reply.status for reply in await work} <= {413, 429}  # within the budget
    assert longest_s < 1.0  # it was 5.7


async def test_json_is_not_inflated_past_its_own_limit(monkeypatch):
    held, take = [], BodyBudget.take

    def recorded(budget, *counts):
        take(budget, *counts)
        held.append(budget.held_bytes)

    monkeypatch.setattr(BodyBudget, "take", recorded)
    async with running(FakeEngine()) as server:
        reply = await server.send(INFER, gzip.compress(b" " * (60 * 2**20)), GZIP)
        assert (reply.status, json.loads(reply.body)["code"]) == (413, "too_large")
        assert b"larger than 16 MiB; send tensors as binary data" in reply.body
        assert 16 * 2**20 < max(held) < 18 * 2**20


async def test_what_is_inflated_counts_before_it_is_there():
    limits = {"max_photo_bytes": 2**20, "max_body_bytes": 2**20}
    async with running(FakeEngine(), **limits) as server:
        body = gzip.compress(b" " * 2**20)
        reply = await server.send(INFER, body, GZIP)
        assert reply.status == 400  # empty, but read
        replies = await asyncio.gather(*(server.send(INFER, body, GZIP) for _ in range(20)))
        assert {reply.status for reply in replies} <= {400, 429}
