"""Photos in a request: the whole body, or the `image` parts of a multipart form."""

from __future__ import annotations

import re

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from alexnet_server.errors import InvalidRequest, ServingError, TooLarge, UnsupportedFormat
from alexnet_server.http.body import Body

FIELD = b"image"
MAX_PHOTOS = 32
"""Photos in one request."""
_MAX_PARTS = 2 * MAX_PHOTOS
_HINT = "send it as field `image` (`curl -F image=@photo.jpg`) or as the body (`--data-binary @photo.jpg`)"
_STRIPPED = re.compile(rb"[\r\n\0]")
"""What curl's -d removes from a file, and what no photo is without."""

Upload = bytes | ServingError
"""A photo, or what is wrong with its part."""


async def read_photo(request: Request, body: Body, *, max_photo_bytes: int) -> bytes:
    """The one photo of a request.

    Raises:
        InvalidRequest: There is none, or several, or the body is not what its headers say.
        ServingError: Any that reading a `Body` raises.
    """
    photos = await read_photos(request, body, max_photo_bytes=max_photo_bytes)
    if len(photos) != 1:
        raise InvalidRequest(
            f"Found {len(photos)} `image` parts, expected one; /classify/batch takes several."
        )
    if isinstance(photos[0], ServingError):
        raise photos[0]
    return photos[0]


async def read_photos(request: Request, body: Body, *, max_photo_bytes: int) -> list[Upload]:
    """The photos of a request, 1 to 32, in order.

    Raises:
        InvalidRequest: There is none, or too many, or the body is not what its headers say.
        UnsupportedFormat: The body is compressed.
        ServingError: Any that reading a `Body` raises.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedFormat(
            f"Content-Encoding {encoding[:40]!r} is not read here: send photos as they are."
        )
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        parts = _Parts(options.get(b"boundary", b""), max_photo_bytes)
        async for chunk in body:
            parts.write(chunk)
        return parts.finish()
    body.is_photo(max_photo_bytes)
    photo = await body.read()
    if not photo:
        raise InvalidRequest(f"The request has no photo: {_HINT}.")
    if kind == b"application/x-www-form-urlencoded" and not _STRIPPED.search(photo):
        raise InvalidRequest(
            "The body is a form or text, or a photo whose line breaks and zeros `curl -d` removed. "
            "Send the photo with `-F image=@photo.jpg` or `--data-binary @photo.jpg` instead."
        )
    if kind == b"application/json" and photo.lstrip()[:1] in (b"{", b"["):
        raise InvalidRequest(f"The body is JSON, not a photo: {_HINT}; /v2 takes tensors as JSON.")
    return [photo]


class _Parts:
    """Collects the `image` parts of a form as it arrives; other fields are skipped."""

    def __init__(self, boundary: bytes, max_photo_bytes: int) -> None:
        self._max_photo_bytes = max_photo_bytes
        self._photos: list[bytearray | ServingError] = []
        self._others: list[str] = []
        self._count = 0
        self._header = b""
        self._value = b""
        self._disposition: bytes | None = None
        self._wanted = False
        self._text = False
        self._ended = False
        if not boundary:
            raise InvalidRequest(
                "The multipart Content-Type names no boundary: let the client set it, as `curl -F` does."
            )
        try:
            self._parser = MultipartParser(
                boundary,
                callbacks={
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise InvalidRequest("The multipart boundary is not acceptable.") from None

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise InvalidRequest("The body is not the multipart form that its Content-Type says.") from None

    def finish(self) -> list[Upload]:
        if not self._ended:
            raise InvalidRequest("The multipart form ends before its closing boundary.")
        if not self._photos:
            found = f" (found: {', '.join(self._others[:5])})" if self._others else ""
            raise InvalidRequest(f"The form has no part named `image`{found}: {_HINT}.")
        return [photo if isinstance(photo, ServingError) else bytes(photo) for photo in self._photos]

    def _begin(self) -> None:
        self._count += 1
        if self._count > _MAX_PARTS:
            raise InvalidRequest(f"The form has more than {_MAX_PARTS} parts.")
        self._header, self._value, self._disposition = b"", b"", None

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _headers_end(self) -> None:
        options = parse_options_header(self._disposition)[1]
        name = options.get(b"name", b"")
        self._wanted = name == FIELD
        self._text = b"filename" not in options
        if not self._wanted:
            self._others.append(repr(name.decode("utf-8", "replace")[:40]))
        elif len(self._photos) == MAX_PHOTOS:
            raise InvalidRequest(f"A request may carry {MAX_PHOTOS} photos; send the others in another.")
        else:
            self._photos.append(bytearray())

    def _data(self, data: bytes, start: int, end: int) -> None:
        photo = self._photos[-1] if self._wanted else None
        if not isinstance(photo, bytearray):
            return
        if len(photo) + end - start > self._max_photo_bytes:
            self._photos[-1] = TooLarge.photo(self._max_photo_bytes)
        else:
            photo += memoryview(data)[start:end]

    def _part_end(self) -> None:
        """Tell a forgotten @ (`curl -F image=photo.jpg` sends the name) from a file that is no photo."""
        photo = self._photos[-1] if self._wanted and self._text else None
        if isinstance(photo, bytearray) and 0 < len(photo) < 1000 and photo.isascii() and 0 not in photo:
            text = str(photo[:60], "ascii")
            self._photos[-1] = InvalidRequest(
                f"The field `image` holds the text {text!r}, not a file: put an @ before the file's name, "
                "`curl -F image=@photo.jpg`."
            )

    def _end(self) -> None:
        self._ended = True
