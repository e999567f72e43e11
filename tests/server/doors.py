"""Both doors before an engine that a test controls, on the test's own loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from alexnet_client.pb.classifier_pb2_grpc import ClassifierStub
from alexnet_server.access.keys import load_keys
from alexnet_server.access.tls import load_certificate
from alexnet_server.rpc import GrpcDoor
from alexnet_server.settings import Settings
from tests.server.fakes import FakeEngine, Running, running


@dataclass
class Doors:
    http: Running
    grpc: GrpcDoor
    channel: grpc.aio.Channel
    engine: FakeEngine

    @property
    def stub(self) -> Any:
        return ClassifierStub(self.channel)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.grpc.port}"

    @property
    def waiting_views(self) -> int:
        return self.http.waiting_views


@asynccontextmanager
async def doors(
    engine: FakeEngine | None = None, *, load: bool = True, **changes: Any
) -> AsyncIterator[Doors]:
    engine = engine or FakeEngine()
    settings = Settings(grpc_port=0, **changes)
    async with running(engine, load=load, **changes) as http:
        door = GrpcDoor(http.classifier, settings, load_keys(settings), load_certificate(settings))
        await door.open()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}", UNLIMITED) as channel:
                yield Doors(http, door, channel, engine)
        finally:
            engine.gate.set()
            await door.close(1.0)


UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


def trailers(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    return {key: value for key, value in error.trailing_metadata()}


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def result(call: Any) -> Any:
    """A call as a coroutine, for `asyncio.create_task`."""
    return await call
