"""What Triton costs and gives, in one run with the same photos.

Compared are the server in-process, the gateway with Triton, and Triton's own `classify`: `make bench-triton`,
or `python -m bench.triton --repository FOLDER` with an unpacked model repository. All serve the same
files on the same cores; they are asked in turn, and every figure is the median of the rounds.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tritonclient import grpc as triton_grpc

from alexnet_server.preprocess import prepare
from bench.options import parse, parser, photo_files
from bench.processes import ROOT, Steal

CONNECTIONS = (1, 16, 64)
Ask = Callable[[bytes], None]
"""Sends one photo and waits for its answer; raises unless that is right in form."""


@dataclass(frozen=True)
class System:
    """One of the compared.

    Attributes:
        name: In the table.
        connect: Opens a connection of its own for each worker.
        processes: Whose CPU time counts, with their children.
    """

    name: str
    connect: Callable[[], Ask]
    processes: Sequence[int]


@dataclass(frozen=True)
class Figures:
    """One round of one system."""

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """Of server processes, for each photo."""


def main() -> None:
    """Print the tables."""
    asked = parser(__doc__)
    asked.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--seconds", type=float, default=10.0, help="of each round of each system")
    options, _ = parse(asked)
    photos = [path.read_bytes() for path in photo_files(options.photos)[:200]]
    mean_kb = sum(map(len, photos)) / len(photos) / 1000
    say(f"{len(photos)} photos of {mean_kb:.0f} kB on average, {len(os.sched_getaffinity(0))} cores")
    repository = options.repository
    steal = Steal()
    with (
        triton(repository) as (triton_url, triton_pid),
        server(repository, "onnx") as alone,
        server(repository, "triton", "--triton-url", triton_url) as gateway,
    ):
        systems = [
            System("in-process", lambda: over_http(alone.port), [alone.pid]),
            System("gateway + Triton", lambda: over_http(gateway.port), [gateway.pid, triton_pid]),
            System("Triton's classify", lambda: over_grpc(triton_url), [triton_pid]),
        ]
        compare(systems, triton_url, photos, options.rounds, options.seconds)
        lone_image(triton_url, f"127.0.0.1:{gateway.grpc_port}", prepare(photos[0]), gateway.pid)
    say(f"\nthe hypervisor took {steal.share():.0%} of the processors' time meanwhile")


def say(line: str) -> None:
    """A line of the report."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# -- the systems ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A running alexnet-server."""

    port: int
    grpc_port: int
    pid: int


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def server(repository: Path, engine: str, *flags: str) -> Iterator[Server]:
    """An alexnet-server on free ports, ready."""
    http_port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-m", "alexnet_server", f"--model-repository={repository}"]
    command += [f"--engine={engine}", f"--http-port={http_port}", f"--grpc-port={grpc_port}", *flags]
    with running([*command, "--drain-delay-s=0"], f"http://127.0.0.1:{http_port}/readyz") as pid:
        yield Server(http_port, grpc_port, pid)


@contextmanager
def triton(repository: Path) -> Iterator[tuple[str, int]]:
    """A Triton on free ports, ready; its gRPC address and process id."""
    http_port, grpc_port = free_port(), free_port()
    prefix = Path(os.environ.get("TRITON_PREFIX", ROOT / ".venv-triton"))
    command = [f"{prefix}/bin/tritonserver", f"--model-repository={repository}", "--model-config-name=cpu"]
    command += ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--exit-timeout-secs=5"]
    command += [f"--http-port={http_port}", f"--grpc-port={grpc_port}", "--allow-metrics=false"]
    with running(command, f"http://127.0.0.1:{http_port}/v2/health/ready") as pid:
        yield f"127.0.0.1:{grpc_port}", pid


@contextmanager
def running(command: Sequence[str], ready_url: str, timeout_s: float = 180.0) -> Iterator[int]:
    """A process that says at an address when it is ready; its log is shown if it never does."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + timeout_s
            while not answers(ready_url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"{command[0]} is not ready\n{log.read().decode(errors='replace')[-4000:]}")
                time.sleep(0.2)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(url: str) -> bool:
    """True when it is there and says 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# -- how they are asked --------------------------------------------------------------------------------------


def over_http(port: int) -> Ask:
    """POST /classify on a connection that is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(photo: bytes) -> None:
        connection.request("POST", "/classify", photo, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        body = json.loads(answer.read())
        if answer.status != 200 or len(body["predictions"]) != 5:
            raise RuntimeError(f"{answer.status}: {body}")

    return ask


def over_grpc(url: str) -> Ask:
    """Triton's ensemble, with labels by its classification extension."""
    client = triton_grpc.InferenceServerClient(url)
    wanted = [triton_grpc.InferRequestedOutput("probabilities", class_count=5)]

    def ask(photo: bytes) -> None:
        tensor = triton_grpc.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[photo]], dtype=object))
        if client.infer("classify", [tensor], outputs=wanted).as_numpy("probabilities").shape != (1, 5):
            raise RuntimeError("Triton's classify does not give five labels")

    return ask


