"""Triton as the engine: rows pass through to its dynamic batcher over asynchronous gRPC.

Triton says UNAVAILABLE for a full queue, an expired timeout and a server that stops, so its messages decide
which error of ours it is. Its readiness is no help (it stays ready when the process that computes has died):
only an inference tells.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from alexnet_server.engines import Images, Model, Outputs
from alexnet_server.errors import DeadlineExceeded, Internal, Overloaded, ServingError, Unavailable
from alexnet_server.preprocess import PREPROCESS_VERSION, SIDE
from alexnet_server.telemetry import tracing

log = logging.getLogger(__name__)

_RETRY_S = 1.0
"""How long callers are asked to wait when Triton does not serve: it is looked for several times a second."""
_CLOSING = "The server is shutting down; send the request to another server."
_CONFIG_TIMEOUT_S = 2.0
_SMOOTHING = 0.2
"""Weight of the newest answer in the running mean of the time an answer takes."""
_CHANNEL_OPTIONS = (
    # Above anything Triton sends, so that RESOURCE_EXHAUSTED never means our own limit.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC's own backoff grows to two minutes; a Triton that returns should be in use within two seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A machine that vanishes without a word; probes keep answers coming, so Triton tolerates these pings.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A name that stands for several Tritons (a headless service) spreads rows over all of them.
    ("grpc.lb_policy_name", "round_robin"),
)
_MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
_LENGTH_DELIMITED = 2
_RAW_CONTENTS = bytes(
    [service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED]
)
"""Tag of the field in protobuf's wire format."""


class TritonEngine:
    """A `RemoteEngine`: the models of the repository, computed by a Triton server that has loaded the same.

    Triton may come, go and come back at any time. Each version of a model is checked, once for each
    connection, before its first answer is passed on: it must name our preprocess version and labels.

    Made on the event loop that asks it.

    Args:
        url: `host:port` of Triton's gRPC endpoint.
        models: The models to serve, as the repository beside this server describes them.
        labels_sha256: Of each model's `labels.txt`, by the model's name.
        probe_timeout_s: Longest a probe may wait; a Triton that is slower does not work.
    """

    def __init__(
        self,
        url: str,
        models: Iterable[Model],
        labels_sha256: Mapping[str, str],
        *,
        probe_timeout_s: float,
    ) -> None:
        self.device = f"triton {url}"
        self._models = {model.name: dataclasses.replace(model, device=self.device) for model in models}
        self.models: Mapping[str, Model] = self._models
        self._url = url
        self._labels_sha256 = labels_sha256
        self._probe_timeout_s = probe_timeout_s
        self._channel = grpc.aio.insecure_channel(url, options=_CHANNEL_OPTIONS)
        self._triton = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._model_infer: Any = self._channel.unary_unary(
            _MODEL_INFER, response_deserializer=service_pb2.ModelInferResponse.FromString
        )
        self._checked: set[tuple[str, str]] = set()
        self._checking = asyncio.Lock()
        self._answer_s = 0.0

    async def infer(self, model: str, images: Images, *, features: bool, timeout_s: float) -> Outputs:
        """Have Triton run rows `[N, 256, 256, 3]` uint8, N at most the model's `max_batch_size`.

        Args:
            model: One of `models`.
            images: Photos as `preprocess.prepare` makes them.
            features: Whether the features are wanted; they cross the network only then.
            timeout_s: Passed on: Triton drops a row that its queue holds longer.

        Raises:
            Overloaded: Triton's queue is full.
            DeadlineExceeded: `timeout_s` is over.
            Unavailable: Triton is gone, stops, has not loaded the model, or has loaded another one.
            Internal: It answers something else.
        """
        if timeout_s <= 0:
            raise DeadlineExceeded("The request's time ran out before it reached the engine.")
        if self._channel.get_state() is not grpc.ChannelConnectivity.READY:
            self._checked.clear()  # whatever answers next may be another server
        started_at = time.monotonic()
        answer = await self._send(_request(model, images, features=features, timeout_s=timeout_s), timeout_s)
        self._answer_s += _SMOOTHING * (time.monotonic() - started_at - self._answer_s)
        await self._check_once(model, answer.model_version)
        return _outputs(answer, len(images), len(self.models[model].labels), features=features)

    async def problem(self) -> str | None:
        """Why Triton cannot infer at the moment, by trying one row of the first model; None when it can.

        A full queue is no problem: it is Triton's way to say that it works. Nor is another model that Triton
        has not loaded: its own callers get an error.
        """
        first, *others = self.models
        row = np.zeros((1, SIDE, SIDE, 3), np.uint8)
        try:
            await self.infer(first, row, features=False, timeout_s=self._probe_timeout_s)
            for name in (first, *others):
                await self._recheck(name)
        except Overloaded:
            return None
        except ServingError as error:
            cause = error.__cause__
            said = cause.details() if isinstance(cause, grpc.aio.AioRpcError) else None
            return f"Triton at {self._url}: {said or error.message}"
        return None

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()

    async def _send(self, request: bytes, timeout_s: float) -> service_pb2.ModelInferResponse:
        try:
            return await self._model_infer(request, timeout=timeout_s, metadata=tracing.outgoing())
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from error
        except grpc.aio.UsageError:  # hung up before it was sent
            raise Unavailable(_CLOSING, retry_after_s=_RETRY_S) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # our caller left; gRPC tells Triton
            raise Unavailable(_CLOSING, retry_after_s=_RETRY_S) from None  # hung up under way

    async def _check_once(self, model: str, version: str) -> None:
        """Compare a version that answers for the first time since Triton was connected."""
        if (model, version) in self._checked:
            return
        async with self._checking:  # the first of many waiting answers asks for all of them
            if (model, version) not in self._checked:
                await self._compare(model, version)
                self._checked.add((model, version))
                self._models[model] = dataclasses.replace(self._models[model], version=version)

    async def _recheck(self, model: str) -> None:
        """Compare again what has been loaded latest, if anything is: reloading may change it in place."""
        try:
            await self._compare(model, "")
        except Unavailable as error:
            self._checked = {checked for checked in self._checked if checked[0] != model}
            if not _is(error.__cause__, grpc.StatusCode.NOT_FOUND):
                raise

    async def _compare(self, model: str, version: str) -> None:
        """Hold Triton's model against ours.

        Raises:
            Unavailable: It was made for other pixels or other labels, or Triton does not answer.
        """
        request = service_pb2.ModelConfigRequest(name=model, version=version)
        try:
            answer = await self._triton.ModelConfig(request, timeout=_CONFIG_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from error
        theirs = answer.config.parameters
        ours = {"preprocess_version": PREPROCESS_VERSION, "labels_sha256": self._labels_sha256[model]}
        for key, value in ours.items():
            found = theirs[key].string_value if key in theirs else "missing"
            if found != value:
                raise Unavailable(
                    f"The engine's {model!r} is another model than this server's: its {key} is {found}, here "
                    f"it is {value}. Give both the same model repository.",
                    retry_after_s=_RETRY_S,
                )

    def _error(self, error: grpc.aio.AioRpcError) -> ServingError:
        """What Triton's refusal means to our caller."""
        code, said = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED or "Request timeout expired" in said:
            return DeadlineExceeded("The request's time ran out before the engine's answer came.")
        if "Exceeds maximum queue size" in said:
            # With a full queue, an answer takes as long as it takes to empty.
            return Overloaded("The engine's queue is full; try again later.", retry_after_s=self._answer_s)
        gone = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.CANCELLED)
        if gone or "is not healthy" in said:
            return Unavailable("The engine is not available at the moment.", retry_after_s=_RETRY_S)
        log.error("Triton answers %s: %s", code.name, said)
        return Internal()


