"""What can go wrong, raised where it is found and mapped to HTTP and gRPC in one table.

::

    ServingError                  answered to a caller; each class is one row of TABLE
      InvalidRequest              no image part, bad `top_k`, a wrong tensor
      Unauthenticated             a key is required
      NotFound                    no such path
      UnknownModel                no such model
      MethodNotAllowed
      PhotoRejected               by `preprocess.prepare`: too_large, unsupported_format, undecodable
      TooLarge                    a photo or a body over its limit
      UnsupportedFormat           not a photo that we read
      Overloaded                  the queue is full
      Unavailable                 not ready, closing, engine gone
      DeadlineExceeded
      Internal                    the caller learns a request id, nothing else
    StartError                    ends the process before it is ready, in one line
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class ErrorRow:
    """One row of the error table."""

    code: str
    """Stable name, in the `code` member of a problem document and in gRPC's `x-error-code` trailer."""
    http_status: int
    grpc_status: str
    """Name of a `grpc.StatusCode`; a name, so that nothing here imports grpc."""
    retryable: bool
    """True when the same request may succeed later, unchanged."""
    title: str
    meaning: str
    """For the documentation page."""


TABLE: Mapping[str, ErrorRow] = {
    row.code: row
    for row in (
        ErrorRow(
            "invalid_request",
            400,
            "INVALID_ARGUMENT",
            False,
            "Invalid request",
            "The request does not say what it should: no image part, a bad `top_k`, a wrong tensor.",
        ),
        ErrorRow(
            "unauthenticated", 401, "UNAUTHENTICATED", False, "Unauthenticated", "An API key is required."
        ),
        ErrorRow("not_found", 404, "NOT_FOUND", False, "Not found", "There is nothing at this path."),
        ErrorRow(
            "unknown_model", 404, "NOT_FOUND", False, "Unknown model", "No such model or view mode is loaded."
        ),
        ErrorRow(
            "method_not_allowed",
            405,
            "UNIMPLEMENTED",
            False,
            "Method not allowed",
            "The path exists, but not with this method; `Allow` names those it has.",
        ),
        ErrorRow(
            "too_large",
            413,
            "INVALID_ARGUMENT",
            False,
            "Too large",
            "A photo or a body has too many bytes, or a photo's header announces too many pixels.",
        ),
        ErrorRow(
            "unsupported_format",
            415,
            "INVALID_ARGUMENT",
            False,
            "Unsupported format",
            "The bytes are not a photo in a format that is read here.",
        ),
        ErrorRow(
            "undecodable",
            422,
            "INVALID_ARGUMENT",
            False,
            "Undecodable photo",
            "The format is known, but the file is truncated, corrupt or empty.",
        ),
        ErrorRow(
            "overloaded",
            429,
            "RESOURCE_EXHAUSTED",
            True,
            "Overloaded",
            "The queue is full; `Retry-After` says when there will be room.",
        ),
        ErrorRow(
            "unavailable",
            503,
            "UNAVAILABLE",
            True,
            "Unavailable",
            "Not ready, closing, or the engine has gone.",
        ),
        ErrorRow(
            "deadline_exceeded",
            504,
            "DEADLINE_EXCEEDED",
            True,
            "Deadline exceeded",
            "The request's time ran out, or would run out in the queue.",
        ),
        ErrorRow("internal", 500, "INTERNAL", False, "Internal error", "Our fault; quote the request id."),
    )
}


class ServingError(Exception):
    """An error with an answer: a row of the table, and a message that says how to mend it.

    Args:
        message: For the caller; never an internal name or a path.
        retry_after_s: Seconds until a retry is worth while, for retryable codes.
        errors: One mapping for each offending field (`{"field", "message"}`), where there are several.
    """

    code: ClassVar[str]

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        errors: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.errors = tuple(errors)

    @property
    def row(self) -> ErrorRow:
        """HTTP status, gRPC status and the rest of this error's row."""
        return TABLE[self.code]


class InvalidRequest(ServingError):
    """The request does not say what it should."""

    code = "invalid_request"


class Unauthenticated(ServingError):
    """A key is required and was missing or wrong."""

    code = "unauthenticated"


class NotFound(ServingError):
    """Nothing lives at this path."""

    code = "not_found"


class UnknownModel(ServingError):
    """No model of this name, or no model for these views, is loaded."""

    code = "unknown_model"


class MethodNotAllowed(ServingError):
    """The path exists, but not with this method."""

    code = "method_not_allowed"


class PhotoRejected(ServingError):
    """The photo itself is at fault; the caller must send another."""


class TooLarge(PhotoRejected):
    """More bytes or pixels than the limits allow."""

    code = "too_large"

    @classmethod
    def photo(cls, limit_bytes: int) -> TooLarge:
        """A photo of more than `limit_bytes`."""
        mend = "scale it down (256 pixels on the shorter side are enough) or save it as JPEG"
        return cls._of("photo", limit_bytes, mend, "--max-photo-bytes")

    @classmethod
    def request(cls, limit_bytes: int, what: str = "request") -> TooLarge:
        """A request of more than `limit_bytes`."""
        return cls._of(what, limit_bytes, "send fewer photos or rows in each", "--max-body-bytes")

    @classmethod
    def _of(cls, what: str, limit_bytes: int, mend: str, setting: str) -> TooLarge:
        whole = limit_bytes % 2**18 == 0
        size = f"{limit_bytes / 2**20:g} MiB" if whole else f"{limit_bytes:,} bytes"
        raising = f"Whoever runs this server can raise `{setting}`."
        return cls(f"The {what} is larger than {size}; {mend}. {raising}")


class UnsupportedFormat(PhotoRejected):
    """Not an image format that is read here."""

    code = "unsupported_format"


class Undecodable(PhotoRejected):
    """Truncated, corrupt or empty."""

    code = "undecodable"


class Overloaded(ServingError):
    """The queue is full."""

    code = "overloaded"


class Unavailable(ServingError):
    """Not ready, closing, or the engine has gone."""

    code = "unavailable"


class DeadlineExceeded(ServingError):
    """The request's time ran out, or would run out in the queue."""

    code = "deadline_exceeded"


class Internal(ServingError):
    """Our fault."""

    code = "internal"

    def __init__(self, message: str = "Something went wrong on our side; quote the request id.") -> None:
        super().__init__(message)


class StartError(Exception):
    """The server cannot start: one line saying what is wrong and how to mend it."""


PHOTO_ERRORS: Mapping[str, type[PhotoRejected]] = {
    error.code: error for error in (TooLarge, UnsupportedFormat, Undecodable)
}
"""`preprocess.PhotoError.code` to the error that answers it."""
