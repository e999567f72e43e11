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
_SETTINGS = {
    _M_MMAP_THRESHOLD: 8 * _MIB,  # over a batch of 32 images, under Pillow's blocks
    _M_TRIM_THRESHOLD: 32 * _MIB,
    _M_TOP_PAD: _MIB,
}


def configure_allocator() -> bool:
    """Apply it; False where the environment has chosen otherwise, or the C library has no such choice."""
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(mallopt(key, value) == 1 for key, value in _SETTINGS.items())
