"""The client over HTTP, for networks that let no gRPC through; needs httpx (the extra `http`)."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from google.protobuf.json_format import ParseDict

from alexnet_client import _call, errors, photos, results
from alexnet_client._many import Many, Outcome
from alexnet_client._progress import Meter, Report
from alexnet_client._threads import Threads
from alexnet_client.pb import classifier_pb2 as pb
from alexnet_client.photos import Photo

if TYPE_CHECKING:
    import httpx

DEFAULT_WINDOW: Final = 32
"""Each photo in flight has a connection and a thread here."""

_VIEWS: Final = {pb.VIEWS_CENTER: "center", pb.VIEWS_TEN: "ten", pb.VIEWS_DENSE: "dense"}
_OF_A_MODEL: Final = frozenset({"name", "version", "views", "classes", "max_batch_size", "device"})
_CODE_BY_STATUS: Final = {
    401: "unauthenticated",
    403: "unauthenticated",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    429: "overloaded",
    502: "unavailable",
    503: "unavailable",
    504: "deadline_exceeded",
}
"""Where a proxy answered, and no server of ours."""


class HttpClient:
    """`Client` over HTTP: the same methods, answers and errors. Safe to share between threads.

    Args:
        address: the server's URL, `http://host:8080` or `https://…`; a proxy of the environment is used.
        api_key: sent as a bearer token; by default $ALEXNET_API_KEY, where that is set.
        ca_file: trust the authorities in this PEM file instead of the system's.
        timeout_s: for each call, all its tries together.
        max_attempts: tries of a call, the first included (1 to 5).

    Raises:
        ImportError: httpx is not installed.
        OSError: `ca_file` cannot be read.
        ValueError: `address` is no http or https URL, `api_key` cannot travel in a header, or `max_attempts`
            is out of range.
    """

    def __init__(
        self,
        address: str = "http://localhost:8080",
        *,
        api_key: str | None = None,
        ca_file: str | Path | None = None,
        timeout_s: float = _call.DEFAULT_TIMEOUT_S,
        max_attempts: int = _call.DEFAULT_ATTEMPTS,
    ) -> None:
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"{address!r} is not a URL; over HTTP an address is http://host:8080")
        _call.check_attempts(max_attempts)
        self._address = address
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._http = _connected(address, dict(_call.metadata(api_key)), ca_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._http.close()

    def classify(
        self,
        photo: Photo,
        top_k: int = 5,
        views: _call.Views = "center",
        *,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> results.Classification:
        """The best `top_k` labels of a photo: see `Client.classify`."""
        request = _call.classify_request(photo, top_k, views, model)
        return results.classification(self._call(partial(self._classify, request), timeout_s))

    def classify_many(
        self,
        photos: Iterable[Photo],
        top_k: int = 5,
        views: _call.Views = "center",
        *,
        model: str | None = None,
        timeout_s: float = _call.DEFAULT_MANY_TIMEOUT_S,
        window: int = DEFAULT_WINDOW,
        progress: bool | Report = False,
    ) -> Generator[Outcome, None, None]:
        """Classify any number of photos, with many in flight at once: see `Client.classify_many`."""
        _call.check_many(photos)
        asked = _call.selection(top_k, views, model)
        many = Many(window=window, timeout_s=timeout_s, retry=self._max_attempts > 1)
        return self._many(
            many, (_call.request_or_error(photo, asked) for photo in photos), window, Meter(progress, photos)
        )

    def _many(
        self,
        many: Many,
        requests: Iterable[pb.ClassifyRequest | errors.AlexNetError],
        window: int,
        meter: Meter,
    ) -> Generator[Outcome, None, None]:
        with ThreadPoolExecutor(window, thread_name_prefix="alexnet") as pool:

            def start(request: pb.ClassifyRequest, timeout_s: float) -> Future[pb.ClassifyResponse]:
                return pool.submit(self._classify, request, timeout_s, dict(_call.OF_MANY))

            yield from Threads(many, start, self._address).run(requests, meter)

    def features(
        self,
        photo: Photo,
        views: _call.Views = "center",
        *,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> results.Features:
        """The 4,096 activations of the last hidden layer, of the centre view; raises as `classify`."""
        request = _call.classify_request(photo, 1, views, model)
        query = _selection(request)
        answer = self._call(partial(self._ask, "POST", "/features", query, _body(request.image)), timeout_s)
        return results.features(ParseDict(answer, pb.FeaturesResponse(), ignore_unknown_fields=True))

    def labels(
        self, *, model: str | None = None, timeout_s: float | None = None
    ) -> tuple[results.Label, ...]:
        """Everything the model can say, in the order of its outputs; raises `AlexNetError`."""
        query = {} if model is None else {"model": model}
        answer = self._call(partial(self._ask, "GET", "/labels", query, None), timeout_s)
        return results.labels(ParseDict(answer, pb.ListLabelsResponse(), ignore_unknown_fields=True))

    def models(self, *, timeout_s: float | None = None) -> tuple[results.Model, ...]:
        """The models that the server has loaded, the default one first; raises `AlexNetError`."""
        answer = self._call(partial(self._ask, "GET", "/models", {}, None), timeout_s)
        return tuple(
            results.Model(
                **{name: each[name] for name in _OF_A_MODEL},
                about={name: value for name, value in each.items() if name not in _OF_A_MODEL},
            )
            for each in answer["models"]
        )

    def health(self, *, timeout_s: float | None = None) -> results.Health:
        """Whether the server takes requests; raises `Unavailable` where none answers."""
        try:
            self._call(partial(self._ask, "GET", "/readyz", {}, None), timeout_s, max_attempts=1)
        except errors.Unavailable as error:
            if error.request_id is None:  # nobody answered
                raise
            return results.Health("NOT_SERVING")
        return results.Health("SERVING")

    def _call(self, once: Any, timeout_s: float | None, max_attempts: int | None = None) -> Any:
        attempts = _call.Attempts(
            self._timeout_s if timeout_s is None else timeout_s, max_attempts or self._max_attempts
        )
        while True:
            try:
                return once(timeout_s=attempts.remaining_s())
            except errors.AlexNetError as error:
                delay_s = attempts.delay_s(error)
            time.sleep(delay_s)

    def _classify(
        self, request: pb.ClassifyRequest, timeout_s: float, headers: dict[str, str] | None = None
    ) -> pb.ClassifyResponse:
        query = {"top_k": str(request.top_k), **_selection(request)}
        answer = self._ask("POST", "/classify", query, _body(request.image), timeout_s, headers)
        return ParseDict(answer, pb.ClassifyResponse(), ignore_unknown_fields=True)

    def _ask(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: bytes | None,
        timeout_s: float,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """One request's JSON answer, or its problem as an exception."""
        import httpx

        sent = dict(headers or {})
        if body is not None:
            sent["x-request-timeout-ms"] = str(max(1, int(timeout_s * 1000)))
        try:
            response = self._http.request(
                method, path, params=query, content=body, headers=sent, timeout=max(0.001, timeout_s)
            )
        except httpx.TimeoutException:
            message = f"no answer from {self._address} in time"
            raise errors.DeadlineExceeded(message, code="deadline_exceeded") from None
        except httpx.TransportError as failure:
            raise errors.Unavailable(f"{self._address}: {failure}", code="unavailable") from None
        except RuntimeError:  # httpx's word for a closed client
            raise _call.closed() from None
        document = _json(response)
        if response.is_success and document is not None:
            return document
        raise _problem(response, document or {})


