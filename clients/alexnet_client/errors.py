"""What can go wrong with a call, as exceptions that say what to do about it.

AlexNetError
├── InvalidRequest        fix the call (top_k, views, model, ...)
│   ├── UnknownModel      `alexnet health` or GET /models names the models there are
│   └── InvalidImage      fix the photo
│       ├── TooLarge      send a smaller photo
│       └── Unreadable    the file cannot be read here; also an OSError
├── Unauthenticated       give the client an `api_key` that the server knows
├── Overloaded            wait `retry_after_s`, or send less
├── Unavailable           nobody (ready) is listening there; try again later
├── DeadlineExceeded      give it more time, or take it for lost
└── ServerError           the server's fault; its log knows the `request_id`
"""

from __future__ import annotations


class AlexNetError(Exception):
    """Base of everything the client raises of its own.

    Attributes:
        code: the server's stable word for it, such as `undecodable`.
        request_id: the id under which the server logged the call, where it answered at all.
        retry_after_s: seconds after which another try may succeed; None when the same call would fail again.
    """

    def __init__(
        self, message: str, *, code: str, request_id: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class InvalidRequest(AlexNetError):
    """The call asks for something that does not exist or makes no sense; fix the call."""


class UnknownModel(InvalidRequest):
    """The server has no model of that name or no such views."""


class InvalidImage(InvalidRequest):
    """The photo cannot be read: wrong format, truncated, corrupt or missing; fix the photo."""


class TooLarge(InvalidImage):
    """The photo has more bytes or pixels than the server takes; send a smaller one."""


class Unreadable(InvalidImage, OSError):
    """The photo's file or address cannot be read on this machine; nothing was sent."""

    def __str__(self) -> str:
        return str(self.args[0])


class _Missing(Unreadable, FileNotFoundError):
    """There is no such file."""


def unreadable(cause: Exception) -> InvalidImage:
    """The error for a photo that could not be read: an `OSError` again where `cause` is one."""
    kind: type[InvalidImage] = InvalidImage
    if isinstance(cause, OSError):
        kind = _Missing if isinstance(cause, FileNotFoundError) else Unreadable
    error = kind(f"cannot read the photo: {cause}", code="unreadable")
    error.__cause__ = cause
    return error


class Unauthenticated(AlexNetError):
    """The server wants a key, or another one than it got."""


class Overloaded(AlexNetError):
    """The server's queue is full; wait `retry_after_s` seconds, or send less."""


class Unavailable(AlexNetError):
    """No server there, or one that is starting or closing."""


class DeadlineExceeded(AlexNetError):
    """No answer within `timeout_s`, or a queue already longer than that."""


class ServerError(AlexNetError):
    """The server failed, or spoke another protocol."""


BY_CODE: dict[str, type[AlexNetError]] = {
    "invalid_request": InvalidRequest,
    "not_found": InvalidRequest,
    "method_not_allowed": InvalidRequest,
    "unknown_model": UnknownModel,
    "unsupported_format": InvalidImage,
    "undecodable": InvalidImage,
    "unreadable": InvalidImage,  # only from the client: it could not read the file
    "too_large": TooLarge,
    "unauthenticated": Unauthenticated,
    "overloaded": Overloaded,
    "unavailable": Unavailable,
    "closed": Unavailable,  # only from the client: it has been closed
    "deadline_exceeded": DeadlineExceeded,
    "internal": ServerError,
}


def from_code(
    code: str, message: str, *, request_id: str | None = None, retry_after_s: float | None = None
) -> AlexNetError:
    """The exception for one of the server's codes; `ServerError` for one this version does not know."""
    kind = BY_CODE.get(code, ServerError)
    return kind(message, code=code, request_id=request_id, retry_after_s=retry_after_s)
