"""`alexnet-server --engine triton` as a child process, and 32 clients that ask it without pause."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.triton.triton_process import free_ports

CLIENTS = 32
DEADLINE_S = 5.0
GRACE_S = 2.0
PAUSE_S = 0.05  # after an error; without one, 32 clients in a loop of refusals measure nothing but each other
CODES = {429: "overloaded", 503: "unavailable", 504: "deadline_exceeded"}


class GatewayProcess:
    """The server on ports of its own."""

    def __init__(self, triton_url: str, repository: Path, log: Path, arguments: Sequence[str] = ()) -> None:
        http_port, grpc_port = free_ports(2)
        self.url = f"http://127.0.0.1:{http_port}"
        self.grpc_url = f"127.0.0.1:{grpc_port}"
        self.log = log
        command = [
            *(sys.executable, "-m", "alexnet_server"),
            *("--engine", "triton", "--triton-url", triton_url, "--model-repository", str(repository)),
            *("--http-port", str(http_port), "--grpc-port", str(grpc_port), *arguments),
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")}
        with log.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)

    def ready(self) -> bool:
        """What /readyz says."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def wait(self, ready: bool = True, timeout_s: float = 60.0) -> float:
        """Seconds until it is ready, or not ready."""
        started = time.monotonic()
        while self.ready() is not ready:
            assert self.process.poll() is None, f"the gateway ended\n{self.log.read_text()[-4000:]}"
            assert time.monotonic() - started < timeout_s, f"no change\n{self.log.read_text()[-4000:]}"
            time.sleep(0.05)
        return time.monotonic() - started

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


@dataclass
class Load:
    """Clients in a closed loop, who check every answer.

    Args:
        url: Of the gateway.
        answers: The right answer to each photo, as index and score of its best label; several where a photo
            may be answered by several versions of the model.
    """

    url: str
    answers: Mapping[bytes, Sequence[tuple[int, float]]]
    query: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: str = ""
    """What the slowest answer was, and where the server says its time went."""
    lag_s: float = 0.0
    """Longest time that /livez took, which does nothing: what a busy machine adds to every answer."""
    last_ok: float = 0.0
    """`time.monotonic` of the newest right answer."""

    async def __aenter__(self) -> Load:
        self._stopping = False
        # One client with 32 connections: making a client takes httpx long, for certificates alone.
        limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
        self._http = httpx.AsyncClient(timeout=60, limits=limits, verify=False, trust_env=False)
        self._watcher = httpx.AsyncClient(timeout=60, verify=False, trust_env=False)
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]
        self._tasks.append(asyncio.create_task(self._watch_lag()))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)
        await self._http.aclose()
        await self._watcher.aclose()

    async def for_(self, seconds: float) -> None:
        """Let it run."""
        await asyncio.sleep(seconds)

    async def until_ok(self, timeout_s: float) -> float:
        """Seconds until the next right answer."""
        started = time.monotonic()
        while self.last_ok <= started:
            assert time.monotonic() - started < timeout_s, f"no right answer; {self.counts}"
            await asyncio.sleep(0.01)
        return self.last_ok - started

    async def _client(self, number: int) -> None:
        photos, turn = list(self.answers), number
        while not self._stopping:
            turn += 1
            if not await self._ask(photos[turn % len(photos)]):
                await asyncio.sleep(PAUSE_S)

    async def _watch_lag(self) -> None:
        while not self._stopping:
            started = time.monotonic()
            await asyncio.sleep(PAUSE_S)  # counted too: these clients may be what has to wait for a processor
            with contextlib.suppress(httpx.HTTPError):
                await self._watcher.get(f"{self.url}/livez")
            self.lag_s = max(self.lag_s, time.monotonic() - started - PAUSE_S)

    async def _ask(self, photo: bytes) -> bool:
        started = time.monotonic()
        headers = {"X-Request-Timeout-Ms": str(int(DEADLINE_S * 1000)), "Content-Type": "image/jpeg"}
        self.counts["sent"] += 1
        try:
            answer = await self._http.post(f"{self.url}/classify{self.query}", content=photo, headers=headers)
        except httpx.ConnectError:
            self.counts["refused connection"] += 1
            return False
        except httpx.HTTPError as error:
            self.wrong.append(f"{type(error).__name__} after {time.monotonic() - started:.2f} s: {error}")
            return False
        took_s = time.monotonic() - started
        if took_s > self.slowest_s:
            self.slowest_s, self.slowest = (
                took_s,
                f"{answer.status_code} {answer.headers.get('Server-Timing')}",
            )
        return self._check(answer, photo)

    def _check(self, answer: httpx.Response, photo: bytes) -> bool:
        body = answer.json()
        if answer.status_code == 200:
            best = body["predictions"][0]
            given = best["index"], pytest.approx(best["score"], abs=1e-4)
            right = given in self.answers[photo]
            self.counts["ok" if right else "wrong"] += 1
            if not right:
                self.wrong.append(f"{best} instead of {self.answers[photo]}")
            self.last_ok = time.monotonic() if right else self.last_ok
            return right
        code = CODES.get(answer.status_code)
        self.counts[body.get("code", "?")] += 1
        if body.get("code") != code or (
            code in ("overloaded", "unavailable") and "Retry-After" not in answer.headers
        ):
            self.wrong.append(f"{answer.status_code} {dict(answer.headers)} {body}")
        return False

    def report(self, name: str) -> str:
        """One line of counts."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()) if kind != "sent")
        slowest = f"slowest {self.slowest_s:.2f} s (/livez up to {self.lag_s:.2f} s)"
        return f"{name}: {self.counts['sent']} requests: {kinds}; {slowest}"

    def check(self) -> None:
        """Each request had exactly one answer, a right one or a clear error, by its deadline."""
        assert not self.wrong, self.wrong[:5]
        assert sum(count for kind, count in self.counts.items() if kind != "sent") == self.counts["sent"]
        assert self.counts["ok"] > 0
        assert self.slowest_s < DEADLINE_S + GRACE_S + 2 * self.lag_s, self.slowest
