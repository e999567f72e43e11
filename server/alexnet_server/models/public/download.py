"""Fetching a large file: progress, cut connections resumed, the checksum checked before it is there."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from alexnet_server.models.public.errors import WeightsError

ATTEMPTS = 5
WAIT_S = 1.0
"""Pause after the first cut; it doubles with each."""
TIMEOUT_S = 8.0
RETRY_S = 60.0
"""Nothing is tried again so long after the first failure."""
_CHUNK = 1 << 18
_REFUSED = (400, 401, 403, 404, 410, 451)

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes there will be, if known."""


def report(have: int, total: int | None) -> None:
    """``Progress`` as a line on stderr, where that is a terminal; its end anywhere."""
    share = f" of {total / 1e6:.0f} MB, {100 * have / total:.0f} %" if total else " MB"
    end = "\n" if have == total else ""
    if sys.stderr.isatty() or end:
        print(f"\r{have / 1e6:.0f}{share}", end=end, file=sys.stderr, flush=True)  # noqa: T201


def fetch(
    urls: Sequence[str],
    target: Path,
    digest: str | None,
    *,
    progress: Progress = report,
    stop: threading.Event | None = None,
) -> Path:
    """Download a file unless it is there already.

    What has arrived is kept in ``target.part`` across cut connections and restarts, and asked for no second
    time where the server can resume (and the file there is still the same, by its ETag or date).

    Args:
        urls: http or https, the next where one fails.
        target: the file; it appears complete and checked, or not at all.
        digest: ``sha256:HEX`` or ``sha1:HEX`` that it must have; None takes what comes.
        progress: called for every piece.
        stop: once set, fetching ends.

    Raises:
        WeightsError: every server refuses, the connection keeps breaking, or the file has another checksum;
            one line that says what to fetch by hand, and where to put it.
        OSError: it cannot be written; then nothing is left of it.
    """
    if target.exists() and (digest is None or matches(target, digest)):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    reasons = []
    for url in urls:
        try:
            _arrive(url, part, digest, _stoppable(progress, stop or threading.Event()))
            os.replace(part, target)
            return target
        except WeightsError as error:
            reasons.append(str(error))
            if stop is not None and stop.is_set():
                break
    raise WeightsError(f"{'; '.join(reasons)}. By hand: download {urls[0]} to {target}")


def digest_of(path: Path, algorithm: str) -> str:
    """``algorithm:HEX`` of a file."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def matches(path: Path, digest: str) -> bool:
    """Has the file that ``algorithm:HEX``?"""
    return digest_of(path, digest.partition(":")[0]) == digest.lower()


def _stoppable(progress: Progress, stop: threading.Event) -> Progress:
    def told(have: int, total: int | None) -> None:
        if stop.is_set():
            raise WeightsError("stopped")
        progress(have, total)

    return told


def _arrive(url: str, part: Path, digest: str | None, progress: Progress) -> None:
    """The whole of a file as its partial file, checked."""
    began = time.monotonic()
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT_S * 2 ** (attempt - 1))
        reason = _attempt(url, part, progress)
        if reason is None:
            break
        if attempt == 0:
            began = time.monotonic()
        if attempt == ATTEMPTS - 1 or time.monotonic() - began > RETRY_S:
            have = part.stat().st_size if part.exists() else 0
            raise WeightsError(
                f"{url}: {reason}, {attempt + 1} times; run it again to continue from {have:,} bytes"
            )
    _tag(part).unlink(missing_ok=True)
    if digest is not None and not matches(part, digest):
        found = digest_of(part, digest.partition(":")[0])
        part.unlink()
        raise WeightsError(
            f"{url} has {found}, published is {digest}: it was damaged in transit, or is another file"
        )


def _attempt(url: str, part: Path, progress: Progress) -> str | None:
    """None when the partial file is whole; otherwise why not, where it is worth another try."""
    try:
        return None if _receive(url, part, progress) else "the connection was cut"
    except urllib.error.HTTPError as error:
        if error.code in _REFUSED:
            raise WeightsError(f"{url}: {error.code} {error.reason}. Another place: --url URL") from error
        return f"{error.code} {error.reason}"
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    except OSError:  # a full disk: what is there would only be in the way
        part.unlink(missing_ok=True)
        _tag(part).unlink(missing_ok=True)
        raise


def _tag(part: Path) -> Path:
    """Where the ETag or date of a partial file is kept."""
    return part.with_name(part.name + ".tag")


def _receive(url: str, part: Path, progress: Progress) -> bool:
    """Add to the partial file what the server sends; True when it is whole."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "alexnet"})
    tag = _tag(part).read_text(encoding="utf-8") if have and _tag(part).exists() else ""
    if have and tag:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing beyond what is there: whole already, or another file by now
            raise
        if (error.headers.get("Content-Range") or "").rpartition("/")[2] == str(have):
            return True
        part.unlink()
        return False
    with response, part.open("ab" if response.status == 206 else "wb") as file:
        if response.status != 206:
            have = 0
            _tag(part).write_text(_identity(response.headers), encoding="utf-8")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        return _copy(response, file, have, total, progress)


def _identity(headers: http.client.HTTPMessage) -> str:
    """What If-Range compares: a strong ETag, or the date; empty when the server gives neither."""
    etag: str = headers.get("ETag") or ""
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or ""


def _copy(
    response: http.client.HTTPResponse, file: BinaryIO, have: int, total: int | None, progress: Progress
) -> bool:
    if have != total:
        progress(have, total)
    while chunk := response.read(_CHUNK):
        file.write(chunk)
        have += len(chunk)
        progress(have, total)
    return total is None or have == total
