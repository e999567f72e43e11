"""Three gateway processes behind HAProxy."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 300.0
EXIT_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Version:
    """What a gateway runs: a module and its flags, and variables that choose the model."""

    module: str
    flags: Sequence[str]
    environ: Mapping[str, str]


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


class Fleet:
    """Gateways 1 to 3 and the balancer in front of them.

    Args:
        folder: For logs and HAProxy's socket.
    """

    def __init__(self, folder: Path) -> None:
        self.http_port, self.grpc_port, *ports = free_ports(8)
        self._ports = {number: (ports[2 * number - 2], ports[2 * number - 1]) for number in (1, 2, 3)}
        self._folder = folder
        self._gateways: dict[int, asyncio.subprocess.Process] = {}
        self._haproxy: subprocess.Popen[bytes] | None = None
        self._starts = 0

    @contextlib.asynccontextmanager
    async def running(self, version: Version) -> AsyncIterator[Fleet]:
        """All three at work."""
        try:
            for number in self._ports:
                await self.start(number, version)
            self._start_haproxy()
            for number in self._ports:
                await self.wait_up(number)
            yield self
        finally:
            for process in self._gateways.values():
                if process.returncode is None:
                    process.kill()
                await process.wait()
            if self._haproxy is not None:
                self._haproxy.terminate()
                self._haproxy.wait(30)

    def _start_haproxy(self) -> None:
        with (self._folder / "haproxy.log").open("w") as log:
            self._haproxy = subprocess.Popen(
                ["haproxy", "-W", "-db", "-f", str(Path(__file__).parent / "haproxy.cfg")],
                env=os.environ | self._haproxy_variables(),
                stderr=log,
            )

    def _haproxy_variables(self) -> dict[str, str]:
        variables = {"HTTP_PORT": self.http_port, "GRPC_PORT": self.grpc_port}
        for number, (http, grpc) in self._ports.items():
            variables |= {f"HTTP_{number}": http, f"GRPC_{number}": grpc}
        socket_path = {"STATS_SOCKET": str(self._folder / "stats")}
        return {name: str(port) for name, port in variables.items()} | socket_path

    async def start(self, number: int, version: Version) -> None:
        """Start gateway `number`; its log goes to a file."""
        http, grpc = self._ports[number]
        self._starts += 1
        ports = (f"--http-port={http}", f"--grpc-port={grpc}")
        with (self._folder / f"gateway{number}-{self._starts}.log").open("w") as log:
            self._gateways[number] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                version.module,
                *ports,
                *version.flags,
                cwd=ROOT,
                env=os.environ | version.environ,
                stderr=log,
            )

    async def replace(self, number: int, version: Version) -> None:
        """Stop gateway `number` with SIGTERM; another version takes its place, and traffic."""
        old = self._gateways[number]
        old.terminate()
        status = await asyncio.wait_for(old.wait(), EXIT_TIMEOUT_S)
        assert status == 0, f"gateway {number} exited with {status}\n{self.logs()}"
        await self.start(number, version)
        await self.wait_up(number)

    def kill(self, number: int) -> None:
        """End gateway `number` as a lost node would."""
        self._gateways[number].kill()

    async def wait_up(self, number: int) -> None:
        """Until the balancer has gateway `number` in both its backends."""
        until = time.monotonic() + READY_TIMEOUT_S
        while (states := await self._states(number)) != {"http": "UP", "grpc": "UP"}:
            assert self._gateways[number].returncode is None, self.logs()
            assert time.monotonic() < until, f"gateway {number} is not up: {states}\n{self.logs()}"
            await asyncio.sleep(0.1)

    async def _states(self, number: int) -> dict[str, str]:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._folder / "stats"))
        except OSError:
            return {}
        writer.write(b"show stat\n")
        text = (await reader.read()).decode()
        writer.close()
        rows = csv.DictReader(text.removeprefix("# ").splitlines())
        # "UP 1/2" is a server about to go down, "DOWN 1/2" one about to come up.
        return {row["pxname"]: row["status"] for row in rows if row["svname"] == f"gateway{number}"}

    def logs(self) -> str:
        """The end of every log, for a failure's message."""
        logs = sorted(self._folder.glob("*.log"))
        return "\n".join(f"{path.name}:\n{path.read_text()[-1500:]}" for path in logs)
