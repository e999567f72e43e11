"""Server reflection under both of its names, with methods found as well as services."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

_V1: Final = "grpc.reflection.v1.ServerReflection"
"""Has the messages of v1alpha, the only version that the library knows."""


def add_reflection(services: Iterable[str], server: Any) -> None:
    """Offer reflection of `services` on a server of `grpc.aio`."""
    servicer = _Servicer((*services, reflection.SERVICE_NAME, _V1))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        ServerReflectionRequest.FromString,
        ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
            for name in (reflection.SERVICE_NAME, _V1)
        )
    )


class _Servicer(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    def _file_containing_symbol(self, request: Any, fully_qualified_name: str) -> Any:
        """As the library, which finds services and messages, but neither methods nor fields."""
        found = super()._file_containing_symbol(request, fully_qualified_name)
        parent, _, _ = fully_qualified_name.rpartition(".")
        if not found.HasField("error_response") or not parent:
            return found
        inside = super()._file_containing_symbol(request, parent)
        if inside.HasField("error_response") or not self._has(parent, fully_qualified_name):
            return found
        return inside

    def _has(self, parent: str, name: str) -> bool:
        """Whether a service or message has a method or field of that name."""
        file = self._pool.FindFileContainingSymbol(parent)
        short = parent.removeprefix(f"{file.package}.")
        service = file.services_by_name.get(short)
        message = file.message_types_by_name.get(short)
        members = service.methods if service else message.fields if message else ()
        return any(member.full_name == name for member in members)
