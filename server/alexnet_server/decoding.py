"""Decoding on threads: encoded photos to images, and what is wrong with a photo to the table's errors."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet_server import preprocess
from alexnet_server.errors import PHOTO_ERRORS, Internal, InvalidRequest, Unavailable

log = logging.getLogger(__name__)

Photo = bytes | NDArray[np.uint8]
"""An encoded photo, or a ready `[256, 256, 3]` RGB image as `preprocess.prepare` makes it."""
IMAGE_SHAPE = (preprocess.SIDE, preprocess.SIDE, 3)


class Decoded(NamedTuple):
    """An image, and when decoding it began and ended (`time.monotonic`; the same for a ready one)."""

    image: NDArray[np.uint8]
    start: float
    end: float


class Decoders:
    """A pool of decoding threads.

    Args:
        threads: Photos decoded at a time.
        max_bytes: Longest photo.
        max_pixels: Most pixels, as a photo's header announces them.
    """

    def __init__(self, threads: int, *, max_bytes: int, max_pixels: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="alexnet-decode")
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
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._prepare, photo)
        except preprocess.PhotoError as error:
            raise PHOTO_ERRORS[error.code](str(error)) from None
        except Exception as error:
            if self._closed:
                raise Unavailable("The server is closing.", retry_after_s=1.0) from None
            log.exception("decoding failed")
            raise Internal() from error

    def close(self) -> None:
        """Drop photos whose decoding has not begun."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, photo: bytes) -> Decoded:
        start = time.monotonic()
        image = preprocess.prepare(photo, max_bytes=self._max_bytes, max_pixels=self._max_pixels)
        return Decoded(image, start, time.monotonic())


def _check_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.shape != IMAGE_SHAPE:
        raise InvalidRequest(
            f"a ready image must be uint8 [256,256,3], got {image.dtype} {list(image.shape)}"
        )
    return image