def _is(error: BaseException | None, code: grpc.StatusCode) -> bool:
    return isinstance(error, grpc.aio.AioRpcError) and error.code() is code


def _request(model: str, images: Images, *, features: bool, timeout_s: float) -> bytes:
    """A `ModelInferRequest` as it travels.

    The images, nearly all of it, are copied once: protobuf would copy them into the message and out of it. A
    message may be written in parts, one behind the other.
    """
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    request.outputs.add(name="probabilities")
    if features:
        request.outputs.add(name="features")
    request.parameters["timeout"].int64_param = max(1, int(timeout_s * 1e6))  # microseconds in Triton's queue
    head: bytes = request.SerializeToString()
    pixels = np.ascontiguousarray(images)
    return b"".join((head, _RAW_CONTENTS, _varint(pixels.nbytes), pixels.data))


def _varint(number: int) -> bytes:
    """A length as protobuf writes it: seven bits a byte, the lowest first."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _outputs(answer: service_pb2.ModelInferResponse, rows: int, classes: int, *, features: bool) -> Outputs:
    """Tensors of an answer.

    Raises:
        Internal: Triton's model has other outputs than ours.
    """
    named: dict[str, NDArray[np.float32]] = {}
    for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        if tensor.datatype == "FP32":
            named[tensor.name] = np.frombuffer(raw, np.float32).reshape(tuple(tensor.shape))
    probabilities, hidden = named.get("probabilities"), named.get("features")
    fits = probabilities is not None and probabilities.shape == (rows, classes)
    if probabilities is None or not fits or (features and (hidden is None or len(hidden) != rows)):
        shapes = {tensor.name: tuple(tensor.shape) for tensor in answer.outputs}
        log.error("%s answers %s to %d rows of %d classes", answer.model_name, shapes, rows, classes)
        raise Internal()
    return Outputs(probabilities, hidden)
