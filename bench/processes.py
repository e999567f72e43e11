"""The processes that are measured."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[1]


class Steal:
    """How much of the processors' time the hypervisor gives to others: what it takes, the figures lack."""

    def __init__(self) -> None:
        self._before = self._ticks()

    def share(self) -> float:
        """Since this was made, 0 to 1."""
        stolen, total = (now - then for now, then in zip(self._ticks(), self._before, strict=True))
        return stolen / max(1, total)

    @staticmethod
    def _ticks() -> tuple[int, int]:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return fields[7], sum(fields)


class Child:
    """A process that answers each line with a line."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def expect(self, word: str) -> None:
        line = self.process.stdout.readline().strip()
        if line != word:
            raise SystemExit(f"expected {word!r}, got {line!r}")

    def ask(self, line: str) -> Any:
        self.process.stdin.write(line + "\n")
        return json.loads(self.process.stdout.readline())


class Peer:
    """`bench.mosec_peer` on a free port; `wait_ms` is the longest that it keeps a batch open."""

    path = "/inference"

    def __init__(self, wait_ms: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        flags = ["--address=127.0.0.1", f"--port={self.port}", f"--wait={wait_ms}", "--timeout=600000"]
        command = [sys.executable, "-W", "ignore", "-m", "bench.mosec_peer", *flags]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, cwd=ROOT, process_group=0, **quiet)
        photo = next((ROOT / "tests/data/cc0").glob("*.jpg")).read_bytes()
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self.path}", photo, timeout=60):
                    return
            except OSError:
                time.sleep(0.5)
        raise SystemExit("the Mosec peer does not start; pip install --group bench")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.process.send_signal(2)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)


class Server:
    """A real `alexnet-server` on a free port, of this checkout or of another with its own `.venv`."""

    path = "/classify"

    def __init__(self, flags: list[str], checkout: Path = ROOT) -> None:
        # However slow the machine: what is measured is time, not patience.
        own = ["--http-port=0", "--grpc-port=0", "--request-timeout-s=600", *flags]
        python = sys.executable if checkout == ROOT else str(checkout / ".venv/bin/python")
        command = [python, "-m", "alexnet_server", *own]
        self.process = subprocess.Popen(command, cwd=checkout, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"listening on http://127.0.0.1:(\d+) and grpc://127.0.0.1:(\d+)", line):
                self.port, self.grpc_port = int(found[1]), int(found[2])
            if "ready after" in line:
                break
        else:
            raise SystemExit("".join(self.log))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.process.send_signal(2)
        self.process.wait(60)
        self.process.stderr.close()

    def cpu_s(self) -> float:
        """CPU time of the process so far, user and system, all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def batches(self) -> tuple[float, float]:
        """Rows and batches of the engine so far."""
        text = self.metrics()
        rows, count = (
            sum(
                float(value)
                for value in re.findall(rf"^alexnet_batch_size_{name}{{.*}} (.*)$", text, re.MULTILINE)
            )
            for name in ("sum", "count")
        )
        return rows, count

    def held(self) -> dict[str, int]:
        """File descriptors, threads and tasks of the event loop, this question's own among them."""
        tasks = re.search(r"^alexnet_tasks (.+)$", self.metrics(), re.MULTILINE)
        process = Path(f"/proc/{self.process.pid}")
        return {
            "descriptors": len(os.listdir(process / "fd")),
            "threads": len(os.listdir(process / "task")),
            "tasks": int(float(tasks[1])),
        }

    def rss_mib(self) -> float:
        """Resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) / 1024

    def peak_mib(self) -> float:
        """The most resident memory so far."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) / 1024

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            return answer.read().decode()
