"""What callers see when things go wrong, under load from 32 clients: a right answer or a clear error."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from alexnet_server.preprocess import prepare
from tests.triton.gateway_process import GatewayProcess, Load
from tests.triton.repositories import unpacked
from tests.triton.triton_process import TritonProcess

RETURN_S = 2.0
"""Service again within this time of Triton's return."""

Gateways = Callable[..., GatewayProcess]


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[Gateways]:
    started: list[GatewayProcess] = []

    def start(triton: TritonProcess, arguments: Sequence[str] = (), *, wait: bool = True) -> GatewayProcess:
        log = tmp_path / f"gateway-{len(started)}.log"
        started.append(GatewayProcess(triton.url, triton.repository, log, arguments))
        if wait:
            started[-1].wait()
        return started[-1]

    yield start
    for gateway in started:
        gateway.stop()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return light(tmp_path / "models", "center")


def light(folder: Path, *views: str) -> Path:
    """Only what the gateway asks for, so that Triton is soon back: each model is a process of its own."""
    unpacked(folder, views=views)
    shutil.rmtree(folder / "classify")
    shutil.rmtree(folder / "preprocess")
    return folder


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
    """Small JPEGs, so that decoding does not hide the engine."""
    rng = np.random.default_rng(11)
    files = []
    for _ in range(5):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        files.append(file.getvalue())
    return files


def answers(model: Path, photos: Sequence[bytes]) -> dict[bytes, list[tuple[int, float]]]:
    """Index and score of the best label of each photo, from ONNX Runtime in this process."""
    images = np.stack([prepare(photo) for photo in photos])
    rows = onnxruntime.InferenceSession(model).run(["probabilities"], {"images": images})[0]
    return {photo: [(int(row.argmax()), float(row.max()))] for photo, row in zip(photos, rows, strict=True)}


async def test_killed_and_restarted(start_triton, start_gateway, repository, photos, figure):
    triton = start_triton(repository)
    gateway = start_gateway(triton)
    async with Load(gateway.url, answers(repository / "alexnet/1/model.onnx", photos)) as load:
        await load.for_(2)
        await asyncio.to_thread(triton.kill)
        unready_s = await asyncio.to_thread(gateway.wait, False)
        await load.for_(1)
        await asyncio.to_thread(triton.start)
        back_s = await load.until_ok(30)
        ready_s = await asyncio.to_thread(gateway.wait)
        await load.for_(1)
    figure(load.report("Triton killed and restarted"))
    figure(f"  not ready {unready_s:.2f} s after the kill; {back_s:.2f} s after its return a right answer")
    load.check()
    assert load.counts["unavailable"] > 0
    assert max(back_s, ready_s) < RETURN_S


async def test_stopped_in_order_and_restarted(start_triton, start_gateway, repository, photos, figure):
    triton = start_triton(repository)
    gateway = start_gateway(triton)
    async with Load(gateway.url, answers(repository / "alexnet/1/model.onnx", photos)) as load:
        await load.for_(1)
        await asyncio.to_thread(triton.stop)
        await asyncio.to_thread(gateway.wait, False)
        await asyncio.to_thread(triton.start)
        back_s = await load.until_ok(30)
        await asyncio.to_thread(gateway.wait)
    figure(load.report("Triton told to stop, and restarted"))
    load.check()
    assert back_s < RETURN_S


async def test_its_computing_process_killed(start_triton, start_gateway, repository, photos, figure):
    """Triton stays "ready" and never starts it again; the gateway must not be fooled."""
    triton = start_triton(repository)
    gateway = start_gateway(triton)
    async with Load(gateway.url, answers(repository / "alexnet/1/model.onnx", photos)) as load:
        await load.for_(1)
        assert triton.kill_stub("alexnet") == 1
        await asyncio.to_thread(gateway.wait, False)
        assert triton.ready()
        ok = load.counts["ok"]
        await load.for_(2)
        assert load.counts["ok"] == ok
        await asyncio.to_thread(triton.kill)
        await asyncio.to_thread(triton.start)
        back_s = await load.until_ok(30)
        await asyncio.to_thread(gateway.wait)
    figure(load.report("stub killed, Triton restarted"))
    load.check()
    assert load.counts["unavailable"] > 0
    assert back_s < RETURN_S


async def test_hung(start_triton, start_gateway, repository, photos, figure):
    """A Triton that neither answers nor hangs up."""
    triton = start_triton(repository)
    gateway = start_gateway(triton, ["--engine-timeout-s", "2"])
    async with Load(gateway.url, answers(repository / "alexnet/1/model.onnx", photos)) as load:
        await load.for_(1)
        triton.signal(signal.SIGSTOP)
        await asyncio.to_thread(gateway.wait, False)
        await load.for_(6)
        triton.signal(signal.SIGCONT)
        await load.until_ok(30)
        await asyncio.to_thread(gateway.wait)
    figure(load.report("Triton hung"))
    load.check()
    assert load.counts["deadline_exceeded"] > 0


def control(triton: TritonProcess, action: str, model: str) -> int:
    """Load or unload a model over Triton's own API; HTTP status."""
    url = f"http://127.0.0.1:{triton.http_port}/v2/repository/models/{model}/{action}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, b"{}", method="POST"), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def served_versions(triton: TritonProcess, model: str) -> list[str]:
    url = f"http://127.0.0.1:{triton.http_port}/v2/repository/index"
    with urllib.request.urlopen(urllib.request.Request(url, b"{}", method="POST"), timeout=60) as answer:
        index = json.load(answer)
    return [entry["version"] for entry in index if entry["name"] == model and entry.get("state") == "READY"]


