"""Where training images come from: Hugging Face parquet files, ImageFolder trees (and ``ilsvrc``'s tars)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyarrow.parquet as pq

from alexnet_train.data.dataset import DatasetError
from alexnet_train.data.ilsvrc import Ilsvrc, is_ilsvrc
from alexnet_train.data.item import Item

IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".avif"}


class Source(Protocol):
    """Encoded images in a fixed order, with their classes."""

    classes: list[tuple[str, str]]

    def __len__(self) -> int: ...

    def items(self, start: int) -> Iterator[Item]:
        """The images from number ``start`` on."""


class Parquet:
    """``SPLIT-*.parquet`` in the Hugging Face layout: ``image`` (struct with ``bytes``) and ``label``."""

    def __init__(self, folder: Path, split: str) -> None:
        self.files = [pq.ParquetFile(f) for f in sorted(folder.glob(f"{split}-*.parquet"))]
        if not self.files:
            raise DatasetError(f"{folder}: no {split}-*.parquet files")
        for file in self.files:
            missing = {"image", "label"} - set(file.schema_arrow.names)
            if missing:
                raise DatasetError(f"{folder}: parquet without the columns {sorted(missing)}")
        self.classes = read_labels(folder / "labels.tsv")

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
                        yield Item(image["bytes"], int(label), str(image.get("path") or f"row {row}"))
                    row += 1


class ImageFolder:
    """``folder/SPLIT/<wnid>/*.jpg``: one folder a class, in sorted order; words from ``labels.tsv``."""

    def __init__(self, folder: Path, split: str) -> None:
        root = folder / split
        wnids = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        if not wnids:
            raise DatasetError(f"{root}: no class folders; expected {root}/<WordNet id>/<image files>")
        words = dict(read_labels(folder / "labels.tsv")) if (folder / "labels.tsv").exists() else {}
        self.classes = [(wnid, words.get(wnid, wnid)) for wnid in wnids]
        self.paths: list[tuple[Path, int]] = []
        for label, wnid in enumerate(wnids):
            found = sorted(p for p in (root / wnid).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise DatasetError(f"{root / wnid}: a class folder without images; fill it or remove it")
            self.paths += [(p, label) for p in found]
        # Shuffled once, as the 2012 code did when it wrote its batches: neighbours share a crop there.
        random.Random(2012).shuffle(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

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
    if any(folder.glob(f"{split}-*.parquet")):
        return Parquet(folder, split)
    return ImageFolder(folder, split)