def _connected(address: str, headers: dict[str, str], ca_file: str | Path | None) -> httpx.Client:
    try:
        import httpx
    except ImportError:
        raise ImportError("HttpClient needs httpx; in a checkout: pip install '.[http]'") from None
    import ssl

    verify = True if ca_file is None else ssl.create_default_context(cafile=os.fspath(ca_file))
    return httpx.Client(base_url=address, headers={"user-agent": "alexnet-client", **headers}, verify=verify)


def _selection(request: pb.ClassifyRequest) -> dict[str, str]:
    if request.WhichOneof("selection") == "model":
        return {"model": request.model}
    return {"views": _VIEWS[request.views]}


def _body(image: pb.Image) -> bytes:
    """The photo as a file; a prepared image travels losslessly, too."""
    return image.encoded or photos.png(image.prepared, photos.SIDE, photos.SIDE, 3)


def _json(response: httpx.Response) -> dict[str, Any] | None:
    try:
        document = response.json()
    except ValueError:  # a proxy's page
        return None
    return document if isinstance(document, dict) else None


def _problem(response: httpx.Response, document: dict[str, Any]) -> errors.AlexNetError:
    """The exception for a problem document (RFC 9457), or for a status that came without one."""
    status = response.status_code
    wait = document.get("retry_after_s", response.headers.get("retry-after"))
    return errors.from_code(
        str(document.get("code") or _CODE_BY_STATUS.get(status, f"http_{status}")),
        str(document.get("detail") or f"the server answered {status} {response.reason_phrase}"),
        request_id=document.get("request_id") or response.headers.get("x-request-id"),
        retry_after_s=float(wait) if str(wait).replace(".", "", 1).isdecimal() else None,
    )
