"""What a call is, apart from making it: requests, metadata, channel options, retries, errors.

Pure, and shared by the two clients, which differ in nothing but `await`.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from alexnet_client import addresses, errors, photos
from alexnet_client.pb import classifier_pb2 as pb
from alexnet_client.results import Health

Views: TypeAlias = Literal["center", "ten", "dense"]
"""Which views of a photo the network looks at."""

Metadata: TypeAlias = tuple[tuple[str, str], ...]

API_KEY_VARIABLE: Final = "ALEXNET_API_KEY"
DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_ATTEMPTS: Final = 4
DEFAULT_MANY_TIMEOUT_S: Final = 60.0
DEFAULT_WINDOW: Final = 96
"""A batch of 32 in the engine, one ready, one being decoded."""

HEALTH_CHECK: Final = "/grpc.health.v1.Health/Check"
# grpc.health.v1's two messages have one field each, numbered 1, a string and an enum: on the wire they are
# these wrappers. Its own module is one more dependency; a copy of ours would clash with it in a process.
HEALTH_REQUEST: Final = StringValue(value="")
_HEALTH_STATUS: Final = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}

OF_MANY: Final[Metadata] = (("x-alexnet-call", "batch"),)
"""With each call of `classify_many`: it waits in a queue that its caller fills, and says nothing about how
soon the server answers a single photo, which operators watch."""

_VIEWS: Final = {"center": pb.VIEWS_CENTER, "ten": pb.VIEWS_TEN, "dense": pb.VIEWS_DENSE}

CLOSED: Final = "closed"
"""Code of an error that is the client's own: nothing was asked of a server."""

_FIRST_BACKOFF_S: Final = 0.1
_LAST_BACKOFF_S: Final = 5.0

_CODES_WITHOUT_TRAILER: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: "invalid_request",
    grpc.StatusCode.NOT_FOUND: "not_found",
    grpc.StatusCode.UNAUTHENTICATED: "unauthenticated",
    grpc.StatusCode.PERMISSION_DENIED: "unauthenticated",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "overloaded",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.CANCELLED: "unavailable",  # by the other side: it is closing, or this client was closed
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline_exceeded",
}


def image(photo: photos.Photo) -> pb.Image:
    """The message for a photo.

    Raises:
        Unreadable: its file or address cannot be read.
        TypeError, ValueError: as `photos.image`.
    """
    try:
        return photos.image(photo)
    except OSError as problem:
        raise errors.unreadable(problem) from problem


def classify_request(photo: photos.Photo, top_k: int, views: Views, model: str | None) -> pb.ClassifyRequest:
    """The request for one photo.

    Raises:
        ValueError: unknown `views`, or both `views` and `model`; what `image` raises besides.
    """
    request = selection(top_k, views, model)
    request.image.CopyFrom(image(photo))
    return request


def request_or_error(
    photo: photos.Photo, asked: pb.ClassifyRequest
) -> pb.ClassifyRequest | errors.AlexNetError:
    """One request of many: a photo that cannot be read is that photo's error, not the end of the others."""
    request = pb.ClassifyRequest()
    request.CopyFrom(asked)
    try:
        request.image.CopyFrom(photos.image(photo))
    except errors.AlexNetError as error:
        return error
    except Exception as problem:  # a Pillow image or a file object of the caller's may raise anything
        return errors.unreadable(problem)
    return request


def features_request(photo: photos.Photo, views: Views, model: str | None) -> pb.FeaturesRequest:
    """The request for one photo's features; raises as `classify_request`."""
    asked = selection(1, views, model)
    if asked.WhichOneof("selection") == "model":
        return pb.FeaturesRequest(image=image(photo), model=asked.model)
    return pb.FeaturesRequest(image=image(photo), views=asked.views)


def check_many(given: object) -> None:
    """Refuse one photo where many are asked for: its letters, lines or rows would be taken for photos.

    Raises:
        TypeError: it is one.
    """
    one = isinstance(given, str | bytes | bytearray | memoryview | os.PathLike | photos.PillowImage)
    one = one or hasattr(given, "read") or (isinstance(given, photos.Array) and len(given.shape) < 4)
    if one:
        raise TypeError("classify_many takes an iterable of photos; for one photo use classify, or [photo]")


def selection(top_k: int, views: Views, model: str | None) -> pb.ClassifyRequest:
    """What is asked of every photo, in a request without one."""
    if views not in _VIEWS:
        raise ValueError(f"views must be one of {', '.join(_VIEWS)}, not {views!r}")
    if model is None:
        return pb.ClassifyRequest(top_k=top_k, views=_VIEWS[views])
    if views != "center":
        raise ValueError("name a model or views, not both: a model has its views built in")
    return pb.ClassifyRequest(top_k=top_k, model=model)


def check_attempts(max_attempts: int) -> None:
    """Raises ValueError unless it is 1 to 5."""
    if not 1 <= max_attempts <= 5:
        raise ValueError(f"max_attempts must be 1 to 5, not {max_attempts}")


