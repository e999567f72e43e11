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


def fit_temperature(logits: Array, labels: NDArray[np.integer], prior: float = 0.0) -> float:
    """The temperature at which the mean confidence is the accuracy (Clarte et al. 2023, arXiv:2303.02644).

    Of one parameter, likelihood (Guo et al. 2017) asks for all classes' probabilities at once, and left
    networks that were trained on smoothed labels two points underconfident in their best guess; this asks
    for that guess alone, which is what people read.

    Args:
        logits: (N, V, classes): V views of each image, whose probabilities are averaged as the graph does.
        labels: (N,).
        prior: imagined right answers, and as many wrong ones, that are counted with the real ones where
            images are few.

    Returns:
        Between 0.2 and 5.
    """
    low, high = np.log(0.2), np.log(5.0)
    for _ in range(14):
        middle = (low + high) / 2
        probabilities = softmax(logits / np.exp(middle)).mean(1)
        right = int((probabilities.argmax(1) == labels).sum())
        accuracy = (right + prior) / (len(labels) + 2 * prior)
        confident = float(probabilities.max(1).mean()) > accuracy
        low, high = (middle, high) if confident else (low, middle)
    return float(np.exp((low + high) / 2))


def calibration_error(confidence: Array, right: NDArray[np.bool_], seed: int = 2012) -> float:
    """Expected calibration error over at most 15 bins of equal count, corrected for its bias (a fraction).

    With finite bins even a calibrated model shows an error: |accuracy - confidence| of each bin carries the
    binomial noise of its accuracy. What that noise adds is measured by drawing it (Kumar, Liang and Ma 2019,
    section 5) and taken off. That halves the bias of a calibrated model and leaves a large error as it is.
    """
    order = np.argsort(confidence)
    bins = np.array_split(order, min(BINS, len(order)))
    weight = np.array([len(b) for b in bins]) / len(order)
    accuracy = np.array([right[b].mean() for b in bins])
    expected = np.array([confidence[b].mean() for b in bins])
    plain = float((weight * np.abs(accuracy - expected)).sum())
    spread = np.sqrt(accuracy * (1 - accuracy) / np.array([len(b) for b in bins]))
    noise = np.random.default_rng(seed).standard_normal((1000, len(bins))) * spread
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
