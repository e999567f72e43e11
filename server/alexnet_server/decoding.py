"""Decoding on threads: encoded photos to images, and what is wrong with a photo to the table's errors."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet_server import preprocess
from alexnet_server.errors import PHOTO_ERRORS, Internal, InvalidRequest, ServingError, Unavailable

log = logging.getLogger(__name__)

Photo = bytes | NDArray[np.uint8]
"""An encoded photo, or a ready `[256, 256, 3]` RGB image as `preprocess.prepare` makes it."""
_SMALL_BYTES = 32 * 2**20
"""Photos that take less to decode do not count: 8 megapixels of a PNG, any baseline JPEG."""
IMAGE_SHAPE = (preprocess.SIDE, preprocess.SIDE, 3)


class Decoded(NamedTuple):
    """An image, and when decoding it began and ended (`time.monotonic`; the same for a ready one)."""

    image: NDArray[np.uint8]
    start: float
    end: float


class Decoders:
    """Threads that decode photos.

    A photo of 50 megapixels takes 200 MB and more while it is decoded, an ordinary one a few. Large ones have
    threads of their own, and wait there until the memory that they share has room, so that neither memory nor
    the other photos suffer when many of them come at once.

    Args:
        threads: Photos decoded at a time, and as many large ones beside them.
        max_bytes: Longest photo.
        max_pixels: Most pixels, as a photo's header announces them.
        memory_bytes: What large photos may take together; one that needs more is decoded alone.
    """

    def __init__(self, threads: int, *, max_bytes: int, max_pixels: int, memory_bytes: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="alexnet-decode")
        self._large_pool = ThreadPoolExecutor(threads, thread_name_prefix="alexnet-decode-large")
        self._memory = _Memory(memory_bytes)
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._closed = False

    async def decode(self, photo: Photo) -> Decoded:
        """The image of a photo.

        A caller that is cancelled before a thread has begun costs no decoding.

        Raises:
            PhotoRejected: The photo is at fault.
            InvalidRequest: A ready image has another shape or dtype.
            Unavailable: The server is closing.
            Internal: We are.
        """
        if not isinstance(photo, bytes):
            now = time.monotonic()
            return Decoded(_check_image(photo), now, now)
        try:
            run = asyncio.get_running_loop().run_in_executor
            decoded = await run(self._pool, self._prepare_small, photo)
            if isinstance(decoded, Decoded):
                return decoded
            left = threading.Event()
            try:
                return await run(self._large_pool, self._prepare_large, photo, decoded, left)
            finally:
                left.set()
        except preprocess.PhotoError as error:
            raise self._rejection(error, photo) from None
        except Exception as error:
            if self._closed:
                raise Unavailable("The server is closing.", retry_after_s=1.0) from None
            log.exception("decoding failed")
            raise Internal() from error

    def close(self) -> None:
        """Drop photos whose decoding has not begun."""
        self._closed = True
        self._memory.close()
        for pool in (self._pool, self._large_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    def _open(self, photo: bytes) -> preprocess.OpenPhoto:
        return preprocess.open_photo(photo, max_bytes=self._max_bytes, max_pixels=self._max_pixels)

    def _prepare_small(self, photo: bytes) -> Decoded | int:
        """The image, or the bytes of memory that a large one will take."""
        start = time.monotonic()
        opened = self._open(photo)
        if opened.memory_bytes > _SMALL_BYTES:
            return opened.memory_bytes
        return Decoded(preprocess.finish(opened), start, time.monotonic())

    def _prepare_large(self, photo: bytes, memory_bytes: int, left: threading.Event) -> Decoded:
        with self._memory.hold(memory_bytes):
            start = time.monotonic()
            if left.is_set():
                raise TimeoutError("nobody waits for this photo any more")
            # Opened again: what waits for memory should hold none beyond its own bytes.
            return Decoded(preprocess.finish(self._open(photo)), start, time.monotonic())

    def _rejection(self, error: preprocess.PhotoError, photo: bytes) -> ServingError:
        message = str(error)
        if error.code == "too_large":
            setting = "--max-photo-bytes" if len(photo) > self._max_bytes else "--max-pixels"
            message += f" Whoever runs this server can raise `{setting}`."
        return PHOTO_ERRORS[error.code](message)


class _Memory:
    """Bytes that threads share, first come, first served."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._held = 0
        self._line: deque[object] = deque()
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Wait until there is room for `count` bytes, or nobody else holds any; RuntimeError once closed."""
        place = object()
        with self._changed:
            self._line.append(place)
            self._changed.wait_for(lambda: self._closed or (self._line[0] is place and self._fits(count)))
            self._line.remove(place)
            self._held += count
            self._changed.notify_all()  # the next in line may fit too
        try:
            if self._closed:
                raise RuntimeError("closed")
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, count: int) -> bool:
        return self._held == 0 or self._held + count <= self._total


def _check_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.shape != IMAGE_SHAPE:
        raise InvalidRequest(
            f"a ready image must be uint8 [256,256,3], got {image.dtype} {list(image.shape)}"
        )
    return image
