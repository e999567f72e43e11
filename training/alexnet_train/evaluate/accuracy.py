"""A model repository entry over a labelled set, through the engine that serves it.

alexnet-train evaluate --repository model_repository --model alexnet_10crop --data data/tiny
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from alexnet_train.data.dataset import Split, tells_top5
from alexnet_train.data.enlarge import enlarge
from alexnet_train.evaluate.calibration import bootstrap, calibration_error

BATCH = 32


class Infer(Protocol):
    """What evaluation needs of an engine: uint8 (N, 256, 256, 3) to probabilities (N, classes)."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One batch."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Probabilities (N, classes) of a labelled set, and how long they took."""

    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]
    images_per_s: float

    def hits(self, k: int) -> NDArray[np.bool_]:
        """(N,): is the label among the k best?"""
        best = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        found: NDArray[np.bool_] = (best == self.labels[:, None]).any(1)
        return found

    @property
    def tells_top5(self) -> bool:
        """Whether being among the five best says anything."""
        return tells_top5(self.probabilities.shape[1])

    def summary(self) -> dict[str, Any]:
        """Top-1 and top-5 accuracy with 95 % bootstrap intervals, calibration error, images a second.

        Without top-5 where that tells nothing.
        """
        top1, top5, confidence = self.hits(1), self.hits(5), self.probabilities.max(1)
        count = len(self.labels)

        def error(index: NDArray[np.intp]) -> float:
            return calibration_error(confidence[index], top1[index])

        told: dict[str, Any] = {"images": count, **_share("top1", top1)}
        if self.tells_top5:
            told |= _share("top5", top5)
        return told | {
            "calibration_error": round(calibration_error(confidence, top1), 4),
            "calibration_error_interval": _rounded(bootstrap(error, count, draws=200)),
            "images_per_s": round(self.images_per_s, 1),
        }

    def per_class(self, classes: list[tuple[str, str]]) -> list[dict[str, Any]]:
        """WordNet id, words, images, top-1 and, where it tells anything, top-5 of each class, best first."""
        hits = {"top1": self.hits(1)} | ({"top5": self.hits(5)} if self.tells_top5 else {})
        rows = []
        for index, (wnid, words) in enumerate(classes):
            own = self.labels == index
            if own.any():
                shares = {name: float(hit[own].mean()) for name, hit in hits.items()}
                rows.append({"wnid": wnid, "words": words, "images": int(own.sum()), **shares})
        return sorted(rows, key=lambda row: -row["top1"])

    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes): rows are labels, columns the best guesses."""
        classes = self.probabilities.shape[1]
        cells = self.labels * classes + self.probabilities.argmax(1)
        return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def evaluate(infer: Infer, split: Split) -> Evaluation:
    """Run every image of a prepared split; 64-pixel images are enlarged to 256 as in training."""
    parts, spent = [], 0.0
    for images in tqdm(list(_batches(split)), unit="batch", mininterval=5):
        prepared = enlarge(images) if split.size != 256 else np.ascontiguousarray(images)
        began = time.perf_counter()
        parts.append(infer(prepared))
        spent += time.perf_counter() - began
    return Evaluation(np.concatenate(parts), split.labels, len(split.labels) / spent)


def _batches(split: Split) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(split.labels), BATCH):
        yield split.images[start : start + BATCH]


def _share(name: str, hits: NDArray[np.bool_]) -> dict[str, Any]:
    """A share and its 95 % bootstrap interval."""
    interval = bootstrap(lambda index: float(hits[index].mean()), len(hits))
    return {name: round(float(hits.mean()), 4), f"{name}_interval": _rounded(interval)}


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(value, 4) for value in interval]


MOST_NAMES = 40
"""Classes whose names fit beside the confusion picture."""


def draw_confusion(confusion: NDArray[np.int64], path: Path, names: Sequence[str] = ()) -> None:
    """A picture of the confusion matrix, rows scaled to 1; labels down, guesses across.

    Args:
        confusion: (classes, classes).
        path: of the PNG.
        names: of the classes, shown where they fit.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    figure, axes = pyplot.subplots(figsize=(7, 6))
    shown = axes.imshow(rows, cmap="magma", vmin=0, vmax=1)
    axes.set(xlabel="best guess (class index)", ylabel="label (class index)")
    if 0 < len(names) <= MOST_NAMES:
        axes.set(xlabel="best guess", ylabel="label")
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
    figure.colorbar(shown, label="share of the class")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that no font here has
        figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
