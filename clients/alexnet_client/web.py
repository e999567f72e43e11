"""A photo's bytes from its URL."""

from __future__ import annotations

import time
from typing import Final
from urllib import request as urllib_request

from alexnet_client import errors

MAX_BYTES: Final = 10 * 1024 * 1024
"""The server takes no more."""
_TIMEOUT_S: Final = 30.0
_PIECE_BYTES: Final = 64 * 1024


def fetch(url: str) -> bytes:
    """What is at an http or https URL.

    Raises:
        OSError: it cannot be fetched within 30 seconds, or the answer is an error.
        TooLarge: it is larger than 10 MiB.
        ValueError: it is no URL.
    """
    until = time.monotonic() + _TIMEOUT_S
    pieces: list[bytes] = []
    size = 0
    request = urllib_request.Request(url, headers={"User-Agent": "alexnet-client", "Accept": "image/*"})
    with _opener().open(request, timeout=_TIMEOUT_S) as answer:
        while piece := answer.read1(_PIECE_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_BYTES:
                raise errors.TooLarge(f"what is at {url} is larger than 10 MiB", code="too_large")
            if time.monotonic() > until:
                raise TimeoutError(f"{url} took longer than {_TIMEOUT_S:g} seconds")
    return b"".join(pieces)


def _opener() -> urllib_request.OpenerDirector:
    """Opens only http and https, wherever a redirect leads; uses the environment's proxies."""
    opener = urllib_request.OpenerDirector()
    for kind in (
        urllib_request.ProxyHandler,
        urllib_request.HTTPHandler,
        urllib_request.HTTPSHandler,
        urllib_request.HTTPRedirectHandler,
        urllib_request.HTTPDefaultErrorHandler,
        urllib_request.HTTPErrorProcessor,
        urllib_request.UnknownHandler,
    ):
        opener.add_handler(kind())
    return opener
