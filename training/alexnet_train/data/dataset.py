"""A prepared dataset on disk: one uint8 memmap of square images with their labels and statistics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet_server.files import write_atomically
from alexnet_server.preprocess import PREPROCESS_VERSION

FORMAT = 1


class DatasetError(RuntimeError):
    """A prepared dataset that cannot be used; the message names the file and the mend."""


@dataclass(frozen=True)
class Statistics:
    """What the training images say of themselves, in grey levels (0-255), RGB.

    ``mean`` is (3,), ``covariance`` (3, 3) over all pixels: the paper's colour PCA (section 4.1) is its
    eigenvectors and the square roots of its eigenvalues.
    """

    mean: list[float]
    covariance: list[list[float]]


@dataclass(frozen=True)
class Split:
    """One split: images uint8 (N, size, size, 3) RGB, labels int64 (N,), classes (WordNet id, words)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: list[tuple[str, str]]
    statistics: Statistics | None
    mean_image: NDArray[np.float32] | None = None
    """Mean of the training images, (size, size, 3), where ``prepare`` has left one."""

    @property
    def size(self) -> int:
        """Side of an image in pixels: 64, enlarged by the loader, or 256."""
        return int(self.images.shape[1])


def tells_top5(classes: int) -> bool:
    """False for up to five classes, of which every five hold the right one."""
    return classes > 5


def write_meta(
    folder: Path, classes: list[tuple[str, str]], count: int, size: int, statistics: Statistics | None
) -> None:
    """Write ``meta.json``, the file whose presence says that the split is complete."""
    meta = {
        "format": FORMAT,
        "preprocess_version": PREPROCESS_VERSION,
        "count": count,
        "size": size,
        "classes": classes,
        "statistics": asdict(statistics) if statistics else None,
    }
    write_atomically(folder / "meta.json", json.dumps(meta, indent=1).encode())


def open_split(folder: Path) -> Split:
    """Open a prepared split, images memory-mapped.

    Raises:
        DatasetError: the folder is not a complete split, a file is truncated, or a label is out of range.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text())
        count, size = meta["count"], meta["size"]
        # Copy on write: torch warns of arrays that it might write to and must not.
        images = np.load(folder / "images.npy", mmap_mode="c")
        labels = np.load(folder / "labels.npy")
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(
            f"{folder}: not a complete prepared split ({error}); run `alexnet-train prepare`"
        ) from error
    if (version := meta.get("preprocess_version", "1")) != PREPROCESS_VERSION:
        raise DatasetError(
            f"{folder}: prepared by preprocessing {version}, pixels are now those of {PREPROCESS_VERSION}; "
            "delete it and run `alexnet-train prepare` again"
        )
    if images.shape[1:] != (size, size, 3) or min(len(images), len(labels)) < count:
        raise DatasetError(
            f"{folder}: images {images.shape}, labels {labels.shape} do not match meta.json; prepare it again"
        )
    images, labels = images[:count], labels[:count]  # rows of unreadable images stay unused at the end
    classes = [(wnid, words) for wnid, words in meta["classes"]]
    if count and not 0 <= labels.min() <= labels.max() < len(classes):
        raise DatasetError(f"{folder}/labels.npy: labels outside 0..{len(classes) - 1}; prepare it again")
    statistics = Statistics(**meta["statistics"]) if meta["statistics"] else None
    mean = folder / "mean.npy"
    return Split(
        images, labels.astype(np.int64), classes, statistics, np.load(mean) if mean.exists() else None
    )


def class_places(
    classes: Sequence[tuple[str, str]], known: Sequence[tuple[str, str]], whose: str
) -> NDArray[np.int64]:
    """Where each of ``classes`` stands among ``known``, by WordNet id, else by words; int64 (classes,).

    Raises:
        DatasetError: a class that ``whose`` classes do not have.
    """
    places = {words: place for place, (_, words) in enumerate(known)}
    places |= {wnid: place for place, (wnid, _) in enumerate(known)}
    found = [places.get(wnid, places.get(words, -1)) for wnid, words in classes]
    unknown = [wnid for (wnid, _), place in zip(classes, found, strict=True) if place < 0]
    if unknown:
        raise DatasetError(
            f"{whose} has no class {', '.join(unknown[:5])}; its classes begin with "
            f"{', '.join(wnid for wnid, _ in known[:5])}: give the folders these names"
        )
    return np.array(found, np.int64)


def with_labels_of(split: Split, classes: Sequence[tuple[str, str]], whose: str) -> Split:
    """The split with its labels numbered as a model numbers its ``classes``; as it is where it names none.

    Raises:
        DatasetError: a class that the model does not know.
    """
    if not split.classes:
        return split
    places = class_places(split.classes, classes, whose)
    return replace(split, labels=places[split.labels], classes=list(classes))


def first_classes(split: Split, count: int) -> Split:
    """The part of a split that is of its first ``count`` classes, in memory; all of it for 0.

    Raises:
        DatasetError: the split has fewer classes.
    """
    if not count:
        return split
    if count > len(split.classes):
        raise DatasetError(
            f"{count} classes are requested, but the split has {len(split.classes)}; ask for fewer"
        )
    chosen = split.labels < count
    mean = mean_image(split.images[chosen]) if split.statistics else None
    return Split(split.images[chosen], split.labels[chosen], split.classes[:count], split.statistics, mean)


def mean_image(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(S, S, 3) float32: the mean of (N, S, S, 3) uint8 images, of about 100,000 where there are more."""
    step, chunk = max(1, len(images) // 100_000), 512
    total, count = np.zeros(images.shape[1:]), 0
    for start in range(0, len(images), chunk * step):
        part = images[start : start + chunk * step : step]
        total += part.sum(0, dtype=np.uint32)
        count += len(part)
    return (total / count).astype(np.float32)
