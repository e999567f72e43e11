"""Quantisation for the weight file: int8 codes on a grid for each row, as fine as a budget in bytes allows.

Convolutions are few and stay fine. The fully connected layers are 96 % of the weights: as products of two
factors they fit in eight bits each; full matrices get a step so coarse that most of
their codes are zero, which the archive compresses to about a bit each.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet_server.models.weights import dequantise

Array = NDArray[np.float32]

BUDGET = 10_485_760
"""Bytes of the weight file kept in git."""
CONV_LIMIT = 64
"""Largest code of a convolution's weights: the int8 graphs' own grid, about 6 bits a weight."""
FACTOR_LIMIT = 127
"""Largest code of a factor's weights, and of fc8's."""


@dataclass(frozen=True)
class Quantised:
    """A weight on a grid for each row: ``codes`` int8 of its shape, ``scales`` (out,) float32."""

    codes: NDArray[np.int8]
    scales: Array

    def dequantise(self) -> Array:
        """The weight that will be served, float32."""
        return dequantise(self.codes, self.scales)

    def arrays(self, name: str) -> dict[str, NDArray[np.generic]]:
        """What the weight file holds of it."""
        return {f"{name}.codes": self.codes, f"{name}.scales": self.scales}


@dataclass(frozen=True)
class Product:
    """A weight kept as two factors, ``left @ right``: (out, rank) and (rank, in)."""

    left: Quantised
    right: Quantised

    def dequantise(self) -> Array:
        """The weight that will be served, float32."""
        weight: Array = self.left.dequantise() @ self.right.dequantise()
        return weight

    def arrays(self, name: str) -> dict[str, NDArray[np.generic]]:
        """What the weight file holds of it."""
        return self.left.arrays(f"{name}.left") | self.right.arrays(f"{name}.right")


def quantise_rows(weight: Array, limit: float) -> Quantised:
    """A uniform grid for each row (output channel), whose largest magnitude is ``limit`` steps.

    Where ``limit`` is whole, that magnitude is a level, so that the int8 graph's codes, made from the same
    maximum, are exact wherever ``limit`` divides 64.
    """
    rows = weight.reshape(len(weight), -1)
    largest = np.abs(rows).max(axis=1)
    scales = np.where(largest > 0, largest / np.float32(limit), np.float32(1)).astype(np.float32)
    codes = np.empty(rows.shape, np.int8)
    for row, scale in enumerate(scales):  # by rows: all of fc6 at once would take 150 MB more
        codes[row] = np.rint(rows[row] / scale)
    return Quantised(codes.reshape(weight.shape), scales)


def fit(
    tensors: Mapping[str, Array],
    factors: Mapping[str, tuple[Array, Array]] | None = None,
    budget: int = BUDGET,
) -> dict[str, Quantised | Product]:
    """Quantise every convolution and fully connected weight so that the weight file fits a budget of bytes.

    Args:
        tensors: what the file will hold (``ServingWeights.served``); biases and mean are stored as they are.
        factors: (left, right) of the layers that are products, ``fc6`` and ``fc7``. Where there are none, fc6
            and fc7 get the finest common limit that fits, found by bisection over the archive itself.
        budget: most bytes that the whole file may take.

    Raises:
        ValueError: the budget is too small even for the coarsest grid.
    """
    weights = {name: value for name, value in tensors.items() if name.endswith(".weight")}
    quantised: dict[str, Quantised | Product] = {
        f"{layer}.weight": Product(quantise_rows(left, FACTOR_LIMIT), quantise_rows(right, FACTOR_LIMIT))
        for layer, (left, right) in (factors or {}).items()
    }
    coarse = [name for name in ("fc6.weight", "fc7.weight") if name not in quantised]
    for name in weights.keys() - quantised.keys() - set(coarse):
        quantised[name] = quantise_rows(
            weights[name], CONV_LIMIT if name.startswith("conv") else FACTOR_LIMIT
        )

    def at(limit: float) -> dict[str, Quantised | Product]:
        return quantised | {name: quantise_rows(weights[name], limit) for name in coarse}

    limits = np.geomspace(1, FACTOR_LIMIT, 500) if coarse else np.array([FACTOR_LIMIT])
    fitting = bisect_right(limits, budget, key=lambda limit: len(pack(tensors, at(limit))))
    if not fitting:
        least = len(pack(tensors, at(limits[0])))
        raise ValueError(
            f"the weights do not fit into {budget:,} bytes: even at the coarsest they take {least:,}"
        )
    return at(limits[fitting - 1])


def pack(tensors: Mapping[str, Array], quantised: Mapping[str, Quantised | Product]) -> bytes:
    """The weight file: tensors as quantised, the rest as they are (a mean image in float16)."""
    arrays: dict[str, Any] = {}
    for name, value in tensors.items():
        if name in quantised:
            arrays |= quantised[name].arrays(name)
        else:
            arrays[name] = value.astype(np.float16) if name == "mean" and value.size > 3 else value
    # Floats would shrink by a few per cent, for ten times the time.
    save = np.savez_compressed if quantised else np.savez
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()
