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
_LARGEST_SETTING = 2**31 - 1
"""What ``mallopt`` takes at most."""


def configure_allocator(*, keep_all: bool = False) -> bool:
    """Apply it; False where the environment has chosen otherwise, or the C library has no such choice.

    Args:
        keep_all: keep freed blocks of any size, for work that takes and frees the same large ones in each
            step: fresh pages for them are a third of the time of training on a CPU.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or any(word in os.environ.get("GLIBC_TUNABLES", "") for word in _TUNABLES):
        return False
    # Over a batch of 32 images, under Pillow's blocks.
    block, total = (_LARGEST_SETTING, _LARGEST_SETTING) if keep_all else (8 * _MIB, 32 * _MIB)
    settings = {_M_MMAP_THRESHOLD: block, _M_TRIM_THRESHOLD: total, _M_TOP_PAD: _MIB}
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(mallopt(key, value) == 1 for key, value in settings.items())
