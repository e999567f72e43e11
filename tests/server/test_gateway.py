"""The gateway before a server that batches by itself, which a fake stands for here."""

import asyncio
import time

import numpy as np
import pytest

from alexnet_server.batching.admission import Admission
from alexnet_server.batching.gateway import Gateway
from alexnet_server.engines import Outputs
from alexnet_server.errors import Overloaded, Unavailable
from tests.server.fakes import eventually, fake_model, flat_image


class FakeRemote:
    """Says what `wrong` holds, answers when `gate` is open, and keeps what it was asked."""

    device = "cpu"

    def __init__(self):
        self.models = {"alexnet": fake_model()}
        self.gate, self.wrong, self.asked, self.closed = asyncio.Event(), None, [], False
        self.gate.set()

    async def infer(self, model, images, *, features, timeout_s):
        self.asked.append((model, images.shape, features, timeout_s))
        await self.gate.wait()
        probabilities = np.zeros((1, 10), np.float32)
        probabilities[0, images[0, 0, 0, 0]] = 1
        return Outputs(probabilities, np.ones((1, 4096), np.float32) if features else None)

    async def problem(self):
        if isinstance(self.wrong, Exception):
            raise self.wrong
        return self.wrong

    async def close(self):
        self.closed = True


@pytest.fixture
async def remote():
    return FakeRemote()


@pytest.fixture
async def gateway(remote):
    gateway = Gateway(remote, Admission(2), probe_interval_s=0.01)
    yield gateway
    await gateway.close()
    assert remote.closed


async def ask(gateway, value, **options):
    with gateway.reserve(gateway.models["alexnet"], time.monotonic() + 9) as place:
        return await place.infer(flat_image(value), **options)


async def test_a_row_passes_through(gateway, remote):
    row = await ask(gateway, 3, features=True)
    assert row.probabilities.argmax() == 3
    assert row.features.shape == (4096,)
    assert row.waited_s == 0.0
    ((model, shape, features, timeout_s),) = remote.asked
    assert (model, shape, features) == ("alexnet", (1, 256, 256, 3), True)
    assert 0 < timeout_s <= 9
    assert (await ask(gateway, 4)).features is None
    assert gateway.admission.seconds_per_view("alexnet") > 0


async def test_what_is_under_way_is_bounded_and_leaving_frees_the_place(gateway, remote):
    remote.gate.clear()
    tasks = [asyncio.create_task(ask(gateway, value)) for value in (1, 2)]
    await eventually(lambda: len(remote.asked) == 2)
    with pytest.raises(Overloaded):
        await ask(gateway, 3)
    tasks[0].cancel()
    await eventually(lambda: gateway.admission.waiting_views == 1)
    remote.gate.set()
    assert (await tasks[1]).probabilities.argmax() == 2
    assert gateway.admission.waiting_views == 0


async def test_the_probe_tells_whether_the_server_works(gateway, remote):
    await eventually(lambda: gateway.problem() is None)
    remote.wrong = "its stub died"
    await eventually(lambda: gateway.problem() == "its stub died")
    remote.wrong = RuntimeError("no")
    await eventually(lambda: gateway.problem() == "the probe of the engine failed")


async def test_a_closed_gateway_takes_nothing(remote):
    gateway = Gateway(remote, Admission(2))
    assert gateway.problem() == "the engine has not answered yet"
    await gateway.close()
    with pytest.raises(Unavailable):
        await ask(gateway, 1)
