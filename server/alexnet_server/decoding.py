"""Decoding on threads: encoded photos to images, and what is wrong with a photo to the table's errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet_server import preprocess
from alexnet_server.errors import PHOTO_ERRORS, Internal, InvalidRequest, ServingError, Unavailable
from alexnet_server.threads import DaemonThreads

log = logging.getLogger(__name__)

Photo = bytes | NDArray[np.uint8]
"""An encoded photo, or a ready `[256, 256, 3]` RGB image as `preprocess.prepare` makes it."""
_SMALL_BYTES = 32 * 2**20
"""Photos that take less to decode do not count: 8 megapixels of a PNG, almost any baseline JPEG."""
IMAGE_SHAPE = (preprocess.SIDE, preprocess.SIDE, 3)


class Decoded(NamedTuple):
    """An image, and when decoding it began and ended (`time.monotonic`; the same for a ready one)."""

    image: NDArray[np.uint8]
    start: float
    end: float


class Decoders:
    """Threads that decode photos.

    A photo of 50 megapixels takes 200 MB and more while it is decoded, an ordinary one a few. Large ones have
    threads of their own, and wait before them until the memory that they share has room, so that neither
    memory nor the other photos suffer when many of them come at once.

    Args:
        threads: Photos decoded at a time, and as many large ones beside them.
        max_bytes: Longest photo.
        max_pixels: Most pixels, as a photo's header announces them.
        memory_bytes: What large photos may take together; one that needs more is decoded by itself.
        stuck_s: A photo that takes longer than any request may has got hold of its thread.
    """

    def __init__(
        self, threads: int, *, max_bytes: int, max_pixels: int, memory_bytes: int, stuck_s: float = 30.0
    ) -> None:
        self._stuck_s = stuck_s
        # Each large photo takes more than `_SMALL_BYTES`: more threads would only keep memory of their own.
        large = max(1, min(threads, memory_bytes // _SMALL_BYTES))
        self._threads = DaemonThreads(threads, "alexnet-decode")
        self._large_threads = DaemonThreads(large, "alexnet-decode-large")
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
            Unavailable: The server is shutting down.
            Internal: We are.
        """
        if not isinstance(photo, bytes):
            now = time.monotonic()
            return Decoded(_check_image(photo), now, now)
        loop = asyncio.get_running_loop()
        try:
            decoded = await loop.run_in_executor(self._threads, self._prepare_small, photo)
            if isinstance(decoded, Decoded):
                return decoded
            await self._memory.take(decoded)
            work = self._large_threads.submit(self._prepare_large, photo)
            # Not when the caller leaves: a thread that has begun holds its memory until it ends.
            work.add_done_callback(lambda _: self._memory.give(loop, decoded))
            return await asyncio.wrap_future(work)
        except preprocess.PhotoError as error:
            raise self._rejection(error, photo) from None
        except Exception as error:
            if self._closed:
                raise Unavailable("The server is shutting down.", retry_after_s=1.0) from None
            log.exception("decoding failed")
            raise Internal() from error

    def problem(self) -> str | None:
        """Why no photo would be decoded, in words for an operator; None when one would."""
        if any(threads.stuck(self._stuck_s) for threads in (self._threads, self._large_threads)):
            return f"every decoding thread has been busy with one photo for more than {self._stuck_s:g} s"
        return None

    def close(self) -> None:
        """Drop photos whose decoding has not begun."""
        self._closed = True
        self._memory.close()
        for threads in (self._threads, self._large_threads):
            threads.shutdown(cancel_futures=True)

    def _open(self, photo: bytes) -> preprocess.OpenPhoto:
        return preprocess.open_photo(photo, max_bytes=self._max_bytes, max_pixels=self._max_pixels)

    def _prepare_small(self, photo: bytes) -> Decoded | int:
        """The image, or the bytes of memory that a large one will take."""
        start = time.monotonic()
        opened = self._open(photo)
        if opened.memory_bytes > _SMALL_BYTES:
            return opened.memory_bytes
        return Decoded(preprocess.finish(opened), start, time.monotonic())

    def _prepare_large(self, photo: bytes) -> Decoded:
        start = time.monotonic()
        # Opened again: what waits for memory should hold none beyond its own bytes.
        return Decoded(preprocess.finish(self._open(photo)), start, time.monotonic())

    def _rejection(self, error: preprocess.PhotoError, photo: bytes) -> ServingError:
        message = str(error)
        if error.code == "too_large":
            setting = "--max-photo-bytes" if len(photo) > self._max_bytes else "--max-pixels"
            message += f" Whoever runs this server can raise `{setting}`."
        return PHOTO_ERRORS[error.code](message)


class _Memory:
    """Bytes that photos share, first come, first served; for the event loop."""

    def __init__(self, total: int) -> None:
        self._free = self._total = total
        self._line: deque[tuple[asyncio.Future[None], int]] = deque()

    async def take(self, count: int) -> None:
        """Wait until there is room for `count` bytes, or nobody else holds any; RuntimeError once closed."""
        turn = asyncio.get_running_loop().create_future()
        self._line.append((turn, count))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            self._release(0 if turn.cancelled() else count)
            raise

    def give(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        """Give `count` bytes back, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(self._release, count)

    def close(self) -> None:
        for turn, _ in self._line:
            if not turn.done():
                turn.set_exception(RuntimeError("closed"))
        self._line.clear()

    def _release(self, count: int) -> None:
        self._free += count
        self._admit()

    def _admit(self) -> None:
        while self._line:
            turn, count = self._line[0]
            if not turn.cancelled():
                if count > self._free < self._total:
                    return
                self._free -= count
                turn.set_result(None)
            self._line.popleft()


def _check_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.shape != IMAGE_SHAPE:
        raise InvalidRequest(
            f"a prepared image must be uint8 [256,256,3], got {image.dtype} {list(image.shape)}"
        )
    return image
