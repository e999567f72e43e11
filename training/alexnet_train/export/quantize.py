"""Quantisation of weights for the weight file: few levels and a budget in bytes.

Convolutions get a uniform grid, one step for each output channel. The fully connected layers, 96 % of the
weights and nearly all redundant, get an entropy-constrained quantiser (Chou, Lookabaugh and Gray, 1989):
levels and thresholds that minimise ``error + penalty * bits``, where the bits are what the entropy coder will
spend. Zero is the cheapest level by far, so the thresholds around it widen into a dead zone, and a pruned
weight stays pruned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alexnet_server.models.entropy import encode
from alexnet_server.models.weights import Stored, write_weights

Array = NDArray[np.float32]

BUDGET = 10_485_760
"""Bytes of the weight file kept in git."""
CONV_LIMIT = 32
"""Largest code of a convolution's weights: 65 levels a channel, about 5 bits a weight."""
FACTOR_LIMIT = 127
"""Largest code of a factor's weights, and of fc8's beside factors."""
FULLY_CONNECTED = ("fc6", "fc7", "fc8")
_BINS = 2400
_SIGMAS = 12.0


@dataclass(frozen=True)
class Quantised:
    """A weight as a matrix of symbols; ``weight = levels[symbols] * scales[row]``, reshaped.

    ``symbols`` (out, in) uint8, 0 for zero; ``levels`` float32 by symbol; ``scales`` (out,) float32.
    """

    shape: tuple[int, ...]
    symbols: NDArray[np.uint8]
    levels: Array
    scales: Array

    def dequantise(self) -> Array:
        """The weight that will be served, float32."""
        weight = self.levels[self.symbols]
        weight *= self.scales[:, None]
        return weight.reshape(self.shape)

    def stored(self) -> Stored:
        """The entropy-coded form."""
        arrays = {**vars(encode(self.symbols)), "levels": self.levels, "scales": self.scales}
        return Stored(self.shape, "levels", arrays)


@dataclass(frozen=True)
class Product:
    """A weight kept as two factors, ``left @ right``: (out, rank) and (rank, in)."""

    left: Quantised
    right: Quantised

    def dequantise(self) -> Array:
        """The weight that will be served, float32."""
        weight: Array = self.left.dequantise() @ self.right.dequantise()
        return weight


def quantise_product(left: Array, right: Array) -> Product:
    """Both factors on a grid of 255 levels a row: with so few weights there is room for eight bits each."""
    return Product(quantise_rows(left, FACTOR_LIMIT), quantise_rows(right, FACTOR_LIMIT))


def quantise_rows(weight: Array, limit: int = CONV_LIMIT) -> Quantised:
    """A uniform grid of ``2 * limit + 1`` levels for each row (output channel).

    The largest magnitude of a row is a level, so that the int8 graph's codes, made from the same maximum, are
    exact wherever ``limit`` divides 64.
    """
    rows = weight.reshape(len(weight), -1)
    largest = np.abs(rows).max(axis=1)
    scales = np.where(largest > 0, largest / np.float32(limit), np.float32(1)).astype(np.float32)
    codes = np.rint(rows / scales[:, None]).astype(np.int64)
    return Quantised(weight.shape, _zigzag(codes), _unzigzag(2 * limit + 1).astype(np.float32), scales)


def quantise_layer(weight: Array, penalty: float, scales: Array | None = None) -> Quantised:
    """The quantiser that minimises ``mean((w - level)**2) / mean(w**2) + penalty * bits`` of a matrix.

    Args:
        weight: (out, in) float32.
        penalty: what a bit a weight costs in units of relative squared error; larger gives fewer bits.
        scales: (out,) by which rows are divided first; the same for all by default.
    """
    if scales is None:
        scales = np.full(len(weight), np.sqrt(np.mean(np.square(weight), dtype=np.float64)) or 1, np.float32)
    code = _design(_magnitudes(weight, scales), penalty)
    symbols = np.empty(weight.shape, np.uint8)
    for row, scale in enumerate(scales):
        scaled = weight[row] / scale
        index = np.searchsorted(code.thresholds, np.abs(scaled)).astype(np.int64)
        symbols[row] = _zigzag(np.where(scaled < 0, -index, index))
    signed = _unzigzag(2 * len(code.levels) - 1)
    levels = (np.sign(signed) * code.levels[np.abs(signed)]).astype(np.float32)
    return Quantised(weight.shape, symbols, levels, scales)


