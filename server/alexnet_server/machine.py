"""The machine under the process: the cores that it may really use, and the C library's memory allocator."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_MIB = 2**20
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""From glibc's malloc.h."""
_TUNABLES = ("malloc.mmap_threshold", "malloc.trim_threshold", "malloc.top_pad")
"""The same three by their names in GLIBC_TUNABLES; others, such as huge pages, may be set beside ours."""
_LARGEST_SETTING = 2**31 - 1
"""What ``mallopt`` takes at most."""

_CARDS = (Path("/dev/nvidia0"), Path("/dev/dxg"))
"""The first NVIDIA card: under Linux, and under Linux in Windows."""


def has_card() -> bool:
    """Whether the process sees a GPU of NVIDIA's."""
    return any(card.exists() for card in _CARDS)


def usable_cores(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """Cores by affinity, or the cgroup's CPU quota where that is less, rounded up; at least 1.

    Args:
        cgroup: Where the cgroup file systems are mounted.
        membership: `/proc/self/cgroup`, which names the process's own group.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in _groups(cgroup, membership) if (quota := _quota(group)) is not None]
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas)]))


def _groups(cgroup: Path, membership: Path) -> list[Path]:
    """The process's group and every group above it: any of them may hold the tightest quota."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    groups = [cgroup, cgroup / "cpu"]
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroup / "cpu" if controllers else cgroup
        # Inside a container the path may be the host's and not exist here; the mount is then our own group.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        groups += [root.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    return groups


def _quota(group: Path) -> float | None:
    """CPU quota of one group in cores, from v2's `cpu.max` or v1's CFS files; None when unlimited."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()[:2]
        else:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (group / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def configure_allocator(*, keep_all: bool = False) -> bool:
    """Keep small freed blocks for the next request, and give large ones back.

    By itself glibc takes blocks over 128 kB from the system and gives each back when it is freed, until a
    larger one was freed; then it keeps what is smaller than that one, up to 32 MiB. So a request's buffers
    (an image of 196 kB, once more as it came, once more for a remote engine) cost fresh pages each time, a
    fifth of a gateway's CPU time as measured; and after a few large photos Pillow's blocks of 16 MiB stay
    with the heap of each decoding thread, a few hundred megabytes.

    Args:
        keep_all: keep freed blocks of any size, for work that takes and frees the same large ones in each
            step: fresh pages for them are a third of the time of training on a CPU.

    Returns:
        False where the environment has chosen otherwise, or the C library has no such choice.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or any(word in os.environ.get("GLIBC_TUNABLES", "") for word in _TUNABLES):
        return False
    # Over a batch of 32 images, under Pillow's blocks.
    block, total = (_LARGEST_SETTING, _LARGEST_SETTING) if keep_all else (8 * _MIB, 32 * _MIB)
    settings = {_M_MMAP_THRESHOLD: block, _M_TRIM_THRESHOLD: total, _M_TOP_PAD: _MIB}
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library without a name
        return False
    return all(mallopt(key, value) == 1 for key, value in settings.items())
