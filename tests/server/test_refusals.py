"""Refusals: before the photo is read, heard by clients that still send, and of no cost to others."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from alexnet_server.http import form as forms
from alexnet_server.http.app import CallMiddleware
from tests.server.fakes import (
    FakeEngine,
    Running,
    eventually,
    fake_model,
    photo,
    read_reply,
    request_bytes,
    running,
)
from tests.server.test_http_errors import FORM, form

PHOTO = photo()
HEAD = b"POST /%s HTTP/1.1\r\nHost: t\r\nContent-Length: 9999999\r\n\r\n"


async def early(server: Running, path: str) -> tuple[int, str]:
    """Status and code of the answer to headers alone, of a body that never comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(HEAD % path.encode())
        reply = await asyncio.wait_for(read_reply(reader), 10)
        return reply.status, json.loads(reply.body)["code"]
    finally:
        writer.close()


async def test_what_can_be_refused_before_the_body_is(monkeypatch):
    engine = FakeEngine(fake_model(), fake_model("alexnet_10crop", "ten", 10))
    async with running(engine, queue_size=2) as server:
        for path in ("classify", "classify/batch", "features"):
            assert await early(server, f"{path}?model=resnet") == (404, "unknown_model")
        assert await early(server, "v2/models/resnet/infer") == (404, "unknown_model")
        engine.gate.clear()
        blocking = [asyncio.create_task(server.send("/classify", PHOTO))]
        await eventually(engine.entered.is_set)
        blocking += [asyncio.create_task(server.send("/classify", PHOTO)) for _ in range(2)]
        await eventually(lambda: server.waiting_views == 2)
        for path in ("classify", "features", "v2/models/alexnet/infer", "classify?views=ten"):
            assert await early(server, path) == (429, "overloaded")
        engine.gate.set()
        assert {reply.status for reply in await asyncio.gather(*blocking)} == {200}
        monkeypatch.setattr(server.classifier, "_golden_problem", "it is a dog")
        for path in ("classify", "classify/batch", "features", "v2/models/alexnet/infer"):
            assert await early(server, path) == (503, "unavailable")


async def test_one_who_waits_to_be_asked_for_the_body_is_not_asked():
    async with running(FakeEngine()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            request_bytes("/classify?model=resnet", PHOTO, {"expect": "100-continue"})[: -len(PHOTO)]
        )
        reply = await read_reply(reader)
        assert reply.status == 404
        assert reply.headers["connection"] == "close"
        assert await reader.read() == b""
        writer.close()