def fit(
    tensors: Mapping[str, Array], budget: int = BUDGET, conv_limit: int = CONV_LIMIT
) -> dict[str, Quantised]:
    """Quantise every convolution and fully connected weight so that the weight file fits a budget of bytes.

    All fully connected layers share one penalty on the *sum* of bits, each error counted relative to its own
    layer's energy: small fc8 is kept finer than fc6, whose bits are many.

    Args:
        tensors: what the file will hold (``ServingWeights.served``); biases and mean are stored as they are.
        budget: most bytes that the whole file may take.
        conv_limit: as for ``quantise_rows``.

    Raises:
        ValueError: the budget is too small even for the coarsest quantiser.
    """
    weights = {name: value for name, value in tensors.items() if name.endswith(".weight")}
    quantised = {
        name: quantise_rows(value, conv_limit) for name, value in weights.items() if name.startswith("conv")
    }
    layers = {name: value for name, value in weights.items() if name not in quantised}
    fixed = {name: value for name, value in tensors.items() if name not in layers}
    room = budget - len(pack("", fixed, quantised))
    histograms = {name: _magnitudes(value, _uniform(value)) for name, value in layers.items()}
    sizes = {name: value.size for name, value in layers.items()}
    target, fitting = float(room), None
    for _ in range(5):  # the estimate knows nothing of classes and tables: correct it by what comes out
        penalty = _penalty(histograms, sizes, target)
        result = {name: quantise_layer(layers[name], penalty * sizes[name]) for name in layers}
        spent = sum(_stored_bytes(item.stored()) for item in result.values())
        if spent <= room:
            fitting = quantised | result
        if 0.995 * room <= spent <= room:
            break
        target *= 0.9975 * room / spent
    if fitting is None:
        raise ValueError(f"the weights do not fit {budget:,} bytes: the convolutions alone leave {room:,}")
    return fitting


def fit_factors(
    tensors: Mapping[str, Array], factors: Mapping[str, tuple[Array, Array]]
) -> dict[str, Quantised | Product]:
    """Quantise a network whose fc6 and fc7 are products: nothing needs pruning, eight bits fit everywhere.

    Args:
        tensors: as for ``fit``.
        factors: (left, right) by layer, ``fc6`` and ``fc7``.
    """
    quantised: dict[str, Quantised | Product] = {
        name: quantise_rows(value, 64 if name.startswith("conv") else FACTOR_LIMIT)
        for name, value in tensors.items()
        if name.endswith(".weight") and name.removesuffix(".weight") not in factors
    }
    return quantised | {f"{layer}.weight": quantise_product(*pair) for layer, pair in factors.items()}


def pack(name: str, tensors: Mapping[str, Array], quantised: Mapping[str, Quantised | Product]) -> bytes:
    """The weight file: tensors as quantised, the rest as they are (a mean image in float16)."""
    stored = {}
    for tensor, value in tensors.items():
        item = quantised.get(tensor)
        if isinstance(item, Product):
            stored[tensor] = Stored(value.shape, "product", {})
            stored[f"{tensor}.left"] = item.left.stored()
            stored[f"{tensor}.right"] = item.right.stored()
        elif item is not None:
            stored[tensor] = item.stored()
        else:
            half = tensor == "mean" and value.size > 3
            stored[tensor] = Stored(
                value.shape, "plain", {"values": value.astype("float16") if half else value}
            )
    return write_weights(name, stored)


