"""The asyncio client: the methods of `Client`, to be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from alexnet_client import _call, addresses, errors, results
from alexnet_client._call import Metadata
from alexnet_client._many import Many, Outcome
from alexnet_client._progress import Meter, Report
from alexnet_client._tasks import Tasks
from alexnet_client.pb import classifier_pb2 as pb
from alexnet_client.pb.classifier_pb2_grpc import ClassifierStub
from alexnet_client.photos import Photo

_Request = TypeVar("_Request", pb.ClassifyRequest, pb.FeaturesRequest)


class AsyncClient:
    """Classifies photos on an AlexNet server; belongs to the event loop of its first call.

    Cancelling a call cancels it on the server, where its place in the queue is free at once.

    Args:
        address: as for `Client`, like all the others.
        api_key: sent as a bearer token.
        tls: encrypt, trusting the system's certificate authorities.
        ca_file: encrypt, trusting the certificate authorities in this PEM file instead.
        timeout_s: for each call, all its tries together.
        max_attempts: tries of a call, the first included.
        options: gRPC channel options, over and above ours.

    Raises:
        OSError: `ca_file` cannot be read.
        ValueError: as for `Client`.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        tls: bool = False,
        ca_file: str | Path | None = None,
        timeout_s: float = _call.DEFAULT_TIMEOUT_S,
        max_attempts: int = _call.DEFAULT_ATTEMPTS,
        options: Iterable[tuple[str, Any]] = (),
    ) -> None:
        self._address = addresses.target(address)
        self._metadata = _call.metadata(api_key)
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._options = [*_call.channel_options(self._address, max_attempts), *options]
        self._credentials = _call.credentials(tls, ca_file)
        self._closed = False

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        """Made at the first call, for it belongs to the event loop that runs then."""
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address, self._options)
        return grpc.aio.secure_channel(self._address, self._credentials, self._options)

    @cached_property
    def _stub(self) -> Any:
        return ClassifierStub(self._channel)

    def _check(self, request: StringValue, **options: Any) -> Any:
        method = self._channel.unary_unary(
            _call.HEALTH_CHECK, StringValue.SerializeToString, Int32Value.FromString
        )
        return method(request, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up; calls still running end with `Unavailable`."""
        self._closed = True
        if "_channel" in vars(self):
            await self._channel.close()

    async def classify(
        self,
        photo: Photo,
        top_k: int = 5,
        views: _call.Views = "center",
        *,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> results.Classification:
        """The best `top_k` labels of a photo: see `Client.classify`."""
        request = await _made(_call.classify_request, photo, top_k, views, model)
        return results.classification(await self._call("Classify", request, timeout_s))

    def classify_many(
        self,
        photos: Iterable[Photo] | AsyncIterable[Photo],
        top_k: int = 5,
        views: _call.Views = "center",
        *,
        model: str | None = None,
        timeout_s: float = _call.DEFAULT_MANY_TIMEOUT_S,
        window: int = _call.DEFAULT_WINDOW,
        streams: int = 1,
        progress: bool | Report = False,
    ) -> AsyncGenerator[Outcome, None]:
        """Classify any number of photos, from any kind of iterable: see `Client.classify_many`."""
        _call.check_many(photos)
        asked = _call.selection(top_k, views, model)
        _call.check_streams(streams)
        many = Many(window=window, timeout_s=timeout_s, retry=self._max_attempts > 1)
        return Tasks(many, self._classify).run(_requests(photos, asked), Meter(progress, photos))

    async def _classify(self, request: pb.ClassifyRequest, timeout_s: float) -> Any:
        metadata = (*self._metadata, *_call.OF_MANY)
        return await self._once("Classify", request, timeout_s, metadata)

    async def features(
        self,
        photo: Photo,
        views: _call.Views = "center",
        *,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> results.Features:
        """The 4,096 activations of the last hidden layer, of the centre view; raises as `classify`."""
        request = await _made(_call.features_request, photo, views, model)
        return results.features(await self._call("Features", request, timeout_s))

    async def labels(
        self, *, model: str | None = None, timeout_s: float | None = None
    ) -> tuple[results.Label, ...]:
        """Everything the model can say, in the order of its outputs; raises `AlexNetError`."""
        request = pb.ListLabelsRequest(model=model or "")
        return results.labels(await self._call("ListLabels", request, timeout_s))

    async def models(self, *, timeout_s: float | None = None) -> tuple[results.Model, ...]:
        """The models that the server has loaded, the default one first; raises `AlexNetError`."""
        return results.models(await self._call("ListModels", pb.ListModelsRequest(), timeout_s))

    async def health(self, *, timeout_s: float | None = None) -> results.Health:
        """Whether the server takes requests; raises `Unavailable` where none answers."""
        return _call.health(await self._call("Check", _call.HEALTH_REQUEST, timeout_s))

    async def _call(self, method: str, request: Any, timeout_s: float | None) -> Any:
        attempts = _call.Attempts(self._timeout_s if timeout_s is None else timeout_s, self._max_attempts)
        while True:
            try:
                return await self._once(method, request, attempts.remaining_s())
            except errors.AlexNetError as error:
                delay_s = attempts.delay_s(error)
            await asyncio.sleep(delay_s)

    async def _once(
        self, method: str, request: Any, timeout_s: float, metadata: Metadata | None = None
    ) -> Any:
        error: errors.AlexNetError
        if self._closed:
            raise _call.closed()
        made = self._check if method == "Check" else getattr(self._stub, method)
        try:
            return await made(request, timeout=timeout_s, metadata=metadata or self._metadata)
        except grpc.aio.UsageError:  # its word for a closed channel
            error = _call.closed()
        except grpc.RpcError as failure:
            error = _call.error_from(failure, self._address)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            error = _call.closed()  # by `close`, while this call was running
        raise error  # outside of `except`: a failure in its context would keep the call and its photo alive


async def _made(make: Callable[..., _Request], photo: Photo, *arguments: Any) -> _Request:
    """The request for a photo; disks, the network and Pillow are waited for in a thread."""
    if isinstance(photo, bytes | bytearray | memoryview):
        return make(photo, *arguments)
    return await asyncio.to_thread(make, photo, *arguments)


async def _requests(
    photos: Iterable[Photo] | AsyncIterable[Photo], asked: pb.ClassifyRequest
) -> AsyncIterator[pb.ClassifyRequest | errors.AlexNetError]:
    if isinstance(photos, AsyncIterable):
        async for photo in photos:
            yield await asyncio.to_thread(_call.request_or_error, photo, asked)
    else:
        for photo in photos:
            yield await asyncio.to_thread(_call.request_or_error, photo, asked)
