"""What surrounds every gRPC call: the key, the request's id, errors, metrics, log lines.

Handlers below it take parsed messages and raise `ServingError`s, as the HTTP door's do.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc

from alexnet_server.access.keys import ApiKeys
from alexnet_server.errors import TABLE, Internal, InvalidRequest, MethodNotAllowed, ServingError
from alexnet_server.rpc import errors
from alexnet_server.telemetry import logs, tracing
from alexnet_server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

_GOOD_ID = re.compile(r"[\x21-\x7e]{1,128}")
_OPEN_SERVICES = ("/grpc.health.v1.Health/",)
"""Probes need no key."""
_OPEN_METHODS = frozenset(
    {"/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ServerReady"}
)

Handler = Any  # grpc.RpcMethodHandler, whose stubs know no attributes


@dataclass(slots=True)
class Call:
    """One gRPC call."""

    request_id: str
    started_at: float
    model: str = ""
    """Name of the model that was asked, for the metrics."""
    message_bytes: int = 0
    """Length of the message received last; asking the parsed one would write it out again to count."""
    code: str = "ok"
    stages: tuple[tuple[str, float], ...] = ()
    """Names and seconds for `server-timing`."""

    def trailers(self) -> errors.Trailers:
        """What goes out behind every answer."""
        total = ("total", time.monotonic() - self.started_at)
        timing = ", ".join(f"{name};dur={seconds * 1e3:.2f}" for name, seconds in (*self.stages, total))
        return (("x-request-id", self.request_id), ("server-timing", timing))


current: ContextVar[Call] = ContextVar("call")
"""The call being answered."""


def timeout_s(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """Seconds that the caller's deadline leaves; None without one."""
    remaining: float | None = context.time_remaining()
    return remaining


class Guard(grpc.aio.ServerInterceptor):
    """The interceptor in front of all services.

    Args:
        keys: Who may call.
        metrics: Where calls that were about a model, or failed, are counted.
        access_log: Log every call rather than failures of ours alone.
    """

    def __init__(self, keys: ApiKeys, metrics: Metrics, *, access_log: bool = False) -> None:
        self._keys = keys
        self._metrics = metrics
        self._access_log = access_log
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler]], details: Any
    ) -> Handler:
        """The handler of a call, wrapped; one that refuses, for a wrong key or method."""
        method: str = details.method
        try:
            self._check_key(method, details.invocation_metadata)
            wrapped = self._wrapped.get(method)
            if wrapped is None:
                handler = await continuation(details)
                if handler is None:
                    raise MethodNotAllowed(
                        f"There is no method {method[:200]}; reflection lists those there are."
                    )
                wrapped = self._wrapped[method] = self._wrap(handler, method)
            return wrapped
        except ServingError as error:
            return self._refusal(error, method)

    def _check_key(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        if not self._keys or method.startswith(_OPEN_SERVICES) or method in _OPEN_METHODS:
            return
        given = {key: value for key, value in metadata if isinstance(value, str)}
        self._keys.check(given.get("authorization"), given.get("x-api-key"))

    def _wrap(self, handler: Handler, method: str) -> Handler:
        parse = _parser(handler, method)
        if handler.unary_unary:

            async def unary(raw: bytes, context: Any) -> Any:
                async def answer() -> Any:
                    return await handler.unary_unary(parse(raw), context)

                return await self._surround(answer, method, context)

            return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)
        if handler.unary_stream:

            async def to_stream(raw: bytes, context: Any) -> None:
                async def answer() -> None:
                    await _write_all(handler.unary_stream(parse(raw), context), context)

                await self._surround(answer, method, context)

            return grpc.unary_stream_rpc_method_handler(to_stream, None, handler.response_serializer)

        async def stream(requests: AsyncIterator[bytes], context: Any) -> None:
            async def answer() -> None:
                parsed = (parse(raw) async for raw in requests)
                await _write_all(handler.stream_stream(parsed, context), context)

            await self._surround(answer, method, context)

        return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)

    def _refusal(self, error: ServingError, method: str) -> Handler:
        """A handler that reads no message, however long that is, and fails the call."""

        async def refuse(_requests: AsyncIterator[bytes], context: Any) -> None:
            async def answer() -> None:
                raise error

            await self._surround(answer, method, context)

        return grpc.stream_stream_rpc_method_handler(refuse)

    async def _surround(self, answer: Callable[[], Awaitable[Any]], method: str, context: Any) -> Any:
        call = Call(_request_id(context.invocation_metadata() or ()), time.monotonic())
        current.set(call)  # each call has a task, and so a context, of its own
        logs.request_id.set(call.request_id)
        with tracing.grpc(method, context.invocation_metadata() or (), call.request_id) as span:
            try:
                return await self._answered(answer, method, context, call)
            finally:
                row = TABLE.get(call.code)  # none for `ok` and `cancelled`
                span.end(row.grpc_status if row else call.code.upper(), call.code)
                self._account(method, call)

    async def _answered(
        self, answer: Callable[[], Awaitable[Any]], method: str, context: Any, call: Call
    ) -> Any:
        """The answer, or the error of the table that stands for what went wrong."""
        try:
            response = await answer()
            context.set_trailing_metadata(call.trailers())
            return response
        except ServingError as error:
            await _abort(context, call, error)
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            call.code = "cancelled"
            raise
        except NotImplementedError:  # the generated servicers' own
            await _abort(context, call, MethodNotAllowed(f"{method} is not offered by this server."))
        except Exception:
            log.exception("%s failed", method)
            await _abort(context, call, Internal())

    def _account(self, method: str, call: Call) -> None:
        took_s = time.monotonic() - call.started_at
        if call.model or call.code != "ok":
            self._metrics.request("grpc", call.model, call.code, took_s)
        if self._access_log or call.code == "internal":
            level = logging.WARNING if call.code == "internal" else logging.INFO
            log.log(level, "%s %s %.1f ms", method, call.code, took_s * 1e3)


def _parser(handler: Handler, method: str) -> Callable[[bytes], Any]:
    """The method's own deserializer, whose failure is the caller's fault and told as such."""

    def parse(raw: bytes) -> Any:
        current.get().message_bytes = len(raw)
        try:
            return handler.request_deserializer(raw)
        except Exception:  # protobuf's DecodeError, and what its implementations raise besides
            raise InvalidRequest(f"The message is not a valid request of {method}.") from None

    return parse


async def _write_all(responses: AsyncIterator[Any] | Awaitable[None], context: Any) -> None:
    """Run a streaming handler of either kind: one that yields, or one that writes to the context itself."""
    if isinstance(responses, AsyncIterator):
        async for response in responses:
            await context.write(response)
    else:
        await responses


async def _abort(context: Any, call: Call, error: ServingError) -> None:
    call.code = error.code
    trailers = (*call.trailers(), *errors.trailers(error, call.request_id))
    await context.abort(errors.status_code(error), errors.message(error), trailers)


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The caller's `x-request-id` where it is printable and short, else a new one."""
    for key, value in metadata:
        if key == "x-request-id" and isinstance(value, str) and _GOOD_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
