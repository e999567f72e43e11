"""What a user writes; `test_types` holds that it passes a strict type checker. Never run."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
from PIL import Image

import alexnet_client
from alexnet_client import AlexNetError, AsyncClient, Client, Photo

said: list[object] = []
path = Path("cat.jpg")
array = np.zeros((256, 256, 3), np.uint8)
picture: Image.Image = Image.open(path)

everything: list[Photo] = [
    "cat.jpg",
    path,
    path.read_bytes(),
    bytearray(b"..."),
    memoryview(b"..."),
    io.BytesIO(b"..."),
    path.open("rb"),
    array,
    picture,
    Image.new("RGB", (8, 8)),
]


def report(progress: alexnet_client.Progress) -> None:
    said.append((progress.done, progress.total))


with Client("localhost:8081") as client:
    for photo in everything:
        label: str = client.classify(photo, 3, "ten").top.label
    client.classify(picture)
    client.classify(array, views="dense")
    for outcome in client.classify_many(path.glob("*.jpg"), progress=report):
        if isinstance(outcome, AlexNetError):
            said.append((outcome.code, outcome.retry_after_s))
        else:
            said.append(outcome.top.score + 1.0)
    list(client.classify_many([picture]))
    list(client.classify_many([array]))
    said.append(sum(client.features(picture, "dense")))
    said.append([model.name for model in client.models()])
    scores: dict[str, float] = {each.label: each.score for each in client.classify(picture)}


async def photos() -> AsyncIterator[Photo]:
    yield picture


async def main() -> None:
    async with AsyncClient() as client:
        await client.classify(picture)
        async for outcome in client.classify_many(photos()):
            said.append(outcome)


asyncio.run(main())