async def test_new_version_loaded_and_old_unloaded(
    start_triton, start_gateway, repository, photos, figure, tmp_path
):
    """Nobody notices, but for the new answers."""
    triton = start_triton(repository, ["--model-control-mode=explicit", "--load-model=*"])
    gateway = start_gateway(triton)
    unpacked(tmp_path / "next", seed=1)
    old = answers(repository / "alexnet/1/model.onnx", photos)
    new = answers(tmp_path / "next/alexnet/1/model.onnx", photos)
    async with Load(gateway.url, {photo: old[photo] + new[photo] for photo in photos}) as load:
        await load.for_(1)
        os.rename(tmp_path / "next/alexnet/1", repository / "alexnet/2")
        assert await asyncio.to_thread(control, triton, "load", "alexnet") == 200
        while served_versions(triton, "alexnet") != ["2"]:
            await load.for_(0.2)
        switched = load.counts["ok"]
        await load.for_(2)
    figure(load.report("version 2 loaded, version 1 unloaded"))
    load.check()
    assert load.counts["ok"] == load.counts["sent"]
    assert load.counts["ok"] > switched


async def test_model_unloaded_and_loaded_again(start_triton, start_gateway, repository, photos, figure):
    triton = start_triton(repository, ["--model-control-mode=explicit", "--load-model=*"])
    gateway = start_gateway(triton)
    async with Load(gateway.url, answers(repository / "alexnet/1/model.onnx", photos)) as load:
        await load.for_(1)
        assert await asyncio.to_thread(control, triton, "unload", "alexnet") == 200
        await asyncio.to_thread(gateway.wait, False)
        assert await asyncio.to_thread(control, triton, "load", "alexnet") == 200
        back_s = await load.until_ok(30)
        await asyncio.to_thread(gateway.wait)
    figure(load.report("model unloaded and loaded again"))
    load.check()
    assert back_s < RETURN_S


async def test_corrupt_model_dropped_in(start_triton, start_gateway, repository, photos, figure, tmp_path):
    """Triton looks for new versions by itself, finds one that is no model, and serves the old one on."""
    triton = start_triton(repository, ["--model-control-mode=poll", "--repository-poll-secs=1"])
    gateway = start_gateway(triton)
    async with Load(gateway.url, answers(repository / "alexnet/1/model.onnx", photos)) as load:
        await load.for_(1)
        (tmp_path / "next").mkdir()
        (tmp_path / "next/model.onnx").write_bytes(os.urandom(100_000))
        os.rename(tmp_path / "next", repository / "alexnet/2")
        deadline = time.monotonic() + 120
        while "failed to load 'alexnet' version 2" not in triton.log.read_text():
            assert time.monotonic() < deadline, triton.tail()
            await load.for_(0.2)
        await load.for_(2)
    figure(load.report("corrupt version 2 dropped in"))
    load.check()
    assert load.counts["ok"] == load.counts["sent"]
    assert gateway.ready()


async def test_queue_full(start_triton, start_gateway, tmp_path, photos, figure):
    repository = light(tmp_path / "models", "center", "ten")
    config = repository / "alexnet_10crop/configs/cpu.pbtxt"
    config.write_text(re.sub("max_queue_size: [0-9]+", "max_queue_size: 2", config.read_text()))
    triton = start_triton(repository)
    gateway = start_gateway(triton)
    async with Load(
        gateway.url, answers(repository / "alexnet_10crop/1/model.onnx", photos), "?views=ten"
    ) as load:
        await load.for_(5)
        await asyncio.to_thread(gateway.wait)
    figure(load.report("queue of 2 filled"))
    load.check()
    assert load.counts["overloaded"] > 0
    assert not load.counts["unavailable"]


async def test_gateway_told_to_stop(start_triton, start_gateway, repository, photos, figure):
    """Balancers see it and send no more; what they have sent, or still send, is served."""
    triton = start_triton(repository)
    gateway = start_gateway(triton, ["--drain-delay-s", "5"])
    right = answers(repository / "alexnet/1/model.onnx", photos)
    async with Load(gateway.url, right) as load:
        await load.for_(1)
        gateway.terminate()
        await asyncio.to_thread(gateway.wait, False)
    late = await asyncio.to_thread(httpx.post, f"{gateway.url}/classify", content=photos[0], timeout=60)
    await asyncio.to_thread(gateway.process.wait, 30)
    figure(load.report("gateway told to stop"))
    load.check()
    assert load.counts["ok"] == load.counts["sent"]
    assert late.json()["predictions"][0]["index"] == right[photos[0]][0][0]
    assert gateway.process.returncode == 0


async def test_gateway_started_first(start_triton, start_gateway, repository, photos):
    """It waits for Triton, alive and not ready."""
    triton = start_triton(repository, wait=False)
    gateway = start_gateway(triton, wait=False)
    await asyncio.sleep(3)
    assert gateway.process.poll() is None
    assert not gateway.ready()
    await asyncio.to_thread(triton.start)
    assert await asyncio.to_thread(gateway.wait) < RETURN_S
    async with Load(gateway.url, answers(repository / "alexnet/1/model.onnx", photos)) as load:
        await load.for_(1)
    load.check()
    assert load.counts["ok"] == load.counts["sent"]
