"""A real Prometheus scrapes a running server, evaluates the rules, and answers the dashboard."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.monitoring.conftest import dashboard_expressions, metric_names, rule_expressions, triton_names
from tests.server.fakes import photo
from tests.server.test_process import start

Query = httpx.AsyncClient


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextlib.asynccontextmanager
async def prometheus(target: int, groups: list[dict[str, Any]], folder: Path) -> AsyncIterator[Query]:
    """A Prometheus that scrapes the port `target` every second; a client of its API."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    quick = [group | {"interval": "1s"} for group in groups]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": quick}))
    job = {"job_name": "alexnet", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    config = {"global": {"scrape_interval": "1s"}, "rule_files": ["rules.yaml"], "scrape_configs": [job]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stderr=log,
            stdout=log,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}/api/v1", timeout=30) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


async def values(client: Query, expression: str) -> list[dict[str, Any]]:
    answer = await client.get("/query", params={"query": expression})
    assert answer.status_code == 200, f"{expression}: {answer.text}"
    result: list[dict[str, Any]] = answer.json()["data"]["result"]
    return result


async def eventually(client: Query, expression: str, timeout_s: float = 60) -> list[dict[str, Any]]:
    """What the expression says once it says anything."""
    until = asyncio.get_running_loop().time() + timeout_s
    found: list[dict[str, Any]] = []
    while not found and asyncio.get_running_loop().time() < until:
        with contextlib.suppress(httpx.TransportError, AssertionError):
            found = await values(client, expression)
        await asyncio.sleep(0.2 if not found else 0)
    return found


async def traffic(port: int) -> None:
    """An answered photo, one that came too late, and one that is none."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        for _ in range(3):
            assert (await client.post("/classify", content=photo())).status_code == 200
        late = {"x-request-timeout-ms": "1"}
        assert (await client.post("/classify", content=photo(), headers=late)).status_code == 504
        assert (await client.post("/classify", content=b"text")).status_code == 415


async def test_whatever_rules_and_dashboard_name_is_scraped(
    rule_groups: list[dict[str, Any]], dashboard: dict[str, Any], tmp_path: Path
) -> None:
    expressions = rule_expressions(rule_groups) + dashboard_expressions(dashboard)
    assert all(metric_names(expression) or triton_names(expression) for expression in expressions)
    names = set().union(*(metric_names(expression) for expression in expressions))
    async with start(FAKE_SECONDS="0.01") as server:
        await server.ready()
        async with prometheus(server.port, rule_groups, tmp_path) as client:
            assert await eventually(client, 'up{job="alexnet"} == 1')
            # Rates need counters that exist before they move.
            await traffic(server.port)
            await eventually(client, 'sum(alexnet_requests_total{code="deadline_exceeded"}) == 1')
            for _ in range(3):
                await traffic(server.port)
                await asyncio.sleep(1.5)
            silent = [name for name in sorted(names) if not await eventually(client, name, 20)]
            assert silent == []
            ours = [e for e in dashboard_expressions(dashboard) if not triton_names(e)]
            empty = [e for e in ours if not await eventually(client, e, 20)]
            assert empty == []
            (ready,) = await values(client, "sum(alexnet_ready)")
            assert ready["value"][1] == "1"
            rules = (await client.get("/rules")).json()["data"]["groups"]
            assert [r["name"] for group in rules for r in group["rules"] if r["health"] != "ok"] == []


def test_a_name_that_does_not_exist_is_seen() -> None:
    """The parts of this test that could pass for nothing."""
    expression = 'sum by (instance) (rate(alexnet_request_total{code="alexnet_x"}[5m])) / process_open_fds'
    assert metric_names(expression) == {"alexnet_request_total", "process_open_fds"}


async def test_the_text_format_is_sound() -> None:
    """`promtool check metrics`: names, units, types and help as Prometheus wants them."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    async with start() as server:
        await server.ready()
        await traffic(server.port)
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"http://127.0.0.1:{server.port}/metrics")).content
    run = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
