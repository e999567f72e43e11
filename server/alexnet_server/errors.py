"""What can go wrong, raised where it is found; each class is a row of the table of both protocols."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

TABLE: dict[str, type[ServingError]] = {}
"""The classes with a code of their own, by code."""


class ServingError(Exception):
    """An error with an answer: a row of the table, and a message that says how to fix it.

    Args:
        message: For the caller; never an internal name or a path.
        retry_after_s: Seconds until a retry is worth while, for retryable codes.
        errors: One mapping for each offending field (`{"field", "message"}`), where there are several.
    """

    code: ClassVar[str]
    """Stable name, in the `code` member of a problem document and in gRPC's `x-error-code` trailer."""
    http_status: ClassVar[int]
    grpc_status: ClassVar[str]
    """Name of a `grpc.StatusCode`; a name, so that nothing here imports grpc."""
    retryable: ClassVar[bool]
    """True when the same request may succeed later, unchanged."""
    title: ClassVar[str]
    meaning: ClassVar[str]
    """For the documentation page; it is the class's own docstring."""

    def __init_subclass__(
        cls, code: str = "", http: int = 0, grpc: str = "", title: str = "", retryable: bool = False
    ) -> None:
        """Add a class with a code to the table; without a `title`, the code in words is its title."""
        if not code:
            return
        cls.code, cls.http_status, cls.grpc_status, cls.retryable = code, http, grpc, retryable
        cls.title = title or code.replace("_", " ").capitalize()
        cls.meaning = inspect.cleandoc(cls.__doc__ or cls.title)
        TABLE[code] = cls

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


class InvalidRequest(ServingError, code="invalid_request", http=400, grpc="INVALID_ARGUMENT"):
    """The request is not valid: no image part, a bad `top_k`, a wrong tensor."""


class Unauthenticated(ServingError, code="unauthenticated", http=401, grpc="UNAUTHENTICATED"):
    """An API key is required."""


class NotFound(ServingError, code="not_found", http=404, grpc="NOT_FOUND"):
    """There is nothing at this path."""


class UnknownModel(ServingError, code="unknown_model", http=404, grpc="NOT_FOUND"):
    """No such model or view mode is loaded."""


class MethodNotAllowed(ServingError, code="method_not_allowed", http=405, grpc="UNIMPLEMENTED"):
    """The path exists, but not with this method; `Allow` lists the methods it has."""


class PhotoRejected(ServingError):
    """The photo itself is at fault; the caller must send another."""


class TooLarge(PhotoRejected, code="too_large", http=413, grpc="INVALID_ARGUMENT"):
    """A photo or a body has too many bytes, or a photo's header announces too many pixels."""

    @classmethod
    def photo(cls, limit_bytes: int) -> TooLarge:
        """A photo of more than `limit_bytes`."""
        fix = "scale it down (256 pixels on the shorter side are enough) or save it as JPEG"
        return cls._of("photo", limit_bytes, fix, "--max-photo-bytes")

    @classmethod
    def request(cls, limit_bytes: int, when: str = "") -> TooLarge:
        """A request of more than `limit_bytes`; `when` may say once what was done to it."""
        return cls._of("request", limit_bytes, "send fewer photos or rows in each", "--max-body-bytes", when)

    @classmethod
    def _of(cls, what: str, limit_bytes: int, fix: str, setting: str, when: str = "") -> TooLarge:
        whole = limit_bytes % 2**18 == 0
        size = f"{limit_bytes / 2**20:g} MiB" if whole else f"{limit_bytes:,} bytes"
        raising = f"Whoever runs this server can raise `{setting}`."
        return cls(f"The {what} is larger than {size}{when}; {fix}. {raising}")


class UnsupportedFormat(PhotoRejected, code="unsupported_format", http=415, grpc="INVALID_ARGUMENT"):
    """The bytes are not a photo in a supported format."""


class Undecodable(
    PhotoRejected, code="undecodable", http=422, grpc="INVALID_ARGUMENT", title="Undecodable photo"
):
    """The format is known, but the file is truncated, corrupt or empty."""


class Overloaded(ServingError, code="overloaded", http=429, grpc="RESOURCE_EXHAUSTED", retryable=True):
    """The queue is full; `Retry-After` says when there will be room."""


class Unavailable(ServingError, code="unavailable", http=503, grpc="UNAVAILABLE", retryable=True):
    """The server is not ready or is shutting down, or its engine is gone."""


class DeadlineExceeded(
    ServingError, code="deadline_exceeded", http=504, grpc="DEADLINE_EXCEEDED", retryable=True
):
    """The request's time ran out, or would run out in the queue."""


class Internal(ServingError, code="internal", http=500, grpc="INTERNAL", title="Internal error"):
    """A fault of the server; quote the request id when you report it."""

    def __init__(self, message: str = "The server failed; quote the request id when you report it.") -> None:
        super().__init__(message)


class StartError(Exception):
    """The server cannot start: one line saying what is wrong and how to fix it."""


PHOTO_ERRORS: Mapping[str, type[PhotoRejected]] = {
    error.code: error for error in (TooLarge, UnsupportedFormat, Undecodable)
}
"""`preprocess.PhotoError.code` to the error that answers it."""


def did_you_mean(word: str, known: Collection[str], cutoff: float = 0.6) -> str:
    """Of the words `known` the one that was probably meant by `word`; empty where none is near.

    Args:
        word: As the caller wrote it.
        known: What it could have been.
        cutoff: From 0 to 1: how near.
    """
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=cutoff)), "")
