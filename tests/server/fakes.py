"""An engine whose answers, speed and failures a test decides; servers around it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from alexnet_server.access.keys import load_keys
from alexnet_server.access.tls import load_certificate
from alexnet_server.engines import Images, Model, Outputs
from alexnet_server.engines.labels import Label
from alexnet_server.http.app import create_app
from alexnet_server.http.server import HttpDoor
from alexnet_server.listening import listen
from alexnet_server.loading import batch
from alexnet_server.service import Classifier
from alexnet_server.settings import Settings
from alexnet_server.telemetry.metrics import Metrics

CLASSES = 10


def fake_model(name: str = "alexnet", view_mode: str = "center", views: int = 1, **changes: Any) -> Model:
    labels = tuple(Label(i, f"n{i:08d}", f"class {i}") for i in range(CLASSES))
    about = {
        "name": name,
        "version": "1",
        "labels": labels,
        "views": views,
        "view_mode": view_mode,
        "max_batch_size": 32,
        "features": 4096,
        "platform": "onnxruntime_onnx",
        "device": "cpu",
        "about": {"precision": "fp32"},
    }
    return Model(**(about | changes))


class FakeEngine:
    """Calls a flat image of value v class v % 10. Closed `gate`: it waits. `fail(images)` may raise."""

    device = "cpu"

    def __init__(
        self, *models: Model, seconds: float = 0.0, shares_cores: bool = False, concurrency: int = 1
    ) -> None:
        self.concurrency = concurrency
        self.models = {model.name: model for model in models or (fake_model(),)}
        self.seconds = seconds
        self.shares_cores = shares_cores
        self.enough_views: int | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fail: Callable[[Images], None] = lambda images: None
        self.batches: list[tuple[str, list[int]]] = []
        self.alone: list[bool] = []
        self.closed = False

    def infer(self, model: str, images: Images, *, features: bool, alone: bool = True) -> Outputs:
        self.alone.append(alone)
        assert images.dtype == np.uint8
        assert images.shape[1:] == (256, 256, 3)
        values = images[:, 128, 128, 0].astype(int)
        self.batches.append((model, values.tolist()))
        self.entered.set()
        if self.seconds:
            time.sleep(self.seconds)
        self.gate.wait()
        self.fail(images)
        probabilities = np.full((len(images), CLASSES), 0.01, np.float32)
        probabilities[np.arange(len(images)), values % CLASSES] = 0.91
        hidden = np.repeat(values[:, None], 4096, axis=1).astype(np.float32) if features else None
        return Outputs(probabilities, hidden)

    def warm_up(self) -> dict[str, tuple[int, float]]:
        return {name: (8, self.seconds) for name in self.models}

    def close(self) -> None:
        self.closed = True


def flat_image(value: int) -> Images:
    return np.full((256, 256, 3), value, np.uint8)


def photo(value: int = 7, form: str = "PNG", size: tuple[int, int] = (300, 280)) -> bytes:
    """A flat gray photo, whose class is value % 10 when stored without loss."""
    buffer = BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, form)
    return buffer.getvalue()


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)


@dataclass
class Running:
    """A server under test, in the test's own event loop, on a real socket."""

    port: int
    classifier: Classifier
    engine: FakeEngine

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def waiting_views(self) -> int:
        return int(self.classifier._queue_views())

    async def send(self, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Reply:
        return await send(self.port, path, body, headers)


@asynccontextmanager
async def running(engine: FakeEngine, *, load: bool = True, **changes: Any) -> AsyncIterator[Running]:
    settings = Settings(**changes)
    classifier = Classifier(settings, Metrics(), decode_threads=2)

    if load:
        await classifier.load(lambda: batch(engine, settings, classifier.metrics))
        engine.batches.clear()
        engine.entered.clear()
    app = create_app(classifier, settings, load_keys(settings))
    door = HttpDoor(app, settings, load_certificate(settings))
    sockets = listen("127.0.0.1", 0, "--http-port")
    serving = asyncio.create_task(door.serve(sockets))
    while not door.started:
        await asyncio.sleep(0.01)
    try:
        yield Running(sockets[0].getsockname()[1], classifier, engine)
    finally:
        engine.gate.set()
        door.stop()
        await serving
        await classifier.close()


async def send(port: int, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Reply:
    """One POST on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request_bytes(path, body, headers))
        await writer.drain()
        return await read_reply(reader)
    finally:
        writer.close()


def request_bytes(path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    body = await reader.readexactly(int(headers["content-length"]))
    return Reply(int(head[0].split()[1]), headers, body)


async def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> float:
    """Wait until `condition` holds; returns the seconds that took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, "it did not come to pass"
        await asyncio.sleep(0.002)
    return time.monotonic() - start
