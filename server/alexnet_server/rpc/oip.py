"""The protocol over gRPC: `inference.GRPCInferenceService`, in tritonclient's own messages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer

from alexnet_server.call import Call, Calls, current
from alexnet_server.errors import Internal, InvalidRequest, ServingError, TooLarge
from alexnet_server.oip import inference, models, statistics, tensors
from alexnet_server.oip.inference import Output, Wanted
from alexnet_server.oip.models import Served
from alexnet_server.oip.tensors import Rows
from alexnet_server.rpc import errors
from alexnet_server.rpc.guard import timeout_s
from alexnet_server.service import Classifier
from alexnet_server.settings import Settings

log = logging.getLogger(__name__)


class InferenceRpc(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The servicer; each method translates, and nothing else.

    Args:
        classifier: The service.
        calls: Accounts for each request of a stream as for a call.
        settings: Limits.
    """

    def __init__(self, classifier: Classifier, calls: Calls, settings: Settings) -> None:
        self._classifier = classifier
        self._calls = calls
        self._settings = settings

    async def ServerLive(self, _request: Any, _context: Any) -> Any:
        """The process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _request: Any, _context: Any) -> Any:
        """Whether requests should be sent here."""
        return pb.ServerReadyResponse(ready=self._classifier.problem() is None)

    async def ModelReady(self, request: Any, _context: Any) -> Any:
        """Whether the model takes requests; false for one there is not."""
        try:
            models.find(self._classifier, request.name, request.version)
        except ServingError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._classifier.problem() is None)

    async def ServerMetadata(self, _request: Any, _context: Any) -> Any:
        """Name, version and extensions of this server."""
        return pb.ServerMetadataResponse(
            name=models.SERVER_NAME, version=version("alexnet"), extensions=models.EXTENSIONS
        )

    async def ModelMetadata(self, request: Any, _context: Any) -> Any:
        """A model's tensors."""
        served = models.find(self._classifier, request.name, request.version)
        return json_format.ParseDict(served.metadata(), pb.ModelMetadataResponse())

    async def ModelConfig(self, request: Any, _context: Any) -> Any:
        """A model's configuration in Triton's form."""
        served = models.find(self._classifier, request.name, request.version)
        return json_format.ParseDict({"config": served.config()}, pb.ModelConfigResponse())

    async def ModelStatistics(self, request: Any, _context: Any) -> Any:
        """A model's statistics, or every model's."""
        if request.name:
            chosen = [models.find(self._classifier, request.name, request.version)]
        else:
            chosen = list(models.every(self._classifier).values())
        registry = self._classifier.metrics.registry
        stats = [statistics.of_model(registry, served) for served in chosen]
        return json_format.ParseDict({"model_stats": stats}, pb.ModelStatisticsResponse())

    async def RepositoryIndex(self, _request: Any, _context: Any) -> Any:
        """What the model repository holds."""
        listed = [pb.RepositoryIndexResponse.ModelIndex(**entry) for entry in models.index(self._classifier)]
        return pb.RepositoryIndexResponse(models=listed)

    async def RepositoryModelLoad(self, _request: Any, _context: Any) -> Any:
        """Refused."""
        raise InvalidRequest(models.NO_CONTROL)

    async def RepositoryModelUnload(self, _request: Any, _context: Any) -> Any:
        """Refused."""
        raise InvalidRequest(models.NO_CONTROL)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """An inference."""
        served = models.find(self._classifier, request.model_name, request.model_version)
        current.get().model = served.model.name
        return await self._infer(request, served, context)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        """Inferences one after another; one that fails says so in its answer, and the stream goes on."""
        async for request in request_iterator:
            answer = await self._streamed(request, context)
            del request  # or it would be held, uncounted, while the next one is waited for
            # One answer a request, and so the last one; Triton says it in every streamed answer.
            answer.infer_response.parameters["triton_final_response"].bool_param = True
            yield answer

    async def _streamed(self, request: Any, context: Any) -> Any:
        stream = current.get()
        call = Call(stream.name, stream.request_id)
        try:
            served = models.find(self._classifier, request.model_name, request.model_version)
            call.model = served.model.name
            return pb.ModelStreamInferResponse(infer_response=await self._infer(request, served, context))
        except asyncio.CancelledError:
            call.code = "cancelled"
            raise
        except ServingError as error:
            call.code = error.code
            return _failed(request, error)
        except Exception:
            log.exception("a request of a stream failed")
            call.code = "internal"
            return _failed(request, Internal())
        finally:
            call.status = errors.status_name(call.code)
            self._calls.account(call)

    async def _infer(self, request: Any, served: Served, context: Any) -> Any:
        if current.get().message_bytes > self._settings.max_body_bytes:
            raise TooLarge.request(self._settings.max_body_bytes)
        rows = _rows(request, served)
        wanted = [_wanted(output) for output in request.outputs] or inference.all_outputs(served)
        deadline = self._classifier.deadline(_timeout_s(request, context))
        outputs = await inference.infer(self._classifier, served, rows, wanted, deadline)
        return _response(request, served, outputs)


