"""Tolerances for two ways to compute the same thing: from the arithmetic, never from what a machine printed.

Processors add in different orders, fused or not, so float32 sums differ in their last bits. Roundings are
independent of each other, so the error of a chain of sums grows with the root of the number of their terms
(Higham and Mary 2019, "A New Approach to Probabilistic Rounding Error Analysis"). Compare in float64 where
both ways can be had in it; `rounding` tells how far apart they may be where one of them is float32 alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

SAFETY = 4
"""The largest of thousands of results, each with an error about normal, lies at four standard deviations."""


def rounding(terms: int, values: ArrayLike, dtype: DTypeLike = np.float32) -> float:
    """How far apart two computations of `values` may lie, each of sums with `terms` terms in all."""
    return SAFETY * float(np.finfo(dtype).eps) * terms**0.5 * float(np.abs(np.asarray(values)).max())


def probability_rounding(terms: int, probabilities: ArrayLike, *, logits: float | None = None) -> float:
    """The same for float32 probabilities: softmax at most halves the error of the logits.

    Without the size of the logits their spread stands for it, which is all that probabilities tell of them;
    it is too little where logits nearly cancel.
    """
    size = float(np.ptp(np.log(np.asarray(probabilities)))) if logits is None else logits
    return rounding(terms, max(size, 1.0)) / 2


def logits_size(weight: ArrayLike, features: ArrayLike) -> float:
    """The size of sums of features (N, n), each as wrong as the largest, with a weight (classes, n)."""
    return float(np.linalg.norm(np.asarray(weight), axis=1).max() * np.abs(np.asarray(features)).max())


def terms(weights: Mapping[str, Any]) -> int:
    """Terms on the way from an input to an output: each layer's inputs to one of its outputs, added up."""
    return sum(int(np.prod(w.shape[1:])) for name, w in weights.items() if name.endswith("weight"))
