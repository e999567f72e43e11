"""How many cores this process may really use: by CPU affinity and the cgroup's quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


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
        lines = membership.read_text().splitlines()
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
            quota, period = (group / "cpu.max").read_text().split()[:2]
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
