"""Whether probabilities mean what they say: temperature scaling and calibration error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
BINS = 15


def softmax(logits: Array) -> Array:
    """Softmax over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    normalised: Array = shifted / shifted.sum(-1, keepdims=True)
    return normalised


def fit_temperature(logits: Array, labels: NDArray[np.integer]) -> float:
    """The temperature of least mean negative log-likelihood (Guo et al. 2017, section 4.2).

    Args:
        logits: (N, V, classes): V views of each image, whose probabilities are averaged as the graph does.
        labels: (N,).
    """

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature)).mean(1)
        return float(-np.log(probabilities[np.arange(len(labels)), labels] + 1e-12).mean())

    return float(np.exp(_golden_section(loss, np.log(0.2), np.log(5.0))))


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    """The minimum of a unimodal function on [low, high], to 1e-3 of the interval."""
    ratio = (5**0.5 - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(16):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2


def calibration_error(confidence: Array, right: NDArray[np.bool_], seed: int = 2012) -> float:
    """Expected calibration error over 15 bins of equal count, corrected for its bias (a fraction).

    With finite bins even a calibrated model shows an error: |accuracy - confidence| of each bin carries the
    binomial noise of its accuracy. What that noise adds is measured by drawing it (Kumar, Liang and Ma 2019,
    section 5) and taken off. That halves the bias of a calibrated model and leaves a large error as it is.
    """
    order = np.argsort(confidence)
    bins = np.array_split(order, BINS)
    weight = np.array([len(b) for b in bins]) / len(order)
    accuracy = np.array([right[b].mean() for b in bins])
    expected = np.array([confidence[b].mean() for b in bins])
    plain = float((weight * np.abs(accuracy - expected)).sum())
    spread = np.sqrt(accuracy * (1 - accuracy) / np.array([len(b) for b in bins]))
    noise = np.random.default_rng(seed).standard_normal((1000, BINS)) * spread
    noisy = (weight * np.abs(accuracy + noise - expected)).sum(1).mean()
    return max(0.0, plain - float(noisy - plain))


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float], count: int, draws: int = 500, seed: int = 2012
) -> tuple[float, float]:
    """The 95 % bootstrap interval of ``statistic(indices)`` over ``count`` samples."""
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(0, count, count)) for _ in range(draws)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
