"""The C library's memory allocator: what a large photo took goes back to the system."""

from __future__ import annotations

import ctypes
import logging

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def return_large_blocks() -> None:
    """Have glibc take blocks of 4 MiB and more from the system, and give them back when they are freed.

    By itself it raises that size to that of the largest block freed, up to 32 MiB. Pillow's images come in
    blocks of 16 MiB, which would then stay with the heap of each decoding thread: a few hundred megabytes
    after a few large photos. Ordinary photos take smaller blocks, and the second threshold keeps enough of
    those to cost them nothing. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    if not (mallopt(_M_MMAP_THRESHOLD, 4 * 2**20) and mallopt(_M_TRIM_THRESHOLD, 8 * 2**20)):
        log.debug("the allocator keeps its own thresholds")
