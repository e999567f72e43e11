"""Images to one uint8 memmap, through the pixels the server sees.

alexnet-train prepare --source tiny-imagenet --out data/tiny
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from alexnet_server.preprocess import SIDE, PhotoError, decode, resize_and_crop
from alexnet_train.data.dataset import (
    DatasetError,
    Statistics,
    class_places,
    mean_image,
    open_split,
    write_meta,
)
from alexnet_train.data.item import Item
from alexnet_train.data.sources import Source, open_source

SMALL = 64
"""Sources of at most this many pixels a side are kept at this size and enlarged in the loader."""
CHUNK = 2048
"""Images between two records of progress; two such chunks are in the works at any time."""
LOOKED_AT = 16


def pixels(item: Item, size: int) -> NDArray[np.uint8] | str:
    """(size, size, 3) uint8 RGB, or what is wrong with the image. ``size`` is 64 or 256."""
    try:
        image = decode(item.data)
        if size == SIDE:
            return resize_and_crop(image)
        if image.size != (size, size):
            return f"{item.name}: {image.width} x {image.height} pixels in a source of {size} x {size}"
        return np.asarray(image)
    except PhotoError as error:
        return f"{item.name}: {error}"


def source_size(source: Source) -> int:
    """64 when the first images that can be read are all 64 x 64, else 256."""
    sizes = set()
    for item in itertools.islice(source.items(0), LOOKED_AT):
        with contextlib.suppress(PhotoError):
            sizes.add(decode(item.data).size)
    return SMALL if sizes == {(SMALL, SMALL)} else SIDE


def check_rest(source_folder: Path, out: Path, splits: Sequence[str]) -> None:
    """See that what comes after the first split is there, before the first is prepared, which may take hours.

    Raises:
        DatasetError: one that is not prepared yet is missing or unusable.
    """
    for split in splits[1:]:
        if not (out / split / "meta.json").exists():
            try:
                open_source(source_folder, split)
            except DatasetError as error:
                alone = " ".join(f"--split {name}" for name in splits if name != split)
                raise DatasetError(f"{error}; to do without {split}, add {alone}") from error


def prepare(source_folder: Path, out: Path, split: str, workers: int | None = None) -> list[str]:
    """Write ``out/split`` as a memmap, on all cores; returns the unreadable images, whose rows are left out.

    Resumes after the last whole chunk; a split that is complete is left alone.

    Raises:
        DatasetError: the source is unusable, none of its images is readable, or the disk is full.
    """
    folder = out / split
    if (folder / "meta.json").exists():
        tqdm.write(f"{folder}: already prepared", file=sys.stderr)
        return []
    source = open_source(source_folder, split)
    classes, places = source.classes, np.arange(len(source.classes))
    if split != "train" and (out / "train/meta.json").exists():
        classes = open_split(out / "train").classes
        places = class_places(source.classes, classes, f"{out}/train")
    order = source.order()
    folder.mkdir(parents=True, exist_ok=True)
    size, count = source_size(source), len(source)
    try:
        progress = _read_progress(folder)
        images = _memmap(folder / "images.part.npy", np.dtype(np.uint8), (count, size, size, 3), progress)
        labels = _memmap(folder / "labels.part.npy", np.dtype(np.int64), (count,), progress)
        with ProcessPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
            bar = tqdm(
                total=count, initial=progress.done, desc=f"prepare {split}", unit="image", mininterval=1
            )
            for chunk, results in _decoded(pool, source.items(progress.done), size):
                for number, (item, result) in enumerate(zip(chunk, results, strict=True), progress.done):
                    bar.update(1)
                    row = progress.kept if order is None else int(order[number])
                    if isinstance(result, str):
                        progress.broken.append(result)
                        progress.empty += [] if order is None else [row]
                        continue
                    _check_label(item, len(places))
                    images[row], labels[row] = result, places[item.label]
                    progress.kept += 1
                progress.done += len(chunk)
                _write_progress(folder, progress)
    except OSError as error:
        raise DatasetError(f"{folder}: {error}; free some space and run it again, and it resumes") from error
    if not progress.kept:
        raise DatasetError(
            f"{source_folder}: none of its {count} images is readable; first: {progress.broken[0]}"
        )
    _close_gaps(images, labels, progress)
    (folder / "images.part.npy").replace(folder / "images.npy")
    (folder / "labels.part.npy").replace(folder / "labels.npy")
    statistics = None
    if split == "train":
        statistics = measure(images[: progress.kept])
        np.save(folder / "mean.npy", mean_image(images[: progress.kept]))
    write_meta(folder, classes, progress.kept, size, statistics)
    (folder / "progress.json").unlink()
    return progress.broken


def _close_gaps(images: NDArray[np.uint8], labels: NDArray[np.int64], progress: _Progress) -> None:
    """Move the last rows to the empty ones, so that the first ``kept`` are the images."""
    empty = [row for row in progress.empty if row < progress.kept]
    last = sorted(set(range(progress.kept, len(labels))) - set(progress.empty)) if empty else []
    for row, other in zip(empty, last, strict=True):
        images[row], labels[row] = images[other], labels[other]


def measure(images: NDArray[np.uint8]) -> Statistics:
    """Mean and colour covariance over the pixels of (N, S, S, 3) uint8 images, from about 20,000 of them."""
    total, square, pixel_count = np.zeros(3), np.zeros((3, 3)), 0
    step = max(1, len(images) // 20_000)
    chunk = step * max(1, (CHUNK * SMALL**2) // images[0, :, :, 0].size)  # 200 MB as float64
    for start in range(0, len(images), chunk):
        flat = images[start : start + chunk : step].reshape(-1, 3).astype(np.float64)
        total += flat.sum(0)
        square += flat.T @ flat
        pixel_count += len(flat)
    mean = total / pixel_count
    covariance = square / pixel_count - np.outer(mean, mean)
    return Statistics(mean.tolist(), covariance.tolist())


@dataclass
class _Progress:
    """How far a run has come: rows written, images seen, and what could not be read."""

    kept: int = 0
    done: int = 0
    broken: list[str] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    """Rows of unreadable images, where rows are not written one after another."""


def _decoded(
    pool: ProcessPoolExecutor, items: Iterator[Item], size: int
) -> Iterator[tuple[list[Item], Iterator[NDArray[np.uint8] | str]]]:
    """Chunks and what their images decode to, the next chunk already handed to the workers."""
    waiting = None
    for chunk in _chunks(items):
        results = pool.map(pixels, chunk, itertools.repeat(size), chunksize=16)
        if waiting:
            yield waiting
        waiting = chunk, results
    if waiting:
        yield waiting


def _check_label(item: Item, classes: int) -> None:
    if not 0 <= item.label < classes:
        raise DatasetError(
            f"{item.name}: label {item.label} is outside 0..{classes - 1}, the known classes; "
            "fix the label, or labels.tsv"
        )


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    while chunk := list(itertools.islice(items, CHUNK)):
        yield chunk


def _memmap(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], progress: _Progress) -> NDArray[Any]:
    """The growing file at ``path``: opened where an earlier run left it, made anew otherwise.

    Raises:
        OSError: the disk has no room for it; sparse files would tell only half-way.
    """
    if progress.done:
        existing = np.lib.format.open_memmap(path, "r+")
        if existing.shape == shape:
            return existing
        progress.kept, progress.done, progress.broken, progress.empty = 0, 0, [], []
    room, need = shutil.disk_usage(path.parent).free, int(np.prod(shape)) * dtype.itemsize
    if room < need:
        raise OSError(f"{need / 1e9:.1f} GB are needed for {path.name} and {room / 1e9:.1f} GB are free")
    memmap = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with path.open(
        "r+b"
    ) as file:  # without its blocks reserved, a disk that fills kills the process (SIGBUS)
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return memmap


def _read_progress(folder: Path) -> _Progress:
    path = folder / "progress.json"
    return _Progress(**json.loads(path.read_text())) if path.exists() else _Progress()


def _write_progress(folder: Path, progress: _Progress) -> None:
    temporary = folder / "progress.part"
    temporary.write_text(json.dumps(asdict(progress)))
    temporary.replace(folder / "progress.json")
