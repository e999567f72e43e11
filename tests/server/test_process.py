"""The server as a process: start, drain, death."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests.server.fakes import photo, send

ROOT = Path(__file__).parents[2]
PHOTO = photo()


class Process:
    """A `fake_server.py`, its log kept."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.port = 0
        self.grpc_port = 0
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while line := (await self.process.stderr.readline()).decode():
            self.lines.append(line)
            if found := re.search(r"listening on http://127.0.0.1:(\d+)", line):
                self.port = int(found[1])
            if found := re.search(r"grpc://127.0.0.1:(\d+)", line):
                self.grpc_port = int(found[1])

    async def ready(self) -> None:
        async with httpx.AsyncClient() as client:
            for _ in range(600):
                with contextlib.suppress(httpx.TransportError):
                    if self.port and (await client.get(f"http://127.0.0.1:{self.port}/readyz")).is_success:
                        return
                assert self.process.returncode is None, self.lines
                await asyncio.sleep(0.05)
        raise AssertionError(self.lines)

    async def end(self, timeout_s: float = 30) -> int:
        status = await asyncio.wait_for(self.process.wait(), timeout_s)
        await self._reader
        return status


@contextlib.asynccontextmanager
async def start(
    *flags: str, module: str = "tests.server.fake_server", **environ: str
) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        "--http-port=0",
        "--grpc-port=0",
        *flags,
        cwd=ROOT,
        env=os.environ | environ,
        stderr=asyncio.subprocess.PIPE,
    )
    subject = Process(process)
    try:
        yield subject
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await subject._reader
        process._transport.close()


async def test_sigterm_drains_and_exits_0():
    async with start("--drain-delay-s=1.5", FAKE_SECONDS="0.3") as server:
        await server.ready()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
            in_flight = asyncio.create_task(client.post("/classify", content=PHOTO))
            await asyncio.sleep(0.1)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
            ready = await client.get("/readyz")
            assert ready.status_code == 503
            assert ready.headers["connection"] == "close"
            assert (await client.get("/livez")).status_code == 200
            # still serving, for those that have not noticed yet
            assert (await client.post("/classify", content=PHOTO)).status_code == 200
            assert (await in_flight).status_code == 200
        assert await server.end() == 0


async def test_what_is_in_flight_when_the_doors_close_is_answered():
    async with start("--drain-delay-s=0", FAKE_SECONDS="1") as server:
        await server.ready()
        tasks = [asyncio.create_task(send(server.port, "/classify", PHOTO)) for _ in range(5)]
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert {reply.status for reply in await asyncio.gather(*tasks)} == {200}
        assert await server.end() == 0


async def test_the_end_does_not_wait_for_a_decoder():
    flags = ("--drain-delay-s=0.2", "--shutdown-timeout-s=1", "--request-timeout-s=100", "--decode-threads=1")
    async with start(*flags, FAKE_DECODE_S="60") as server:
        await server.ready()
        hanging = asyncio.create_task(send(server.port, "/classify", PHOTO))
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert await server.end(45) == 0
        assert time.monotonic() - began < 30  # 1.2 s, and what a busy machine takes
        await asyncio.wait((hanging,))  # whatever it is told
        hanging.exception()


async def test_ctrl_c_does_not_wait():
    async with start("--drain-delay-s=30") as server:
        await server.ready()
        server.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert await server.end() == 0
        assert time.monotonic() - began < 15


async def test_when_the_engine_thread_is_killed_all_are_answered_and_the_process_exits_1(tmp_path):
    kill = tmp_path / "kill"
    async with start(FAKE_SECONDS="0.5", FAKE_KILL=str(kill)) as server:
        await server.ready()
        tasks = [asyncio.create_task(send(server.port, "/classify", PHOTO)) for _ in range(100)]
        await asyncio.sleep(0.3)
        kill.touch()
        replies = await asyncio.gather(*tasks)
        assert {reply.status for reply in replies} <= {200, 503}
        assert replies[-1].status == 503
        assert await server.end() == 1
    assert any("CRITICAL" in line and "engine" in line for line in server.lines)


