"""A multipart form as it arrives: its `image` parts are photos."""

from __future__ import annotations

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from alexnet_server.errors import InvalidRequest, ServingError, TooLarge

FIELD = b"image"
MAX_PHOTOS = 32
"""Photos in one request."""
HINT = "send it as field `image` (`curl -F image=@photo.jpg`) or as the body (`--data-binary @photo.jpg`)"
_MAX_PARTS = 2 * MAX_PHOTOS
_MAX_BLANKS = 1000

Upload = bytes | ServingError
"""A photo, or what is wrong with its part."""


class Form:
    """A form's photos.

    Args:
        boundary: From the Content-Type.
        max_photo_bytes: A longer part is an error in its place.

    Raises:
        InvalidRequest: There is no boundary, or none that can be.
    """

    def __init__(self, boundary: bytes, max_photo_bytes: int) -> None:
        if not boundary:
            raise InvalidRequest(
                "The multipart Content-Type has no boundary: let the client set it, as `curl -F` does."
            )
        self._parts = parts = _Parts(max_photo_bytes)
        self._delimiter = b"\r\n--" + boundary
        self._kept = b"\r\n"  # not yet given to the parser: a delimiter may end later; one may begin the body
        self._begun = False
        try:
            self._parser = MultipartParser(
                boundary,
                callbacks={
                    "on_part_begin": parts.begin,
                    "on_header_field": parts.header_name,
                    "on_header_value": parts.header_value,
                    "on_header_end": parts.header_end,
                    "on_headers_finished": parts.headers_end,
                    "on_part_data": parts.data,
                    "on_part_end": parts.part_end,
                    "on_end": parts.end,
                },
            )
        except FormParserError:
            raise InvalidRequest("The multipart boundary is not valid.") from None

    def write(self, chunk: bytes) -> None:
        """Take the next piece.

        Raises:
            InvalidRequest: It is no form, or one that asks for too much.
        """
        data, delimiter = self._kept + chunk, self._delimiter
        done = 0
        while (at := data.find(delimiter, done)) >= 0:
            end = at + len(delimiter)
            rest = data[end : end + _MAX_BLANKS].lstrip(b" \t")
            if not rest:
                break  # what follows is still to come
            self._give(data[done:end])
            done = len(data) - len(data[end:].lstrip(b" \t")) if rest[:1] == b"\r" else end
        # Of the last bytes none that might begin a delimiter.
        keep = at if at >= 0 else max(done, len(data) - len(delimiter) + 1)
        self._give(data[done:keep])
        self._kept = data[keep:]

    def finish(self) -> list[Upload]:
        """The photos, once all has been written.

        Raises:
            InvalidRequest: There is none, or the form has no end.
        """
        self._give(self._kept)
        if not self._begun:
            raise InvalidRequest("The body is not the multipart form that its Content-Type says.")
        return self._parts.finish()

    def _give(self, data: bytes) -> None:
        """To the parser, which knows neither a preamble nor blanks behind a boundary (RFC 2046, 5.1.1)."""
        if not self._begun:
            if not data.endswith(self._delimiter):
                return
            self._begun, data = True, self._delimiter[2:]
        try:
            self._parser.write(data)
        except FormParserError as error:
            if "header" in str(error):
                raise InvalidRequest(
                    f"A part of the form has more than {self._parser.max_header_count} headers, or one "
                    f"longer than {self._parser.max_header_size:,} bytes, or an invalid one."
                ) from None
            raise InvalidRequest("The body is not the multipart form that its Content-Type says.") from None


class _Parts:
    """Collects the `image` parts of a form as it arrives; other fields are skipped.

    It knows nothing of the parser that calls it: in a circle, its photos would wait for the collector.
    """

    def __init__(self, max_photo_bytes: int) -> None:
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

    def finish(self) -> list[Upload]:
        if not self._ended:
            raise InvalidRequest("The multipart form ends before its closing boundary.")
        if not self._photos:
            found = f" (found: {', '.join(self._others[:5])})" if self._others else ""
            raise InvalidRequest(f"The form has no part named `image`{found}: {HINT}.")
        return [photo if isinstance(photo, ServingError) else bytes(photo) for photo in self._photos]

    def begin(self) -> None:
        self._count += 1
        if self._count > _MAX_PARTS:
            raise InvalidRequest(f"The form has more than {_MAX_PARTS} parts.")
        self._header, self._value, self._disposition = b"", b"", None

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def headers_end(self) -> None:
        options = parse_options_header(self._disposition)[1]
        name = options.get(b"name", b"")
        self._wanted = name == FIELD
        self._text = b"filename" not in options
        if not self._wanted:
            self._others.append(repr(name.decode("utf-8", "replace")[:40]))
        elif len(self._photos) == MAX_PHOTOS:
            raise InvalidRequest(
                f"A request may carry {MAX_PHOTOS} photos; send the rest in another request."
            )
        else:
            self._photos.append(bytearray())

    def data(self, data: bytes, start: int, end: int) -> None:
        photo = self._photos[-1] if self._wanted else None
        if not isinstance(photo, bytearray):
            return
        if len(photo) + end - start > self._max_photo_bytes:
            self._photos[-1] = TooLarge.photo(self._max_photo_bytes)
        else:
            photo += memoryview(data)[start:end]

    def part_end(self) -> None:
        """Tell a forgotten @ (`curl -F image=photo.jpg` sends the name) from a file that is no photo."""
        photo = self._photos[-1] if self._wanted and self._text else None
        if isinstance(photo, bytearray) and 0 < len(photo) < 1000 and photo.isascii() and 0 not in photo:
            text = str(photo[:60], "ascii")
            self._photos[-1] = InvalidRequest(
                f"The field `image` contains the text {text!r}, not a file: put an @ before the file's name, "
                "`curl -F image=@photo.jpg`."
            )

    def end(self) -> None:
        self._ended = True
