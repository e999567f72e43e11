"""Callers of both doors, who count what they get."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import httpx

from alexnet_client.pb import classifier_pb2
from alexnet_client.pb.classifier_pb2_grpc import ClassifierStub

TIMEOUT_S = 20.0
Call = Callable[[], Awaitable[str]]
"""One request; the answer's model version and best label, so that one model is told from another."""


@dataclass
class Tally:
    """What callers got."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(door, version and best label) to how often."""
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(door, what went wrong) to how often."""
    latencies_s: list[float] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.answers.total() + self.failures.total()

    def of(self, door: str) -> Counter[str]:
        """Answers of one door, by model."""
        return Counter({model: count for (through, model), count in self.answers.items() if through == door})


class Callers:
    """An HTTP and a gRPC client, neither of which tries anything twice.

    Args:
        http_port: Of the balancer.
        grpc_port: Of the balancer.
        photo: What they send.
    """

    def __init__(self, http_port: int, grpc_port: int, photo: bytes) -> None:
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{http_port}", limits=limits, timeout=TIMEOUT_S
        )
        self._channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{grpc_port}", options=[("grpc.enable_retries", 0)]
        )
        self._classifier = ClassifierStub(self._channel)
        self._photo = photo
        self.tally = Tally()

    async def __aenter__(self) -> Callers:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()
        await self._channel.close()

    async def http(self) -> str:
        answer = await self._http.post("/classify", content=self._photo)
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code} {answer.text[:200]}")
        body = answer.json()
        return f"{body['version']} {body['predictions'][0]['label']}"

    async def grpc(self) -> str:
        request = classifier_pb2.ClassifyRequest(image=classifier_pb2.Image(encoded=self._photo))
        answer = await self._classifier.Classify(request, timeout=TIMEOUT_S)
        return f"{answer.version} {answer.predictions[0].label}"

    async def _count(self, door: str, call: Call) -> None:
        began = time.monotonic()
        try:
            self.tally.answers[door, await call()] += 1
        except grpc.aio.AioRpcError as error:
            self.tally.failures[door, f"{error.code().name}: {error.details()}"] += 1
        except (httpx.HTTPError, RuntimeError) as error:
            self.tally.failures[door, f"{type(error).__name__}: {error}"] += 1
        self.tally.latencies_s.append(time.monotonic() - began)

    async def peak_rate(self, seconds: float, callers: int = 24) -> float:
        """Requests per second, both doors together, of callers who each wait for their answer."""
        before, until = self.tally.total, time.monotonic() + seconds

        async def keep_calling(door: str, call: Call) -> None:
            while time.monotonic() < until:
                await self._count(door, call)

        doors = itertools.cycle((("http", self.http), ("grpc", self.grpc)))
        await asyncio.gather(*(keep_calling(*next(doors)) for _ in range(callers)))
        return (self.tally.total - before) / seconds

    async def at_rate(self, rate: float, stop: asyncio.Event) -> None:
        """Requests at even intervals, whatever becomes of them, door by door, until told to stop."""
        began, running = time.monotonic(), set()
        for number in itertools.count():
            if stop.is_set():
                break
            door, call = (("http", self.http), ("grpc", self.grpc))[number % 2]
            task = asyncio.create_task(self._count(door, call))
            running.add(task)
            task.add_done_callback(running.discard)
            await asyncio.sleep(max(0.0, began + (number + 1) / rate - time.monotonic()))
        await asyncio.gather(*running)