def _failed(request: Any, error: ServingError) -> Any:
    answer = pb.ModelInferResponse(
        model_name=request.model_name, model_version=request.model_version, id=request.id
    )
    return pb.ModelStreamInferResponse(error_message=errors.message(error), infer_response=answer)


def _rows(request: Any, served: Served) -> Rows:
    """The request's one input, from its raw or its typed contents."""
    inference.check_inputs(served, [each.name for each in request.inputs])
    entry = request.inputs[0]
    spec = served.input
    rows = tensors.check(spec, entry.datatype, list(entry.shape), served.model.max_batch_size)
    if "shared_memory_region" in entry.parameters:
        raise InvalidRequest(f"input {spec.name!r}: shared memory is not supported; send the tensor itself")
    filled = {field.name for field, _ in entry.contents.ListFields()}
    if request.raw_input_contents:
        if filled:
            raise InvalidRequest(
                f"input {spec.name!r}: give raw_input_contents or contents for the whole request, not both"
            )
        if len(request.raw_input_contents) != 1:
            raise InvalidRequest(
                f"raw_input_contents has {len(request.raw_input_contents)} entries for one input"
            )
        return tensors.from_raw(spec, rows, request.raw_input_contents[0])
    field = "bytes_contents" if spec.datatype == "BYTES" else "uint_contents"
    if filled != {field}:
        got = ", ".join(sorted(filled)) or "nothing"
        raise InvalidRequest(f"input {spec.name!r}: {spec.datatype} travels in contents.{field}; got {got}")
    if spec.datatype == "BYTES":
        elements = tuple(entry.contents.bytes_contents)
        if len(elements) != rows:
            raise InvalidRequest(f"input {spec.name!r}: expected {rows} elements, got {len(elements)}")
        return elements
    return tensors.from_numbers(spec, rows, entry.contents.uint_contents)


def _wanted(output: Any) -> Wanted:
    if "shared_memory_region" in output.parameters:
        raise InvalidRequest(f"output {output.name[:100]!r}: shared memory is not supported")
    parameter = output.parameters.get("classification")
    value = parameter.int64_param if parameter is not None else 0
    return Wanted(output.name, inference.class_count(output.name, value))


def _timeout_s(request: Any, context: Any) -> float | None:
    """The shorter of the call's deadline and the request's `timeout` parameter, which is in microseconds."""
    limits = [limit for limit in (timeout_s(context),) if limit is not None]
    if "timeout" in request.parameters:
        parameter = request.parameters["timeout"]
        timeout_us = getattr(parameter, parameter.WhichOneof("parameter_choice") or "int64_param")
        if isinstance(timeout_us, bool) or not isinstance(timeout_us, int) or timeout_us < 0:
            raise InvalidRequest("The parameter `timeout` must be a whole number of microseconds.")
        limits += [timeout_us / 1e6] if timeout_us else []
    return min(limits) if limits else None


def _response(request: Any, served: Served, outputs: Sequence[Output]) -> Any:
    return pb.ModelInferResponse(
        model_name=served.name,
        model_version=served.model.version,
        id=request.id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(
                name=output.name, datatype=output.datatype, shape=output.values.shape
            )
            for output in outputs
        ],
        raw_output_contents=[tensors.to_raw(output.values) for output in outputs],
    )
