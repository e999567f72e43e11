"""Multinomial logistic regression on frozen features; penalty and temperature from held-out photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from tqdm import tqdm

from alexnet_train.evaluate.calibration import fit_temperature, softmax

Array = NDArray[np.float32]
Indices = NDArray[np.intp]
Solution = NDArray[np.float64]
"""(classes, dimensions + 1), in the coordinates of a `Fit`; the last column is the bias."""
PENALTIES = tuple(10.0 ** (-power / 2) for power in range(1, 12))
"""Strongest first, on the mean loss of features whose mean squared length is 1."""
PATIENCE = 2
"""Penalties in a row that do worse before the weaker ones, which take the longest, are left out."""
SPAN = 1e-7
"""Least share of the largest eigenvalue that is more than rounding."""
FOLDS = 5
ALL_FOLDS_UP_TO = 2000
"""Photos up to which each fifth is held out in turn; of more, the first fifth tells enough."""
PRIOR = 1.0
"""Imagined right and wrong answers each, lest a few photos, all right, make it certain of everything."""


@dataclass(frozen=True)
class Head:
    """fc8: ``weight`` float32 (classes, hidden), ``bias`` float32 (classes,)."""

    weight: Array
    bias: Array

    def logits(self, features: Array) -> Array:
        """(..., hidden) to (..., classes)."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class HeldOut:
    """What the chosen penalty made of photos that were not learned from.

    ``photos`` are their indices, ``labels`` (N,), ``logits`` float32 (N, 6, classes).
    """

    photos: Indices
    labels: NDArray[np.int64]
    logits: Array
    penalty: float

    @property
    def loss(self) -> float:
        """Mean negative log likelihood of the first view at the temperature that will be served."""
        logits = self.logits[:, :1]
        tempered = softmax(logits / fit_temperature(logits, self.labels, prior=PRIOR))[:, 0]
        right = tempered[np.arange(len(self.labels)), self.labels]
        return float(-np.log(np.maximum(right, 1e-12)).mean())

    @property
    def right(self) -> int:
        """Photos whose first view is classified right."""
        return int((self.logits[:, 0].argmax(1) == self.labels).sum())

    def beats(self, other: HeldOut) -> bool:
        """Are so many more of the same photos right that it is no chance (two deviations of a sign test)?"""
        right, before = (one.logits[:, 0].argmax(1) == self.labels for one in (self, other))
        gained, lost = int((right & ~before).sum()), int((before & ~right).sum())
        return bool(gained - lost > 2 * np.sqrt(gained + lost))

    def first(self, count: int) -> HeldOut:
        """The first photos alone."""
        return HeldOut(self.photos[:count], self.labels[:count], self.logits[:count], self.penalty)

    def temperature(self, views: int) -> float:
        """For the first view alone, or for the average of all six."""
        return fit_temperature(self.logits[:, :views], self.labels, prior=PRIOR)


def folds(labels: NDArray[np.int64], seed: int) -> list[tuple[Indices, Indices]]:
    """(learned from, held out) of each turn: the same share of every class in each fifth."""
    draw = np.random.default_rng(seed)
    part = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        own = draw.permutation(np.flatnonzero(labels == label))
        part[own] = (np.arange(len(own)) + draw.integers(FOLDS)) % FOLDS
    turns = FOLDS if len(labels) <= ALL_FOLDS_UP_TO else 1
    return [(np.flatnonzero(part != turn), np.flatnonzero(part == turn)) for turn in range(turns)]


