"""The widest instructions of this machine's processor that matter to a neural network."""

from __future__ import annotations

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_X86 = {
    "amx_int8": "amx_int8",
    "avx512_vnni": "avx512_vnni",
    "avx512f": "avx512",
    "avx_vnni": "avx2_vnni",
    "avx2": "avx2",
    "avx": "avx",
    "sse4_2": "sse4_2",
}
"""The kernel's flags and our words for them, best first."""
_ARM = {"i8mm": "i8mm", "asimddp": "dotprod", "asimd": "neon"}


def instruction_set(cpuinfo: Path = _CPUINFO) -> str:
    """Such as `avx512_vnni` or `avx2`; the architecture's name where the kernel lists nothing we know."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    for line in lines:
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            present = set(flags.split())
            return next((word for flag, word in (_X86 | _ARM).items() if flag in present), platform.machine())
    return platform.machine()
