"""The C library's memory allocator: small blocks are kept for the next request, large ones given back.

By itself glibc takes blocks over 128 kB from the system and gives each back when it is freed, until a larger
one was freed; then it keeps what is smaller than that one, up to 32 MiB. So a request's buffers (an image of
196 kB, once more as it came, once more for a remote engine) cost fresh pages each time, a fifth of a
gateway's CPU time as measured; and after a few large photos Pillow's blocks of 16 MiB stay with the heap of
each decoding thread, a few hundred megabytes.
"""

from __future__ import annotations

import ctypes
import os

_MIB = 2**20
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""From glibc's malloc.h."""
_TUNABLES = ("malloc.mmap_threshold", "malloc.trim_threshold", "malloc.top_pad")
"""The same three by their names in GLIBC_TUNABLES; others, such as huge pages, may be set beside ours."""
LARGEST_SETTING = 2**31 - 1
"""What ``mallopt`` takes at most: for work that takes and frees the same buffers again and again."""


def configure_allocator(kept_block: int = 8 * _MIB, kept_total: int = 32 * _MIB) -> bool:
    """Apply it; False where the environment has chosen otherwise, or the C library has no such choice.

    Args:
        kept_block: bytes; larger blocks go back to the system when they are freed. By default over a batch of
            32 images and under Pillow's blocks.
        kept_total: bytes of freed memory at the end of the heap that are kept.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or any(word in os.environ.get("GLIBC_TUNABLES", "") for word in _TUNABLES):
        return False
    settings = {_M_MMAP_THRESHOLD: kept_block, _M_TRIM_THRESHOLD: kept_total, _M_TOP_PAD: _MIB}
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(mallopt(key, value) == 1 for key, value in settings.items())