def choose(fit: Fit, splits: Sequence[tuple[Indices, Indices]]) -> HeldOut:
    """Fit penalties from the strongest on; kept is the one whose held-out parts have the least loss.

    Args:
        fit: every photo, learned from or held out.
        splits: indices of photos that are learned from, and held out.
    """
    held = np.concatenate([out for _, out in splits])
    labels = fit.labels[held]
    starts: list[Solution | None] = [None] * len(splits)
    best: HeldOut | None = None
    worse = 0
    with tqdm(total=len(splits) * len(PENALTIES), desc="penalties", unit="fit", mininterval=1) as bar:
        for penalty in PENALTIES:
            logits = []
            for turn, (learned, out) in enumerate(splits):
                solution = starts[turn] = fit.solve(learned, penalty, starts[turn])
                logits.append(fit.logits(solution, out))
                bar.update()
            found = HeldOut(held, labels, np.concatenate(logits), penalty)
            if best is None or found.loss < best.loss:
                best, worse = found, 0
            elif (worse := worse + 1) == PATIENCE:
                break
    assert best is not None
    return best


class Fit:
    """Logistic regression of photos by their features, each view a row.

    Features are centred and scaled to a mean squared length of 1 inside, which the weights and bias that come
    out make good for. A linear model with an L2 penalty lies in the span of its rows, so where there are
    fewer rows than features the fit is made in coordinates of that span: the same result, and faster.

    Args:
        features: float32 (N, views, hidden).
        labels: (N,).
        classes: how many there are.
    """

    def __init__(self, features: Array, labels: NDArray[np.int64], classes: int) -> None:
        self.labels, self.classes, self.views = labels, classes, features.shape[1]
        rows = features.reshape(-1, features.shape[-1])
        self._mean = rows.mean(0)
        rows = rows - self._mean
        self._scale = float(np.sqrt((rows.astype(np.float64) ** 2).sum(1).mean())) or 1.0
        rows /= np.float32(self._scale)
        self._basis: Array | None = None
        if len(rows) < rows.shape[1]:
            values, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
            kept = values > values[-1] * SPAN
            root = np.sqrt(values[kept])
            self._basis = rows.T @ (vectors[:, kept] / root).astype(np.float32)
            rows = (vectors[:, kept] * root).astype(np.float32)
        self._rows = rows.reshape(len(labels), self.views, -1)

    def solve(self, learned: Indices, penalty: float, start: Solution | None = None) -> Solution:
        """The minimum, for some photos, of mean loss + penalty / 2 * |weight|^2; the bias is free."""
        rows = self._rows[learned].reshape(-1, self._rows.shape[-1])
        targets = np.repeat(np.eye(self.classes, dtype=np.float32)[self.labels[learned]], self.views, axis=0)
        shape = self.classes, rows.shape[1] + 1

        def objective(flat: Solution) -> tuple[float, Solution]:
            solution = flat.reshape(shape)
            weight, bias = solution[:, :-1], solution[:, -1]
            probabilities = softmax(rows @ weight.T.astype(np.float32) + bias.astype(np.float32))
            right = np.einsum("nc,nc->n", probabilities, targets)
            loss = -np.log(np.maximum(right, 1e-30), dtype=np.float64).mean()
            error = (probabilities - targets) / np.float32(len(rows))
            gradient = np.empty(shape)
            gradient[:, :-1] = error.T @ rows + penalty * weight
            gradient[:, -1] = error.sum(0)
            return loss + penalty / 2 * float((weight**2).sum()), gradient.ravel()

        begin = np.zeros(shape).ravel() if start is None else start.ravel()
        options = {"maxiter": 200, "ftol": 1e-6, "gtol": 1e-5}
        found: Solution = minimize(objective, begin, jac=True, method="L-BFGS-B", options=options).x
        return found.reshape(shape)

    def logits(self, solution: Solution, photos: Indices) -> Array:
        """float32 (N, views, classes) of some photos."""
        weight, bias = solution[:, :-1].astype(np.float32), solution[:, -1].astype(np.float32)
        logits: Array = self._rows[photos] @ weight.T + bias
        return logits

    def head(self, solution: Solution) -> Head:
        """The solution as a layer on the features as they are."""
        weight = solution[:, :-1].astype(np.float32)
        if self._basis is not None:
            weight = weight @ self._basis.T
        weight /= np.float32(self._scale)
        bias = solution[:, -1].astype(np.float32) - weight @ self._mean
        return Head(np.ascontiguousarray(weight), bias)