# -- measuring -----------------------------------------------------------------------------------------------


def compare(
    systems: Sequence[System], triton_url: str, photos: Sequence[bytes], rounds: int, seconds: float
) -> None:
    """Ask all systems in turn, and print one table for each number of connections."""
    for connections in CONNECTIONS:
        rows, runs = batches(triton_url)
        figures: dict[str, list[Figures]] = {system.name: [] for system in systems}
        for number in range(rounds + 1):
            for system in systems:
                measured = load(system, photos, connections, seconds if number else seconds / 4)
                if number:  # the first round warms up
                    figures[system.name].append(measured)
        say(f"\n{connections} connection{'s' * (connections > 1)}")
        say(f"  {'':20}{'photos/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'CPU ms/photo':>14}{'of in-process':>15}")
        base = middle(figures[systems[0].name], "per_second")
        for name, found in figures.items():
            row = [middle(found, key) for key in ("per_second", "p50_ms", "p99_ms", "cpu_ms")]
            say(f"  {name:20}{row[0]:9.1f}{row[1]:9.1f}{row[2]:9.1f}{row[3]:14.1f}{row[0] / base:15.2f}")
        after = batches(triton_url)
        say(f"  Triton's mean batch: {(after[0] - rows) / (after[1] - runs):.1f} rows")


def batches(triton_url: str) -> tuple[int, int]:
    """Rows and executions of `alexnet` so far, by Triton's own statistics."""
    client = triton_grpc.InferenceServerClient(triton_url)
    (model,) = client.get_inference_statistics("alexnet").model_stats
    return model.inference_count, model.execution_count


def middle(found: Sequence[Figures], key: str) -> float:
    """Median of the rounds."""
    return statistics.median(getattr(figures, key) for figures in found)


def load(system: System, photos: Sequence[bytes], connections: int, seconds: float) -> Figures:
    """Workers in closed loops, each with its own connection and its own order of the photos."""
    asks = [system.connect() for _ in range(connections)]
    times_ms: list[float] = []
    failures: list[BaseException] = []
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        turn = number * 7
        try:
            while time.monotonic() < end:
                started = time.perf_counter()
                asks[number](photos[turn % len(photos)])
                times_ms.append((time.perf_counter() - started) * 1000)
                turn += 1
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(connections)]
    cpu_before, started = cpu_seconds(system.processes), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, cpu = time.monotonic() - started, cpu_seconds(system.processes) - cpu_before
    if failures:
        raise RuntimeError(f"{system.name} at {connections} connections: {failures[0]}") from failures[0]
    times_ms.sort()
    p99 = times_ms[min(len(times_ms) - 1, int(len(times_ms) * 0.99))]
    return Figures(len(times_ms) / took, statistics.median(times_ms), p99, cpu * 1000 / len(times_ms))


def cpu_seconds(processes: Sequence[int]) -> float:
    """CPU time of processes and their children, so far."""
    total, ticks = 0.0, os.sysconf("SC_CLK_TCK")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, fields = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if number in processes or int(fields[1]) in processes:
            total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def lone_image(triton_url: str, gateway_url: str, image: np.ndarray, gateway: int, times: int = 300) -> None:
    """One ready image at a time, straight to Triton and through the gateway's own Open Inference door."""
    tensor = triton_grpc.InferInput("images", [1, 256, 256, 3], "UINT8")
    tensor.set_data_from_numpy(image[None])
    wanted = [triton_grpc.InferRequestedOutput("probabilities")]
    clients = {url: triton_grpc.InferenceServerClient(url) for url in (triton_url, gateway_url)}
    took_ms: dict[str, list[float]] = {url: [] for url in clients}
    for number in range(times + 20):
        if number == 20:
            cpu_s = cpu_seconds([gateway])
        for url, client in clients.items():
            started = time.perf_counter()
            client.infer("alexnet", [tensor], outputs=wanted)
            if number >= 20:
                took_ms[url].append((time.perf_counter() - started) * 1000)
    cpu_ms = (cpu_seconds([gateway]) - cpu_s) * 1000 / times
    say("\nA lone ready image, ms")
    say(f"  {'':20}{'least':>9}{'p10':>9}{'p50':>9}")
    rows = [[quantile(took_ms[url], share) for share in (0, 0.1, 0.5)] for url in clients]
    rows.append([through - direct for direct, through in zip(*rows, strict=True)])
    for name, row in zip(
        ("straight to Triton", "through the gateway", "the gateway adds"), rows, strict=True
    ):
        say(f"  {name:20}" + "".join(f"{value:9.2f}" for value in row))
    say(f"  of the gateway's process, {cpu_ms:.2f} ms CPU an image")


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of all is below."""
    return sorted(values)[int(len(values) * share)]


if __name__ == "__main__":
    main()
