"""Where training images come from: Hugging Face parquet files, ImageFolder trees (and ``ilsvrc``'s tars)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alexnet_train.data.dataset import DatasetError
from alexnet_train.data.ilsvrc import Ilsvrc, is_ilsvrc
from alexnet_train.data.item import Item

IMAGE_SUFFIXES = {
    ".jpeg",
    ".jpg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".avif",
    ".heic",
    ".heif",
    ".tif",
    ".tiff",
    ".jxl",
    ".jp2",
}
"""HEIC and those behind it are read by nothing here, and are reported instead of passed over."""


class Source(Protocol):
    """Encoded images in a fixed order, with their classes."""

    classes: list[tuple[str, str]]

    def __len__(self) -> int: ...

    def items(self, start: int) -> Iterator[Item]:
        """The images from number ``start`` on."""

    def order(self) -> NDArray[np.int64] | None:
        """The row each image is to be written to, where that is not its number."""


class Parquet:
    """``SPLIT-*.parquet`` in the Hugging Face layout: ``image`` (struct with ``bytes``) and ``label``.

    Classes are named by ``labels.tsv`` beside the files, else by the files' own metadata. A plain binary
    ``image`` column will do, and so will labels that are class names.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.files = [pq.ParquetFile(f) for f in parquet_files(folder, split)]
        if not self.files:
            raise DatasetError(f"{folder}: no {split}-*.parquet files")
        for file in self.files:
            missing = {"image", "label"} - set(file.schema_arrow.names)
            if missing:
                raise DatasetError(f"{folder}: parquet without the columns {sorted(missing)}")
        self.classes = self._classes(folder)
        self._places = {name: place for place, pair in enumerate(self.classes) for name in pair}

    def __len__(self) -> int:
        return sum(file.metadata.num_rows for file in self.files)

    def items(self, start: int) -> Iterator[Item]:
        """Rows in file order; whole files before ``start`` are skipped unread."""
        row = 0
        for file in self.files:
            if row + file.metadata.num_rows <= start:
                row += file.metadata.num_rows
                continue
            for batch in file.iter_batches(256, columns=["image", "label"]):
                for image, label in zip(batch["image"].to_pylist(), batch["label"].to_pylist(), strict=True):
                    if row >= start:
                        yield self._item(row, image, label)
                    row += 1

    def _item(self, row: int, image: object, label: object) -> Item:
        """One row; what is null in it becomes an image that does not decode, reported by its name."""
        if isinstance(image, bytes):
            image = {"bytes": image}
        image = image if isinstance(image, dict) else {}
        name = str(image.get("path") or f"row {row}")
        place = self._places.get(label, -1) if isinstance(label, str) else label
        if image.get("bytes") is None or place is None:
            return Item(b"", 0, f"{name} (its {'label' if place is None else 'image'} is null)")
        if not isinstance(place, int):
            raise DatasetError(f"{name}: label {label!r} is neither a number nor a class name")
        return Item(image["bytes"], place, f"{name} ({label!r})" if isinstance(label, str) else name)

    def order(self) -> NDArray[np.int64] | None:
        """Where each row belongs, where the files are sorted by class; None where they are shuffled.

        Neighbours of a shuffled file seldom share a class, and the last images are held out: they may not be
        the last classes alone.
        """
        column = [file.read(columns=["label"])["label"].to_pylist() for file in self.files]
        labels = np.array([str(label) for part in column for label in part])
        _, counts = np.unique(labels, return_counts=True)
        expected = 1 - float(((counts / len(labels)) ** 2).sum())
        if float((labels[1:] != labels[:-1]).mean()) > expected / 2 or len(counts) < 2:
            return None
        return np.random.default_rng(2012).permutation(len(labels))

    def _classes(self, folder: Path) -> list[tuple[str, str]]:
        for place in (folder, folder.parent):
            if (place / "labels.tsv").exists():
                return read_labels(place / "labels.tsv")
        described = (self.files[0].schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        label = json.loads(described).get("info", {}).get("features", {}).get("label", {})
        if names := label.get("names"):
            return [(name, name) for name in names]
        return read_labels(folder / "labels.tsv")  # its error says what is expected


def parquet_files(folder: Path, split: str) -> list[Path]:
    """``SPLIT-*.parquet`` in the folder, or in its ``data`` as data sets are published."""
    places = (f"{place}{name}-*.parquet" for name in split_names(split) for place in ("", "data/"))
    return next((found for place in places if (found := sorted(folder.glob(place)))), [])


def split_names(split: str) -> tuple[str, ...]:
    """What a split is called: Hugging Face's sets and torchvision's examples shorten ``validation``."""
    return ("validation", "valid", "val") if split == "validation" else (split,)


def visible(name: str) -> bool:
    """False for what file managers, notebooks and archives leave behind: it is neither class nor image."""
    return not name.startswith((".", "@")) and name != "__MACOSX"


class ImageFolder:
    """``folder/SPLIT/<wnid>/*.jpg``: one folder a class, in sorted order; words from ``labels.tsv``."""

    def __init__(self, folder: Path, split: str) -> None:
        roots = (folder / name for name in split_names(split))
        root = next((place for place in roots if place.is_dir()), folder / split)
        wnids = (
            sorted(p.name for p in root.iterdir() if p.is_dir() and visible(p.name)) if root.is_dir() else []
        )
        if not wnids:
            raise DatasetError(f"{root}: no class folders; expected {root}/<WordNet id>/<image files>")
        words = dict(read_labels(folder / "labels.tsv")) if (folder / "labels.tsv").exists() else {}
        self.classes = [(wnid, words.get(wnid, wnid)) for wnid in wnids]
        self.paths: list[tuple[Path, int]] = []
        for label, wnid in enumerate(wnids):
            found = sorted(p for p in (root / wnid).rglob("*") if self._is_image(p.relative_to(root)))
            if not found:
                raise DatasetError(f"{root / wnid}: a class folder without images; fill it or remove it")
            self.paths += [(p, label) for p in found]
        # Shuffled once, as the 2012 code did when it wrote its batches: neighbours share a crop there.
        random.Random(2012).shuffle(self.paths)

    @staticmethod
    def _is_image(path: Path) -> bool:
        return path.suffix.lower() in IMAGE_SUFFIXES and all(visible(part) for part in path.parts)

    def __len__(self) -> int:
        return len(self.paths)

    def order(self) -> None:
        """The paths are shuffled already."""

    def items(self, start: int) -> Iterator[Item]:
        """Files in the shuffled order."""
        for path, label in self.paths[start:]:
            try:
                yield Item(path.read_bytes(), label, str(path))
            except OSError as error:  # reported like an image that does not decode, and left out
                yield Item(b"", label, f"{path} ({error.strerror})")


def read_labels(path: Path) -> list[tuple[str, str]]:
    """``labels.tsv``: index, WordNet id, words; the index must count from 0.

    Raises:
        DatasetError: the file is missing or malformed.
    """
    try:
        rows = [line.split("\t") for line in path.read_text().splitlines() if line]
        classes = [(wnid, words) for _, wnid, words in rows]
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path}: expected lines of index, WordNet id, words, tab-separated ({error})"
        ) from error
    if [row[0] for row in rows] != [str(i) for i in range(len(rows))]:
        raise DatasetError(f"{path}: the first column must count 0, 1, 2 ...")
    return classes


def open_source(folder: Path, split: str) -> Source:
    """The source that ``folder`` holds: the challenge's tar files, parquet files, else class folders.

    Raises:
        DatasetError: none of them is there, or what is there is broken.
    """
    if is_ilsvrc(folder):
        return Ilsvrc(folder, split)
    if parquet_files(folder, split):
        return Parquet(folder, split)
    return ImageFolder(folder, split)
