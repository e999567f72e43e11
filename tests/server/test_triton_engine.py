"""What goes to Triton, and what its refusals, in the words of 2.51, mean to our callers."""

import grpc
import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest

from alexnet_server.engines import Model
from alexnet_server.engines.triton import TritonEngine, _request
from alexnet_server.errors import DeadlineExceeded, Internal, Overloaded, Unavailable

MODEL = Model("alexnet", "1", (), 1, "center", 32, 4096, "onnxruntime_onnx", "")
Code = grpc.StatusCode
REFUSALS = [
    (Code.UNAVAILABLE, "[request id: <id_unknown>] Exceeds maximum queue size", Overloaded),
    (Code.UNAVAILABLE, "[request id: <id_unknown>] Request timeout expired", DeadlineExceeded),
    (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceeded),
    (
        Code.UNAVAILABLE,
        "Server is stopping, scheduler for model has stopped accepting new inference requests",
        Unavailable,
    ),
    (Code.UNAVAILABLE, "failed to connect to all addresses; last error: Connection refused", Unavailable),
    (Code.UNAVAILABLE, "Socket closed", Unavailable),
    (Code.UNAVAILABLE, "Request for unknown model: 'alexnet' version 1 is not at ready state", Unavailable),
    (Code.NOT_FOUND, "Request for unknown model: 'alexnet' is not found", Unavailable),
    (Code.NOT_FOUND, "Request for unknown model: 'alexnet' has no available versions", Unavailable),
    (
        Code.INTERNAL,
        "Failed to process the request(s) for model instance 'alexnet_0_0', message: "
        "Stub process 'alexnet_0_0' is not healthy.",
        Unavailable,
    ),
    (Code.CANCELLED, "Request cancelled", Unavailable),
    # A message over gRPC's own limit is no overload: another try would fail the same way.
    (Code.RESOURCE_EXHAUSTED, "Received message larger than max", Internal),
    (Code.INVALID_ARGUMENT, "inference request batch-size must be <= 32 for 'alexnet'", Internal),
    (Code.INTERNAL, "onnx runtime error: out of memory", Internal),
    (Code.UNKNOWN, "", Internal),
]


@pytest.mark.parametrize(("code", "words", "expected"), REFUSALS)
async def test_refusals(code, words, expected):
    engine = TritonEngine("127.0.0.1:1", [], {}, probe_timeout_s=1)
    refusal = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=words)
    error = engine._error(refusal)
    assert type(error) is expected
    assert words.rpartition(" ")[2] not in error.message or not words  # nothing internal reaches the caller
    if expected in (Overloaded, Unavailable):
        assert error.retry_after_s is not None
    await engine.close()


async def test_nobody_there():
    """Refused at once, not after the deadline, and with what the operator needs."""
    engine = TritonEngine("127.0.0.1:1", [MODEL], {"alexnet": ""}, probe_timeout_s=10)
    assert "127.0.0.1:1" in (await engine.problem() or "")
    await engine.close()


@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("features", [False, True])
def test_the_request_is_what_protobuf_reads(rows, features):
    images = np.random.default_rng(0).integers(0, 256, (rows, 256, 256, 3), np.uint8)
    for given in (images, images[:, ::-1]):  # rows of any stride
        found = ModelInferRequest.FromString(_request("alexnet", given, features=features, timeout_s=1.5))
        assert found.model_name == "alexnet"
        (entry,) = found.inputs
        assert (entry.name, entry.datatype, list(entry.shape)) == ("images", "UINT8", [rows, 256, 256, 3])
        assert list(found.raw_input_contents) == [given.tobytes()]
        wanted = ["probabilities", "features"] if features else ["probabilities"]
        assert [output.name for output in found.outputs] == wanted
        assert found.parameters["timeout"].int64_param == 1_500_000
