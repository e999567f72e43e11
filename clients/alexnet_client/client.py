"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from alexnet_client import _call, addresses, results
from alexnet_client._many import Many, Outcome
from alexnet_client._progress import Meter, Report
from alexnet_client._threads import Threads
from alexnet_client.pb import classifier_pb2 as pb
from alexnet_client.pb.classifier_pb2_grpc import ClassifierStub
from alexnet_client.photos import Photo


class Client:
    """Classifies photos on an AlexNet server. Safe to share between threads; connects at the first call.

    Args:
        address: `host:port` of the server's gRPC API; by default $ALEXNET_CLIENT_ADDRESS, or localhost:8081.
            Behind a name with several addresses (`dns:///alexnet.default.svc:8081`) the calls go round all
            of them.
        api_key: sent as a bearer token; by default $ALEXNET_API_KEY, where that is set.
        tls: encrypt, trusting the system's certificate authorities.
        ca_file: encrypt, trusting the certificate authorities in this PEM file instead.
        timeout_s: for each call, all its tries together; each method can say otherwise.
        max_attempts: tries of a call, the first included, when the server cannot be reached or is overloaded
            (1 to 5; every call here is safe to repeat).
        options: gRPC channel options, over and above ours.

    Raises:
        OSError: `ca_file` cannot be read.
        ValueError: `address` is not host:port, `api_key` cannot travel in a header, or `max_attempts` is out
            of range.
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
        self._address = address = addresses.target(address)
        self._metadata = _call.metadata(api_key)
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        channel_options = [*_call.channel_options(address, max_attempts), *options]
        credentials = _call.credentials(tls, ca_file)
        self._channel = (
            grpc.insecure_channel(address, channel_options)
            if credentials is None
            else grpc.secure_channel(address, credentials, channel_options)
        )
        self._stub = ClassifierStub(self._channel)
        self._check = self._channel.unary_unary(
            _call.HEALTH_CHECK, StringValue.SerializeToString, Int32Value.FromString
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; calls still running end with `Unavailable`."""
        self._channel.close()

    def classify(
        self,
        photo: Photo,
        top_k: int = 5,
        views: _call.Views = "center",
        *,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> results.Classification:
        """The best `top_k` labels of a photo.

        Args:
            photo: encoded bytes, a path, an http(s) URL, an open binary file, a Pillow image, or a uint8
                array (H, W, 3).
            top_k: how many labels, best first.
            views: `center`; `ten` crops averaged as in the paper; or `dense`, ten windows in one pass.
            model: a model by name, instead of `views`.
            timeout_s: for all tries together; the client's own when None.

        Raises:
            AlexNetError: see `alexnet_client.errors`.
            Unreadable: the path or URL cannot be read; also an OSError.
            TypeError, ValueError: not a photo, or a senseless argument.
        """
        request = _call.classify_request(photo, top_k, views, model)
        return results.classification(self._call(self._stub.Classify, request, timeout_s))

    def classify_many(
        self,
        photos: Iterable[Photo],
        top_k: int = 5,
        views: _call.Views = "center",
        *,
        model: str | None = None,
        timeout_s: float = _call.DEFAULT_MANY_TIMEOUT_S,
        window: int = _call.DEFAULT_WINDOW,
        streams: int = 1,
        progress: bool | Report = False,
    ) -> Generator[Outcome, None, None]:
        """Classify any number of photos, with many in flight at once.

        Yields one outcome for each photo, in their order: its `Classification`, or the `AlexNetError` that it
        ended with. A server that goes away and comes back is waited for, and what it left unanswered is sent
        to it again.

        Args:
            photos: any iterable of what `classify` takes; read in a thread, no further ahead than the window.
            top_k: how many labels, best first.
            views: which views, as for `classify`.
            model: a model by name, instead of `views`.
            timeout_s: for each photo, all its tries together; also how long to go on without any server.
            window: how many photos may be in flight, or answered and not yet taken; fewer are sent at a time
                while the server has room for fewer.
            streams: without effect: the calls go round all servers behind the name.
            progress: True for a line on standard error; or a function that is called with a `Progress`.

        Raises:
            Exception: whatever `photos` raises, after the outcomes of those before.
            TypeError: one photo in place of several.
            ValueError: a senseless argument.
        """
        _call.check_many(photos)
        asked = _call.selection(top_k, views, model)
        _call.check_streams(streams)
        many = Many(window=window, timeout_s=timeout_s, retry=self._max_attempts > 1)
        requests = (_call.request_or_error(photo, asked) for photo in photos)
        threads = Threads(many, self._start, self._address)
        return threads.run(requests, Meter(progress, photos))

    def _start(self, request: pb.ClassifyRequest, timeout_s: float) -> Any:
        metadata = (*self._metadata, *_call.OF_MANY)
        return self._stub.Classify.future(request, timeout=timeout_s, metadata=metadata)

    def features(
        self,
        photo: Photo,
        views: _call.Views = "center",
        *,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> results.Features:
        """The 4,096 activations of the last hidden layer, of the centre view; raises as `classify`."""
        request = _call.features_request(photo, views, model)
        return results.features(self._call(self._stub.Features, request, timeout_s))

    def labels(
        self, *, model: str | None = None, timeout_s: float | None = None
    ) -> tuple[results.Label, ...]:
        """Everything the model can say, in the order of its outputs; raises `AlexNetError`."""
        request = pb.ListLabelsRequest(model=model or "")
        return results.labels(self._call(self._stub.ListLabels, request, timeout_s))

    def models(self, *, timeout_s: float | None = None) -> tuple[results.Model, ...]:
        """The models that the server has loaded, the default one first; raises `AlexNetError`."""
        return results.models(self._call(self._stub.ListModels, pb.ListModelsRequest(), timeout_s))

    def health(self, *, timeout_s: float | None = None) -> results.Health:
        """Whether the server takes requests; raises `Unavailable` where none answers."""
        return _call.health(self._call(self._check, _call.HEALTH_REQUEST, timeout_s))

    def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        attempts = _call.Attempts(self._timeout_s if timeout_s is None else timeout_s, self._max_attempts)
        while True:
            try:
                return method(request, timeout=attempts.remaining_s(), metadata=self._metadata)
            except grpc.RpcError as failure:
                error = _call.error_from(failure, self._address)
            except ValueError:  # gRPC's word for a closed channel
                error = _call.closed()
            time.sleep(attempts.delay_s(error))
