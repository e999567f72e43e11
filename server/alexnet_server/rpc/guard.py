"""What surrounds every gRPC call: the key, the request's id, errors, metrics, log lines.

Handlers below it take parsed messages and raise `ServingError`s, as those of HTTP do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any

import grpc

from alexnet_server.access.keys import ApiKeys
from alexnet_server.bodies import BodyBudget
from alexnet_server.call import Call, Calls, current
from alexnet_server.errors import Internal, InvalidRequest, MethodNotAllowed, ServingError
from alexnet_server.rpc import arrivals, errors

log = logging.getLogger(__name__)

_OPEN_SERVICES = ("/grpc.health.v1.Health/",)
"""Probes need no key."""
_OPEN_METHODS = frozenset(
    {"/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ServerReady"}
)

Handler = Any  # grpc.RpcMethodHandler, whose stubs know no attributes


def timeout_s(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """Seconds that the caller's deadline leaves; None without one."""
    remaining: float | None = context.time_remaining()
    return remaining


class Guard(grpc.aio.ServerInterceptor):
    """The interceptor in front of all services.

    Args:
        keys: Who may call.
        calls: Opens and accounts for calls.
        bodies: Messages in memory count towards it.
        timeout_s: Longest that a call without a deadline of its own waits for room.
    """

    def __init__(self, keys: ApiKeys, calls: Calls, bodies: BodyBudget, timeout_s: float) -> None:
        self._keys = keys
        self._calls = calls
        self._bodies = bodies
        self._timeout_s = timeout_s
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler]], details: Any
    ) -> Handler:
        """The handler of a call, wrapped; one that refuses, for a wrong key or method."""
        method: str = details.method
        try:
            self._check_key(method, _headers(details.invocation_metadata))
            wrapped = self._wrapped.get(method)
            if wrapped is None:
                handler = await continuation(details)
                if handler is None:
                    raise MethodNotAllowed(
                        f"There is no method {method[:200]}; reflection lists those that exist."
                    )
                wrapped = self._wrapped[method] = self._wrap(handler, method)
            return wrapped
        except ServingError as error:
            return self._refusal(error, method)

    def _check_key(self, method: str, headers: Mapping[str, str]) -> None:
        if self._keys and not _is_open(method):
            self._keys.check(headers.get("authorization"), headers.get("x-api-key"))

    def _wrap(self, handler: Handler, method: str) -> Handler:
        """The handler, as one that reads each message when it is asked for: a call's only one as well."""
        parse, is_open = _parser(handler, method), _is_open(method)

        async def answer(requests: AsyncIterator[bytes], context: Any) -> None:
            if is_open:
                messages = (parse(raw) async for raw in requests)
            else:
                wait_s = None if handler.request_streaming else self._wait_s(context)
                messages = arrivals.held(context.read, parse, self._bodies, wait_s)
            await self._surround(lambda: _answer(handler, messages, context), method, context)

        return grpc.stream_stream_rpc_method_handler(answer, None, handler.response_serializer)

    def _wait_s(self, context: Any) -> float:
        remaining = timeout_s(context)
        return self._timeout_s if remaining is None else min(self._timeout_s, remaining)

    def _refusal(self, error: ServingError, method: str) -> Handler:
        """A handler that reads no message, however long that is, and fails the call."""

        async def refuse(_requests: AsyncIterator[bytes], context: Any) -> None:
            async def answer() -> None:
                raise error

            await self._surround(answer, method, context)

        return grpc.stream_stream_rpc_method_handler(refuse)

    async def _surround(self, answer: Callable[[], Awaitable[Any]], method: str, context: Any) -> Any:
        name = method.strip("/")
        service, _, rpc = name.rpartition("/")
        attributes: dict[str, str | int] = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": rpc}
        with self._calls.open(method, _headers(context.invocation_metadata()), name, attributes) as call:
            try:
                return await self._answered(answer, method, context, call)
            finally:
                call.status = attributes["rpc.grpc.status"] = errors.status_name(call.code)

    async def _answered(
        self, answer: Callable[[], Awaitable[Any]], method: str, context: Any, call: Call
    ) -> Any:
        """The answer, or the error of the table that stands for what went wrong."""
        try:
            response = await answer()
            context.set_trailing_metadata(_trailers(call))
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


def _parser(handler: Handler, method: str) -> Callable[[bytes], Any]:
    """The method's own deserializer, whose failure is the caller's fault and reported as such."""

    def parse(raw: bytes) -> Any:
        current.get().message_bytes = len(raw)
        try:
            return handler.request_deserializer(raw)
        except Exception:  # protobuf's DecodeError, and what its implementations raise besides
            raise InvalidRequest(f"The message is not a valid request of {method}.") from None

    return parse


async def _answer(handler: Handler, messages: AsyncGenerator[Any], context: Any) -> None:
    """Run a handler of whichever kind, on all messages or on the only one."""
    async with aclosing(messages):
        if handler.request_streaming:
            await _write_all(handler.stream_stream(messages, context), context)
            return
        if (message := await anext(messages, None)) is None:
            raise InvalidRequest("The call has no message.")
        if handler.response_streaming:
            await _write_all(handler.unary_stream(message, context), context)
        else:
            await context.write(await handler.unary_unary(message, context))


async def _write_all(responses: AsyncIterator[Any] | Awaitable[None], context: Any) -> None:
    """Run a streaming handler of either kind: one that yields, or one that writes to the context itself."""
    if isinstance(responses, AsyncIterator):
        async for response in responses:
            await context.write(response)
    else:
        await responses


def _is_open(method: str) -> bool:
    """Whether a call needs no key, nor room: a probe."""
    return method.startswith(_OPEN_SERVICES) or method in _OPEN_METHODS


async def _abort(context: Any, call: Call, error: ServingError) -> None:
    call.code = error.code
    trailers = (*_trailers(call), *errors.trailers(error, call.request_id))
    await context.abort(errors.status_code(error), errors.message(error), trailers)


def _trailers(call: Call) -> errors.Trailers:
    """What goes out behind every answer."""
    return (("x-request-id", call.request_id), ("server-timing", call.server_timing()))


def _headers(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """A call's metadata that is text; of a name given twice the first."""
    return {key: value for key, value in reversed(tuple(metadata or ())) if isinstance(value, str)}
