"""Entropy coding of small integers: range asymmetric numeral systems (rANS), many lanes at a time in numpy.

Quantised weights are nearly independent draws from a peaked distribution. xz spends 5 % more than their
entropy on them; rANS (Duda, arXiv:1311.2540) less than half a percent, and knows rows and columns: each
symbol is coded with the table of its row's class and its column's class, because in trained layers whole
inputs and outputs are sparser than others.

Lane i of a matrix (rows, columns) holds every symbol whose column is i modulo the number of lanes. A step
codes one symbol of each lane, so that numpy works on vectors; the state of a lane lies in [2**16, 2**32) and
takes or gives 16 bits at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRECISION = 12
"""log2 of the sum of a table's frequencies."""
_FLOOR = 1 << 16
_MASK = (1 << PRECISION) - 1

Symbols = NDArray[np.uint8]


@dataclass(frozen=True)
class Coded:
    """A coded matrix.

    ``row_classes`` (rows,) and ``column_classes`` (columns,) uint8; ``frequencies`` (row classes, column
    classes, symbols) uint16, each table summing to 2**PRECISION; ``states`` (lanes,) uint32; ``words``
    uint16.
    """

    row_classes: NDArray[np.uint8]
    column_classes: NDArray[np.uint8]
    frequencies: NDArray[np.uint16]
    states: NDArray[np.uint32]
    words: NDArray[np.uint16]


def encode(symbols: Symbols) -> Coded:
    """Code a matrix of symbols 0..255, rows and columns in as many classes as make the result smallest."""
    rows, columns, frequencies = _best_tables(symbols)
    starts = np.cumsum(frequencies, axis=2, dtype=np.uint64) - frequencies
    lanes = _lanes(symbols.shape)
    state = np.full(lanes, _FLOOR, np.uint64)
    blocks: list[NDArray[np.uint16]] = []
    for row in range(symbols.shape[0] - 1, -1, -1):
        for first in range(symbols.shape[1] - lanes, -1, -lanes):
            at = (rows[row], columns[first : first + lanes], symbols[row, first : first + lanes])
            frequency = frequencies[at].astype(np.uint64)
            full = state >= frequency << np.uint64(32 - PRECISION)
            blocks.append(state[full].astype(np.uint16))
            state[full] >>= np.uint64(16)
            quotient, rest = np.divmod(state, frequency)
            state = (quotient << np.uint64(PRECISION)) + starts[at] + rest
    words = np.concatenate(blocks[::-1])
    return Coded(rows, columns, frequencies, state.astype(np.uint32), words)


def decode(coded: Coded) -> Symbols:
    """The matrix (rows, columns) uint8 that ``encode`` was given.

    Raises:
        ValueError: the data cannot have come from ``encode``.
    """
    frequencies, columns = coded.frequencies.astype(np.int64), coded.column_classes
    if not (frequencies.sum(axis=2) == 1 << PRECISION).all():
        raise ValueError("frequencies do not add up")
    tables, alphabet = frequencies.shape[0] * frequencies.shape[1], frequencies.shape[2]
    of_slot = np.repeat(np.tile(np.arange(alphabet, dtype=np.uint8), tables), frequencies.reshape(-1))
    starts = np.cumsum(frequencies, axis=2) - frequencies
    of_symbol = (frequencies << PRECISION | starts).reshape(-1)
    result = np.empty((len(coded.row_classes), len(columns)), np.uint8)
    words, position = coded.words.astype(np.int64), 0
    state, lanes = coded.states.astype(np.int64), len(coded.states)  # int64: take() needs no conversion
    for row, row_class in enumerate(coded.row_classes):
        table = int(row_class) * frequencies.shape[1] + columns.astype(np.int64)
        for first in range(0, len(columns), lanes):
            of = table[first : first + lanes]
            slot = state & _MASK
            symbol = of_slot.take(of * (1 << PRECISION) + slot)
            found = of_symbol.take(of * alphabet + symbol)
            state = (found >> PRECISION) * (state >> PRECISION) + slot - (found & _MASK)
            empty = np.flatnonzero(state < _FLOOR)
            refill = words[position : position + len(empty)]
            if len(refill) < len(empty):
                raise ValueError("the data ends too early")
            state[empty] = state[empty] << 16 | refill
            position += len(empty)
            result[row, first : first + lanes] = symbol
    if position != len(words) or (state != _FLOOR).any():
        raise ValueError("the data does not end where its symbols do")
    return result


def _lanes(shape: tuple[int, ...]) -> int:
    """A divisor of the columns. Lanes make it fast and waste two bytes each; 2,048 steps are a fair price."""
    wanted = min(4096, max(64, shape[0] * shape[1] // 2048))
    return max(count for count in range(1, min(wanted, shape[1]) + 1) if shape[1] % count == 0)


def _best_tables(symbols: Symbols) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16]]:
    """Classes of the rows and columns, and their tables of frequencies."""
    alphabet, candidates = int(symbols.max(initial=0)) + 1, []
    for classes in (1, 4, 8):
        rows, columns = (_classes((symbols != 0).mean(axis=axis), classes) for axis in (1, 0))
        counts = _counts(symbols, rows, columns, classes, alphabet)
        frequencies = np.apply_along_axis(_normalised, 2, counts)
        bits = (counts * (PRECISION - np.log2(np.maximum(frequencies, 1)))).sum()
        overhead = 16 * frequencies.size + np.log2(classes) * sum(symbols.shape)
        candidates.append((bits + overhead, rows, columns, frequencies))
    _, rows, columns, frequencies = min(candidates, key=lambda candidate: candidate[0])
    return rows, columns, frequencies


def _classes(density: NDArray[np.float64], classes: int) -> NDArray[np.uint8]:
    """Equally filled classes, the sparsest first."""
    result = np.empty(len(density), np.uint8)
    result[np.argsort(density, kind="stable")] = np.arange(len(density)) * classes // len(density)
    return result


def _counts(
    symbols: Symbols, rows: NDArray[np.uint8], columns: NDArray[np.uint8], classes: int, alphabet: int
) -> NDArray[np.int64]:
    """How often each symbol occurs under each class of rows and columns."""
    counts = np.zeros((classes, classes, alphabet), np.int64)
    for row_class in range(classes):
        part = symbols[rows == row_class]
        for column_class in range(classes):
            found = part[:, columns == column_class].reshape(-1)
            counts[row_class, column_class] = np.bincount(found, minlength=alphabet)
    return counts


def _normalised(counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Counts scaled to add up to 2**PRECISION, none that occurs below 1; the commonest takes the rounding."""
    total = int(counts.sum())
    if total == 0:
        counts, total = np.eye(1, len(counts), dtype=np.int64)[0], 1
    scaled = np.maximum(np.rint(counts * ((1 << PRECISION) / total)), counts > 0).astype(np.int64)
    while (surplus := int(scaled.sum()) - (1 << PRECISION)) != 0:
        largest = int(scaled.argmax())
        scaled[largest] -= min(surplus, int(scaled[largest]) // 2)
    result: NDArray[np.uint16] = scaled.astype(np.uint16)
    return result
