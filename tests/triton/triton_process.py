"""The real Triton server as a child process, on ports of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

START_TIMEOUT_S = 300.0  # seconds on a quiet machine; minutes where many share two cores
EXIT_TIMEOUT_S = 5


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class TritonProcess:
    """One Triton server; it may be killed and started again on the same ports.

    Args:
        command: The `tritonserver` that install.sh wrote.
        repository: Model repository to serve.
        log: Where its output goes.
        arguments: More flags.
    """

    def __init__(self, command: Path, repository: Path, log: Path, arguments: Sequence[str] = ()) -> None:
        self.repository = repository
        self.log = log
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        self.url = f"127.0.0.1:{self.grpc_port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [
            str(command),
            f"--model-repository={repository}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            *arguments,
        ]

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.launch()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.ready():
            assert time.monotonic() < deadline, f"Triton is not ready in time\n{self.tail()}"
            assert self._process is not None
            if self._process.poll() is not None:
                # Where processors are scarce, 2.51 may end itself over a stub that starts slowly.
                assert "lock_exception" in self.tail(), f"Triton ended\n{self.tail()}"
                self._process = None
                self.launch()
            time.sleep(0.1)

    def launch(self) -> None:
        """Start it without waiting."""
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)

    def ready(self) -> bool:
        """True when Triton says so itself."""
        try:
            url = f"http://127.0.0.1:{self.http_port}/v2/health/ready"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """SIGKILL, as if it had crashed; its stub processes notice by themselves."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)
        self._process = None

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help. Safe to call twice."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(EXIT_TIMEOUT_S + 15)
            self._process = None
        except subprocess.TimeoutExpired:
            self.kill()

    def clear(self) -> None:
        """Stop it, and end stubs that a killed server has left: on a busy machine some never notice."""
        self.stop()
        for stub in self._stubs():
            with contextlib.suppress(ProcessLookupError):
                os.kill(stub, signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server's own process."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill_stub(self, model: str) -> int:
        """SIGKILL the processes that compute a model; their number."""
        stubs = list(self._stubs(model))
        for stub in stubs:
            os.kill(stub, signal.SIGKILL)
        return len(stubs)

    def _stubs(self, model: str = "") -> Iterator[int]:
        """Processes that compute models of this repository, or one of them."""
        path = f"{self.repository}/{model}".rstrip("/").encode()
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                program, *arguments = file.read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if program.endswith(b"/triton_python_backend_stub") and arguments[0].startswith(path + b"/"):
                yield int(file.parent.name)

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:]
