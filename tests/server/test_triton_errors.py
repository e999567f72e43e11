"""What Triton's refusals mean to our callers: its own words, as 2.51 says them, to the error table."""

import grpc
import grpc.aio
import pytest

from alexnet_server.engines import Model
from alexnet_server.engines.triton import TritonEngine
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
