"""Many clients at once, and clients that leave."""

import asyncio

import pytest

from alexnet_server.bodies import BodyBudget
from alexnet_server.errors import Overloaded
from tests.server.fakes import FakeEngine, eventually, fake_model, photo, request_bytes, running

PHOTO = photo()


async def test_500_clients_against_a_queue_of_64_all_get_an_answer():
    async with running(FakeEngine(seconds=0.01), queue_size=64) as server:
        replies = await asyncio.gather(*(server.send("/classify", PHOTO) for _ in range(500)))
        statuses = [reply.status for reply in replies]
        assert set(statuses) <= {200, 429}
        assert statuses.count(200) >= 64
        for reply in replies:
            if reply.status == 429:
                assert int(reply.headers["retry-after"]) >= 1
        assert (await server.send("/classify", PHOTO)).status == 200
        assert server.waiting_views == 0


async def test_a_client_that_disconnects_frees_its_place():
    async with running(FakeEngine(fake_model(), fake_model("alexnet_10crop", "ten", 10))) as server:
        server.engine.gate.clear()
        blocking = asyncio.create_task(server.send("/classify", PHOTO))
        await eventually(server.engine.entered.is_set)
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request_bytes("/classify?views=ten", PHOTO))
        await eventually(lambda: server.waiting_views == 10)
        writer.close()
        took_s = await eventually(lambda: server.waiting_views == 0)
        assert took_s < 1.0
        server.engine.gate.set()
        assert (await blocking).status == 200
        assert [model for model, _ in server.engine.batches] == ["alexnet"]
        metrics = server.classifier.metrics.render().decode()
        assert 'alexnet_requests_total{code="cancelled",door="http",model="alexnet_10crop"} 1.0' in metrics


async def test_a_client_that_leaves_in_the_middle_of_its_upload_costs_nothing():
    async with running(FakeEngine()) as server:
        for cut in (40, 120, 300):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request_bytes("/classify", PHOTO)[:cut])
            await writer.drain()
            writer.close()
        assert (await server.send("/classify", PHOTO)).status == 200
        assert server.waiting_views == 0


def test_large_bodies_leave_room_for_small_ones():
    budget, small = BodyBudget(32 * 2**20), 2**18
    budget.take(31 * 2**20)
    for count, held in ((small + 1, 0), (1, small)):
        with pytest.raises(Overloaded):
            budget.take(count, held)
    for _ in range(4):
        budget.take(small - 1000)
        budget.take(1000, small - 1000)
    assert budget.held_bytes == budget.max_bytes
    with pytest.raises(Overloaded):
        budget.take(1)


async def test_uploads_share_a_memory_budget():
    async with running(FakeEngine(), max_photo_bytes=2**16, max_body_bytes=2**16) as server:
        # Eight bodies of the largest size fit; they arrive but for their last byte.
        writers = []
        for _ in range(8):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request_bytes("/classify", bytes(2**16))[:-1])
            await writer.drain()
            writers.append(writer)
        await asyncio.sleep(0.2)
        reply = await server.send("/classify", PHOTO)
        assert reply.status == 429
        for writer in writers:
            writer.close()
        await asyncio.sleep(0.2)
        assert (await server.send("/classify", PHOTO)).status == 200
