"""`alexnet-server` as a process, with a fake engine or a real one, for tests of what it serves."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAKE = "tests.server.fake_server"
_LISTENING = re.compile(r"listening on https?://127\.0\.0\.1:(\d+) and grpcs?://127\.0\.0\.1:(\d+)")


class ServerProcess:
    """May be stopped and started again, on the same ports."""

    def __init__(
        self, log: Path, *flags: str, module: str = FAKE, wrapper: Sequence[str] = (), **environ: str
    ) -> None:
        self.log = log
        self.http_port = self.grpc_port = 0
        self._program = [*wrapper, sys.executable, "-m", module]
        self._flags = flags
        self._environ = os.environ | environ
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http_target(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def peak_bytes(self) -> int:
        """Most memory that the process has held so far (Linux)."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10

    def start(self) -> None:
        ports = (f"--http-port={self.http_port}", f"--grpc-port={self.grpc_port}")
        command = [*self._program, *ports, *self._flags]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=self._environ, stderr=log)
        found = None
        for _ in range(1200):
            assert self._process.poll() is None, self.log.read_text()
            found = found or _LISTENING.search(self.log.read_text())
            if found is not None and " ready after " in self.log.read_text():
                self.http_port, self.grpc_port = int(found[1]), int(found[2])
                return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def end(self, number: signal.Signals) -> int:
        """Signal it and wait; its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(60)


def _lasting_port() -> int:
    """A free port below those that the kernel gives to connections: nobody else gets it."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", 15_000 + secrets.randbelow(15_000)))
            except OSError:
                continue
            port: int = probe.getsockname()[1]
            return port


@contextmanager
def server_process(
    log: Path,
    *flags: str,
    module: str = FAKE,
    wrapper: Sequence[str] = (),
    restarts: bool = False,
    **environ: str,
) -> Iterator[ServerProcess]:
    """A server that is ready; its ports are kept from everybody else while it `restarts`."""
    server = ServerProcess(log, *flags, module=module, wrapper=wrapper, **environ)
    if restarts:
        server.http_port, server.grpc_port = _lasting_port(), _lasting_port()
    server.start()
    try:
        yield server
    finally:
        server.end(signal.SIGKILL)
