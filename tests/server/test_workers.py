"""Several workers behind one address, as processes with a fake engine."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.processes import ServerProcess, server_process
from tests.server.fakes import photo
from tests.server.test_start import refused

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
FLAGS = ("--workers=2", "--queue-size=10", "--drain-delay-s=0")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with server_process(tmp_path / "log", *FLAGS) as running:
        yield running


def children(server: ServerProcess) -> list[int]:
    pid = server.pid
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def classify(server: ServerProcess) -> None:
    """One photo over a connection of its own."""
    answer = httpx.post(f"http://{server.http_target}/classify", content=photo(), timeout=30)
    assert answer.status_code == 200, answer.text


def metric(server: ServerProcess, name: str) -> float:
    text = httpx.get(f"http://{server.http_target}/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (.*)$", text, re.MULTILINE))


def eventually(holds) -> None:
    for _ in range(200):
        if holds():
            return
        time.sleep(0.1)
    assert holds()


def test_two_workers_count_and_drain_as_one(server: ServerProcess) -> None:
    assert len(children(server)) == 2
    assert "ready after" in server.log.read_text().splitlines()[-1]
    for _ in range(24):
        classify(server)
    assert metric(server, "alexnet_requests_total") == 24
    assert metric(server, "alexnet_batch_size_sum") == 26  # each worker has seen the golden photo
    assert metric(server, "alexnet_queue_limit_views") == 10
    assert metric(server, "alexnet_ready") == 1
    text = httpx.get(f"http://{server.http_target}/metrics").text
    assert len(re.findall("^alexnet_build_info{", text, re.MULTILINE)) == 1
    workers = children(server)
    assert server.end(signal.SIGTERM) == 0
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert server.log.read_text().count("closed") == 2


@pytest.mark.parametrize("flag", ["--workers=1", "--workers=2"])
@pytest.mark.parametrize("door", ["http", "grpc"])
def test_nobody_else_gets_their_ports(server: ServerProcess, flag: str, door: str) -> None:
    port = server.http_port if door == "http" else server.grpc_port
    assert f"port {port} on 127.0.0.1 is in use" in refused(flag, f"--{door}-port={port}")


def test_a_worker_that_dies_is_replaced(server: ServerProcess) -> None:
    for _ in range(6):
        classify(server)
    for index in range(2):
        before = children(server)
        os.kill(before[index], signal.SIGKILL)
        eventually(lambda: len(children(server)) == 2 and children(server) != before)  # noqa: B023
        eventually(lambda: server.log.read_text().count(" serves ") == 3 + index)  # noqa: B023
        for _ in range(6):
            classify(server)
    assert metric(server, "alexnet_requests_total") == 18
    assert server.log.read_text().count("has ended (status -9) and is being replaced") == 2


def test_what_keeps_one_from_starting_is_told_once(tmp_path: Path) -> None:
    line = refused("--workers=3", f"--model-repository={tmp_path}")
    assert "contains no model" in line
