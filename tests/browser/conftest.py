"""A headless Chromium and the real server on a socket, its engine replaced by one that knows the answer."""

import asyncio
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from alexnet_server.engines import Outputs
from alexnet_server.engines.labels import Label
from alexnet_server.models.unpack import default_repository
from alexnet_server.occlusion import GREY
from tests.browser.chromium import NoChromium, open_chromium, visit
from tests.server.fakes import FakeEngine, fake_model, running

LABELS = ("Egyptian cat", "tabby, tabby cat", "cougar, puma, catamount", "lynx, catamount", "sombrero")
SCORES = (0.8312, 0.104, 0.0387, 0.0121, 0.0004)
MODELS = {"alexnet": "center", "alexnet_10crop": "ten", "alexnet_dense": "dense"}


EYES = (slice(144, 192), slice(24, 72))
"""Rows and columns of the photo: one place of the grey square, row 6 and column 1 of the map."""


OPERATORS = {"conv1": 0.002, "conv1.lrn": 0.0005, "conv2": 0.00125, "fc8": 0.0001}
"""Seconds, as the engine's profiler tells them."""


class CatEngine(FakeEngine):
    """Sees the same cat in every photo; with its eyes covered, a tabby."""

    def __init__(self):
        labels = tuple(Label(index, f"n{index:08}", words) for index, words in enumerate(LABELS))
        about = {"labels": labels, "folder": default_repository() / "alexnet", "profile": lambda: OPERATORS}
        about["about"] = {"precision": "fp32", "licence": "For teaching only."}
        super().__init__(*(fake_model(name, views, **about) for name, views in MODELS.items()))

    def infer(self, model, images, *, features, alone=True):
        outputs = super().infer(model, images, features=features)
        scores = np.tile(np.float32(SCORES), (len(images), 1))
        covered = (images[(slice(None), *EYES)] == GREY).all(axis=3).mean(axis=(1, 2))
        lost = np.where(covered > 0.4, covered, 0) * SCORES[0]
        scores[:, 0] -= lost
        scores[:, 1] += lost
        return Outputs(scores, outputs.features)


class Served:
    """A server in a thread of its own; tests set `problem`, an exception to answer with."""

    def __init__(self, engine, running_server):
        self.engine, self.url, self.classifier = engine, f"{running_server.url}/", running_server.classifier
        self._models, self._classify = self.classifier.models, self.classifier.classify
        self.classifier.classify = self._listen
        self.reset()

    def reset(self):
        self.problem, self.asked = None, []
        self.engine.gate.set()
        self.show(*MODELS)

    def show(self, *names):
        self.classifier.models = {name: self._models[name] for name in names}

    async def _listen(self, photo, model, **more):
        self.asked.append((photo, model.view_mode))
        if self.problem is not None:
            raise self.problem
        return await self._classify(photo, model, **more)


@contextmanager
def served(**settings):
    started, stop = threading.Event(), asyncio.Event()
    found = {}

    async def serve():
        engine = CatEngine()
        try:
            async with running(engine, **settings) as server:
                found.update(server=Served(engine, server), loop=asyncio.get_running_loop())
                started.set()
                await stop.wait()
        finally:
            started.set()  # without a server when it could not start

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    started.wait()
    try:
        yield found["server"]
    finally:
        found["loop"].call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture(scope="session")
def shared_server():
    with served() as server:
        yield server


@pytest.fixture
def server(shared_server):
    shared_server.reset()
    return shared_server


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """One browser for the session, with an empty profile."""
    try:
        browser = open_chromium(tmp_path_factory.mktemp("chromium"))
    except NoChromium as missing:
        pytest.skip(str(missing))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium, server):
    """The page, freshly loaded on a desktop; afterwards nothing may have complained on the console."""
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chromium.set_window_size(1280, 900)
    visit(chromium, server.url)
    chromium.get_log("browser")
    yield chromium
    complaints = [line["message"] for line in chromium.get_log("browser")]
    assert not [line for line in complaints if "status of 4" not in line and "status of 5" not in line]