async def test_a_model_that_cannot_be_loaded_is_one_line_and_exit_1():
    async with start(FAKE_ABSENT="1") as server:
        assert await server.end() == 1
    assert server.lines[-1] == "alexnet-server: no model in /nowhere; run `alexnet-server unpack`\n"


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
async def test_closed_standard_files_do_no_harm(closed):
    """Without them the sockets would be 0, 1 and 2, and the interpreter would abort at its end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = f"{sys.executable} -m tests.server.fake_server --http-port={port} --grpc-port=0"
    process = await asyncio.create_subprocess_shell(f"exec {server} {closed}", cwd=ROOT)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(600):
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/readyz")).is_success:
                        break
                assert process.returncode is None
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_taken_port_is_one_line_and_exit_1():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with start(f"--http-port={port}") as server:
            assert await server.end() == 1
    assert server.lines == [
        f"alexnet-server: port {port} on 127.0.0.1 is in use by another process; "
        "stop it or choose another with --http-port\n"
    ]


async def test_json_logs(tmp_path):
    async with start("--log-format=json", "--access-log") as server:
        while not any("ready after" in line for line in server.lines):
            await asyncio.sleep(0.05)
            assert server.process.returncode is None, server.lines
        port = int(re.search(r"127.0.0.1:(\d+)", "".join(server.lines))[1])
        await send(port, "/classify", PHOTO, {"x-request-id": "abc"})
        server.process.send_signal(signal.SIGINT)
        assert await server.end() == 0
    lines = [httpx.Response(200, content=line).json() for line in server.lines]
    assert any(line.get("request_id") == "abc" for line in lines)
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)


def command(*arguments: str, wrapper: Sequence[str] = (), **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *wrapper,
            sys.executable,
            "-c",
            "import sys; from alexnet_server.main import main; sys.exit(main())",
            *arguments,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environ,
        check=False,
    )


def test_version():
    result = command("--version")
    assert result.returncode == 0
    assert re.fullmatch(r"alexnet-server \d+\.\d+\.\d+\n", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        (["--bogus"], {}, "unrecognized arguments: --bogus"),
        (["--http-port", "99999"], {}, "--http-port"),
        ([], {"ALEXNET_QUEUE_SIZE": "many"}, "ALEXNET_QUEUE_SIZE"),
        ([], {"ALEXNET_QUEU_SIZE": "1"}, "did you mean ALEXNET_QUEUE_SIZE?"),
        (["--tls-cert-file", "a.pem"], {}, "--tls-key-file"),
    ],
)
def test_settings_that_make_no_sense_are_one_line_and_exit_2(arguments, environ, words):
    result = command(*arguments, **environ)
    assert result.returncode == 2
    assert result.stderr.startswith("alexnet-server: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--api-keys-file", "/nonexistent/keys"], "--api-keys-file: cannot read"),
        (["--api-keys", "short"], "shorter than"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 is not an address of this machine"),
        (["--tls-cert-file", "/nonexistent.pem", "--tls-key-file", "/nonexistent.pem"], "--tls-cert-file"),
    ],
)
def test_files_and_addresses_that_are_wrong_are_one_line_and_exit_1(arguments, words):
    result = command(*arguments)
    assert result.returncode == 1
    assert words in result.stderr.splitlines()[-1]
    assert result.stderr.count("\n") == 1


async def test_the_real_server_on_a_small_model(tiny_repository):
    """From photo to labels, as its engine alone says it."""
    from alexnet_server.loading import open_engine
    from alexnet_server.photos import PHOTO as CAT
    from alexnet_server.photos import golden_image
    from alexnet_server.settings import load_settings

    flags = ["--model-repository", str(tiny_repository), "--engine-threads=1"]
    engine = open_engine(load_settings(flags))
    async with start(*flags, module="alexnet_server") as server:
        await server.ready()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
            for views, name in (("center", "alexnet"), ("ten", "alexnet_10crop"), ("dense", "alexnet_dense")):
                reply = await client.post(f"/classify?views={views}&top_k=10", content=CAT.read_bytes())
                answer = reply.json()
                expected = engine.infer(name, golden_image()[None], features=False).probabilities[0]
                assert answer["model"] == name
                assert [p["index"] for p in answer["predictions"]] == (-expected).argsort(
                    kind="stable"
                ).tolist()
                for prediction in answer["predictions"]:
                    assert abs(prediction["score"] - expected[prediction["index"]]) < 1e-5
            models = (await client.get("/models")).json()["models"]
            assert {model["precision"] for model in models} == {"int8"}
        server.process.send_signal(signal.SIGINT)
        assert await server.end() == 0


async def test_a_repository_that_is_wrong_is_one_line_and_exit_1(tmp_path, tiny_repository):
    for repository, words in ((tmp_path / "none", "there is no such folder"), (tmp_path, "no model")):
        async with start(f"--model-repository={repository}", module="alexnet_server") as server:
            assert await server.end() == 1
        assert words in server.lines[-1]
        assert not any("Traceback" in line for line in server.lines)
