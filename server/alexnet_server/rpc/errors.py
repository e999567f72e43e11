"""The error table as gRPC answers: status, `google.rpc` details, and trailers that need no package."""

from __future__ import annotations

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from alexnet_server.errors import TABLE, ServingError

DOMAIN = "alexnet.v1"
"""Of the codes in ErrorInfo."""

_MAX_MESSAGE = 1000
"""Characters; headers of more than 8 KiB are refused by many a proxy."""

Trailers = tuple[tuple[str, str | bytes], ...]


def status_code(error: ServingError) -> grpc.StatusCode:
    """The status of an error's row in the table."""
    code: grpc.StatusCode = grpc.StatusCode[error.grpc_status]
    return code


def status_name(code: str) -> str:
    """The name of the status that a call ends with: by its code, `ok` and `cancelled` included."""
    row = TABLE.get(code)
    return row.grpc_status if row else code.upper()


def message(error: ServingError) -> str:
    """What the caller reads."""
    return error.message[:_MAX_MESSAGE]


def retry_after_ms(error: ServingError) -> int | None:
    """Whole milliseconds after which another try is worth while, at least 1; None for what will not pass."""
    if error.retry_after_s is None or not error.retryable:
        return None
    return max(1, round(error.retry_after_s * 1000))


def trailers(error: ServingError, request_id: str) -> Trailers:
    """What goes out behind a failed call."""
    found: Trailers = (
        ("x-error-code", error.code),
        ("grpc-status-details-bin", _status(error, request_id).SerializeToString()),
    )
    wait_ms = retry_after_ms(error)
    # Only for `overloaded`: the retry of `unavailable` should go to another server, and at once.
    if wait_ms is not None and error.code == "overloaded":
        found += (("grpc-retry-pushback-ms", str(wait_ms)),)
    return found


def _status(error: ServingError, request_id: str) -> Status:
    status = Status(code=status_code(error).value[0], message=message(error))
    metadata = {"code": error.code, "request_id": request_id}
    status.details.add().Pack(ErrorInfo(reason=error.code.upper(), domain=DOMAIN, metadata=metadata))
    wait_ms = retry_after_ms(error)
    if wait_ms is not None:
        delay = Duration()
        delay.FromMilliseconds(wait_ms)
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    if error.grpc_status == "INVALID_ARGUMENT":
        violations = error.errors or ({"field": "", "message": message(error)},)
        fields = [
            BadRequest.FieldViolation(field=each["field"], description=each["message"]) for each in violations
        ]
        status.details.add().Pack(BadRequest(field_violations=fields))
    return status