def check_streams(streams: int) -> None:
    """`streams` of `classify_many`, an argument of earlier versions.

    Raises:
        ValueError: below 1.
    """
    if streams < 1:
        raise ValueError(f"streams must be at least 1, not {streams}")


def health(reply: Int32Value) -> Health:
    """The health service's answer."""
    return Health(_HEALTH_STATUS.get(reply.value, "UNKNOWN"))


def metadata(api_key: str | None) -> Metadata:
    """What every call carries: the key, or the environment's, as a bearer token.

    Raises:
        ValueError: a key that cannot travel in a header.
    """
    if api_key is None:
        api_key = os.environ.get(API_KEY_VARIABLE) or None
    if api_key is None:
        return ()
    if not (api_key.isascii() and api_key.isprintable()) or api_key != api_key.strip() or not api_key:
        raise ValueError("api_key must be printable ASCII without spaces around it")
    return (("authorization", f"Bearer {api_key}"),)


def credentials(tls: bool, ca_file: str | Path | None) -> grpc.ChannelCredentials | None:
    """TLS credentials, with the system's authorities unless a file names others; None for plain text.

    Raises:
        OSError: the file cannot be read.
    """
    if not tls and ca_file is None:
        return None
    roots = Path(ca_file).read_bytes() if ca_file is not None else None
    return grpc.ssl_channel_credentials(root_certificates=roots)


def channel_options(address: str, max_attempts: int) -> list[tuple[str, Any]]:
    """Round robin over all addresses of the name, and keep-alive; retries are ours, see `retry_delay_s`.

    Raises:
        ValueError: no such number of attempts is allowed.
    """
    check_attempts(max_attempts)
    return [
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        ("grpc.max_reconnect_backoff_ms", 5_000),  # gRPC's own two minutes would miss a server's return
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.primary_user_agent", "alexnet-client"),
        *addresses.options(address),
    ]


class Attempts:
    """The tries of one call within its deadline."""

    def __init__(self, timeout_s: float, max_attempts: int) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, not {timeout_s}")
        self._deadline = time.monotonic() + timeout_s
        self._max_attempts = max_attempts
        self._tries = 0

    def remaining_s(self) -> float:
        """Seconds to the deadline, never below 0."""
        return max(0.0, self._deadline - time.monotonic())

    def delay_s(self, error: errors.AlexNetError) -> float:
        """How long to wait before the next try.

        Raises:
            AlexNetError: `error`, where there is to be no next try.
        """
        self._tries += 1
        delay_s = retry_delay_s(error, self._tries)
        if delay_s is None or self._tries >= self._max_attempts or delay_s >= self.remaining_s():
            raise error
        return delay_s


def retry_delay_s(error: errors.AlexNetError, tries: int) -> float | None:
    """How long to wait before trying a failed call again, or None where that would be no use.

    A server that is `overloaded` says itself how long; one that is `unavailable` may not be there to say so.
    With up to a quarter of jitter, so that callers do not come back as one.
    """
    if error.code == CLOSED or not isinstance(error, errors.Overloaded | errors.Unavailable):
        return None
    delay_s = error.retry_after_s
    if delay_s is None:
        if isinstance(error, errors.Overloaded):
            return None
        delay_s = min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(tries - 1, 10))
    return delay_s * random.uniform(1.0, 1.25)


def closed() -> errors.Unavailable:
    """What a call on a closed client ends with."""
    return errors.Unavailable("this client has been closed; create another one", code=CLOSED)


def error_from(failure: grpc.RpcError, address: str = "") -> errors.AlexNetError:
    """A failed call as one of our exceptions, by the server's own code where it came through."""
    status = failure.code()
    message = failure.details() or status.name
    trailers = _text(failure.trailing_metadata() or ())
    pushback_ms = trailers.get("grpc-retry-pushback-ms", "")
    code = trailers.get("x-error-code") or _code_without_trailer(status, message)
    if "x-error-code" not in trailers:
        if status is grpc.StatusCode.UNIMPLEMENTED:
            message = f"the server there does not speak alexnet.v1, or not all of it: {message}"
        elif status is grpc.StatusCode.UNAVAILABLE:
            message = addresses.explained(message, address)
    return errors.from_code(
        code,
        message,
        request_id=trailers.get("x-request-id"),
        retry_after_s=int(pushback_ms) / 1000 if pushback_ms.isdecimal() else None,
    )


def _code_without_trailer(status: grpc.StatusCode, message: str) -> str:
    """What gRPC itself or a proxy failed with; RESOURCE_EXHAUSTED is gRPC's word for a large message too."""
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        return "too_large"
    return _CODES_WITHOUT_TRAILER.get(status, status.name.lower())


def _text(trailers: Iterable[Any]) -> dict[str, str]:
    return {key: value for key, value in trailers if isinstance(value, str)}