@dataclass(frozen=True)
class _Code:
    """Levels of magnitude, rising from 0, and the thresholds between them."""

    levels: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    bits: float
    """Entropy a weight, signs included."""


@dataclass(frozen=True)
class _Histogram:
    """Weights by magnitude: how many and their sum, in bins of equal width."""

    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    edges: NDArray[np.float64]


def _uniform(weight: Array) -> Array:
    return np.full(len(weight), np.sqrt(np.mean(np.square(weight), dtype=np.float64)) or 1, np.float32)


def _magnitudes(weight: Array, scales: Array) -> _Histogram:
    """The histogram of ``|weight| / scale`` up to 12; bin 0 begins at exact zeros."""
    edges = np.linspace(0, _SIGMAS, _BINS + 1)
    counts, sums = np.zeros(_BINS), np.zeros(_BINS)
    for row, scale in enumerate(scales):
        values = np.abs(weight[row]) / scale
        index = np.minimum((values * (_BINS / _SIGMAS)).astype(np.intp), _BINS - 1)
        counts += np.bincount(index, minlength=_BINS)
        sums += np.bincount(index, weights=values, minlength=_BINS)
    return _Histogram(counts, sums, edges)


def _design(histogram: _Histogram, penalty: float, levels: int = 12) -> _Code:
    """Alternate between thresholds for the levels and levels for the thresholds until both stand still."""
    step = 2 * np.sqrt(max(penalty, 1e-6))
    value = np.concatenate([[0.0], (np.arange(1, levels) - 0.1) * step])
    bits = np.concatenate([[0.5], 3.0 + np.arange(levels - 1)])
    total = histogram.counts.sum()
    code = None
    for _ in range(30):
        gap = np.diff(value)
        thresholds = (value[1:] + value[:-1]) / 2 + penalty * np.diff(bits) / (2 * gap)
        thresholds = np.maximum.accumulate(np.maximum(thresholds, value[:-1]))
        cell = np.searchsorted(thresholds, histogram.edges[:-1] + np.diff(histogram.edges) / 2)
        counts = np.bincount(cell, histogram.counts, len(value))
        sums = np.bincount(cell, histogram.sums, len(value))
        kept = (counts > 0) | (np.arange(len(value)) == 0)
        value = np.where(counts > 0, sums / np.maximum(counts, 1), value)
        value[0] = 0.0
        share = np.maximum(counts, 1) / total
        bits = -np.log2(share) + (np.arange(len(value)) > 0)  # a sign for all but zero
        entropy = float((counts / total * bits).sum())
        value, bits = value[kept], bits[kept]
        code = _Code(value, thresholds[: len(value) - 1], entropy)
    assert code is not None
    middle = (code.levels[1:] + code.levels[:-1]) / 2 + penalty * np.diff(bits) / (2 * np.diff(code.levels))
    return _Code(code.levels, np.maximum.accumulate(np.maximum(middle, code.levels[:-1])), code.bits)


def _penalty(histograms: Mapping[str, _Histogram], sizes: Mapping[str, int], target: float) -> float:
    """The penalty on a bit of the whole file at which the layers' entropies add up to ``target`` bytes."""
    low, high = 1e-12, 1e-5
    for _ in range(30):
        penalty = np.sqrt(low * high)
        spent = sum(_design(h, penalty * sizes[n]).bits * sizes[n] / 8 for n, h in histograms.items())
        low, high = (penalty, high) if spent > target else (low, penalty)
    return float(high)


def _stored_bytes(stored: Stored) -> int:
    return len(write_weights("", {"w": stored}))


def _zigzag(codes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """0, 1, -1, 2, -2 ... -> 0, 1, 2, 3, 4 ..."""
    return np.where(codes > 0, 2 * codes - 1, -2 * codes).astype(np.uint8)


def _unzigzag(count: int) -> NDArray[np.int64]:
    """The codes of the symbols 0 .. count - 1."""
    symbols = np.arange(count)
    return np.where(symbols % 2 == 1, (symbols + 1) // 2, -(symbols // 2))
