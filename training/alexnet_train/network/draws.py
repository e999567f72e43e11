"""Random numbers without state: each is a function of (seed, step, name, sample, unit) alone.

Augmentation and dropout draw from here. So a resumed run repeats its draws, a data-parallel rank draws for
its samples what one process would, the owner of a tower draws its masks wherever it runs, and a captured
CUDA graph needs nothing but the step's number in a tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea, Flood 2014), as signed 64-bit integers: torch multiplies modulo 2**64 as well.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLY_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLY_2 = 0x94D049BB133111EB - 2**64


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def mixed(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, elementwise: int64 to int64, every input bit moves every output bit."""
    z = (z ^ _shifted(z, 30)) * _MULTIPLY_1
    z = (z ^ _shifted(z, 27)) * _MULTIPLY_2
    return z ^ _shifted(z, 31)


def stream_number(name: str) -> int:
    """32 bits that tell names apart (FNV-1a), in Python that ``torch.compile`` can trace."""
    number = 0x811C9DC5
    for letter in name:
        number = ((number ^ ord(letter)) * 0x01000193) & 0xFFFFFFFF
    return number


@dataclass(frozen=True)
class Draws:
    """The draws of one update.

    ``step`` is the update's number, an int or an int64 scalar tensor; ``rows`` int64 (N,) are the samples'
    places in the joined batch, on the device where the numbers are wanted.
    """

    seed: int
    step: int | Tensor
    rows: Tensor

    def shared(self, count: int) -> Draws:
        """The same, but ``count`` consecutive samples draw alike."""
        return replace(self, rows=self.rows // count)

    def uniform(self, name: str, columns: int) -> Tensor:
        """(N, columns) float32, uniform in [0, 1) with 24 bits."""
        step = self.step
        if not isinstance(step, Tensor):  # filled in on the device; a copy would have to wait for it
            step = torch.full((), step, dtype=torch.int64, device=self.rows.device)
        stream = mixed(step * _GOLDEN + ((self.seed % 2**31) << 32 | stream_number(name)))
        unit = torch.arange(1, columns + 1, device=self.rows.device)
        z = mixed(mixed(stream + (self.rows + 1) * _GOLDEN)[:, None] + unit * _GOLDEN)
        return _shifted(z, 40).float() * 2.0**-24

    def normal(self, name: str, columns: int) -> Tensor:
        """(N, columns) float32, standard normal (Box-Muller)."""
        radius = (-2 * torch.log1p(-self.uniform(f"{name} radius", columns))).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(f"{name} angle", columns))