async def test_a_refused_upload_gives_its_share_back_before_the_rest_is_dropped():
    """Of 40 at once 7 fit beside the room for small ones; the others are refused, and the 7 come through."""
    limits = {"max_photo_bytes": 2**20, "max_body_bytes": 2**20}
    body = PHOTO + bytes(2**20 - len(PHOTO))
    async with running(FakeEngine(), **limits) as server:
        connections = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(40)]
        request = request_bytes("/classify", body)
        for _, writer in connections:
            writer.write(request[: len(request) // 2])
        for _, writer in connections:
            await writer.drain()
        await asyncio.sleep(0.3)
        for _, writer in connections:
            writer.write(request[len(request) // 2 :])
        replies = await asyncio.gather(*(read_reply(reader) for reader, _ in connections))
        for _, writer in connections:
            writer.close()
    statuses = Counter(reply.status for reply in replies)
    assert set(statuses) == {200, 429}
    assert statuses[200] >= 7, statuses


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (form(("image", PHOTO)), 200),
        (form(("image", bytes(2**20))), 413),
        (form(("image", PHOTO), end=False), 400),
        (form(("image", PHOTO)).replace(b"form-data", b"form-data\r\na: b" * 20), 400),
    ],
)
async def test_a_form_does_not_wait_for_the_collector(body, status, monkeypatch):
    alive: weakref.WeakSet[object] = weakref.WeakSet()

    class Watched(forms._Parts):
        def __init__(self, *given: int) -> None:
            super().__init__(*given)
            alive.add(self)

    monkeypatch.setattr(forms, "_Parts", Watched)
    async with running(FakeEngine(), max_photo_bytes=2**19, max_body_bytes=2**21) as server:
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                assert (await server.send("/classify", body, FORM)).status == status
            await eventually(lambda: not alive, 5)
        finally:
            gc.enable()


async def test_no_refusal_is_lost_in_a_reset():
    """A full queue, and a connection for each request, which it asks to close."""
    engine = FakeEngine()
    request = request_bytes("/classify", PHOTO + bytes(400_000), {"connection": "close"})
    answers: Counter[object] = Counter()

    async def one(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            await writer.drain()
            answers[(await read_reply(reader)).status] += 1
            assert await reader.read() == b""
        except (ConnectionError, asyncio.IncompleteReadError):
            answers["reset"] += 1
        finally:
            writer.close()

    async with running(engine, queue_size=1) as server:
        engine.gate.clear()
        blocking = [asyncio.create_task(server.send("/classify", PHOTO))]
        await eventually(engine.entered.is_set)
        blocking += [asyncio.create_task(server.send("/classify", PHOTO))]
        await eventually(lambda: server.waiting_views == 1)
        await asyncio.gather(*(one(server.port) for _ in range(100)))
        engine.gate.set()
        assert {reply.status for reply in await asyncio.gather(*blocking)} == {200}
    assert answers == {429: 100}


@contextlib.asynccontextmanager
async def full(engine: FakeEngine, **changes: Any) -> AsyncIterator[Running]:
    """A server whose queue has no room left."""
    async with running(engine, queue_size=2, **changes) as server:
        engine.gate.clear()
        key = {"x-api-key": changes["api_keys"]} if "api_keys" in changes else {}
        blocking = [asyncio.create_task(server.send("/classify", PHOTO, key))]
        await eventually(engine.entered.is_set)
        blocking += [asyncio.create_task(server.send("/classify", PHOTO, key)) for _ in range(2)]
        await eventually(lambda: server.waiting_views == 2)
        yield server
        engine.gate.set()
        assert {reply.status for reply in await asyncio.gather(*blocking)} == {200}


def count(server: Running, **labels: str) -> float:
    registry = server.classifier.metrics.registry
    return registry.get_sample_value("alexnet_requests_total", {"door": "http", **labels}) or 0.0


OTHER_WAY = {"origin": "https://example.org"}
"""With it a request goes through the application."""


@pytest.mark.parametrize("path", ["/classify", "/features", "/classify?top_k=3", "/classify?model=alexnet"])
async def test_a_full_queue_refuses_without_the_application(path, monkeypatch):
    """And says what the application would."""
    called: list[str] = []
    through = CallMiddleware.__call__

    async def watched(self, scope, receive, send):
        called.append(scope["path"])
        await through(self, scope, receive, send)

    async with full(FakeEngine()) as server:
        monkeypatch.setattr(CallMiddleware, "__call__", watched)
        reply = await server.send(path, PHOTO, {"x-request-id": "mine"})
        assert called == []
        assert count(server, model="alexnet", code="overloaded") == 1
        other = await server.send(path, PHOTO, {"x-request-id": "mine", **OTHER_WAY})
        assert called == [path.split("?")[0]]
        assert count(server, model="alexnet", code="overloaded") == 2
    assert reply.status == other.status == 429
    assert reply.headers.keys() == other.headers.keys()
    changing = ("date", "server-timing")
    assert {k: v for k, v in reply.headers.items() if k not in changing} == {
        k: v for k, v in other.headers.items() if k not in changing
    }
    assert re.fullmatch(r"total;dur=\d+\.\d\d", reply.headers["server-timing"])
    assert json.loads(reply.body) == json.loads(other.body)


@pytest.mark.parametrize(
    ("path", "headers", "code"),
    [
        ("/classify", {"x-api-key": "wrongkey"}, "unauthenticated"),
        ("/classify?model=resnet", {"x-api-key": "rightkey"}, "unknown_model"),
        ("/classify?top_k=none", {"x-api-key": "rightkey"}, "invalid_request"),
        ("/classify?top=3", {"x-api-key": "rightkey"}, "invalid_request"),
        ("/classify?top_k=3&top_k=3", {"x-api-key": "rightkey"}, "invalid_request"),
        ("/classify", {"x-api-key": "rightkey", "x-request-timeout-ms": "soon"}, "invalid_request"),
        ("/classify", {"x-api-key": "rightkey"}, "overloaded"),
        ("/classify", {"x-api-key": "rightkey", "connection": "close"}, "overloaded"),
        ("/classify", {"x-api-key": "rightkey", "expect": "100-continue"}, "overloaded"),
        ("/classify", {"x-api-key": "rightkey", "connection": "upgrade", "upgrade": "h2c"}, "overloaded"),
    ],
)
async def test_other_faults_come_first_also_where_there_is_no_room(path, headers, code):
    async with full(FakeEngine(), api_keys="rightkey") as server:
        reply = await server.send(path, PHOTO, headers)
        assert json.loads(reply.body)["code"] == code


async def test_a_connection_serves_on_after_refusals():
    """Whole requests, ones whose bodies dribble in, and several at once: each has one answer, in order."""
    engine = FakeEngine()
    async with running(engine, queue_size=2) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        engine.gate.clear()
        blocking = [asyncio.create_task(server.send("/classify", PHOTO))]
        await eventually(engine.entered.is_set)
        blocking += [asyncio.create_task(server.send("/classify", PHOTO)) for _ in range(2)]
        await eventually(lambda: server.waiting_views == 2)
        request = request_bytes("/classify", PHOTO + bytes(200_000))
        chunked = (
            b"POST /classify HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nhello\r\n0\r\nTrailer: x\r\n\r\n"
        )
        writer.write(request)
        assert (await read_reply(reader)).status == 429
        writer.write(request[:1000])
        assert (await read_reply(reader)).status == 429
        for start in range(1000, len(request), 50_000):
            writer.write(request[start : start + 50_000])
            await writer.drain()
        writer.write(chunked + request + b"GET /livez HTTP/1.1\r\nHost: t\r\n\r\n" + request)
        assert [(await read_reply(reader)).status for _ in range(4)] == [429, 429, 200, 429]
        engine.gate.set()
        await asyncio.gather(*blocking)
        writer.write(request_bytes("/classify", PHOTO))
        assert (await read_reply(reader)).status == 200
        writer.close()
