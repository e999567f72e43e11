"""Public weights in a folder of their own, fetched and converted the first time they are asked for."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alexnet_server.files import locked, user_cache
from alexnet_server.models.export.graph import Precision, View
from alexnet_server.models.public.download import Progress
from alexnet_server.models.public.errors import WeightsError
from alexnet_server.models.public.importing import CALIBRATION_PHOTOS, Request, import_weights
from alexnet_server.models.public.sources import RECOMMENDED, SOURCES, TERMS, Source, source_named
from alexnet_server.models.repository import CARD
from alexnet_server.preprocess import PREPROCESS_VERSION


@dataclass(frozen=True)
class Wanted:
    """Which public weights to serve.

    Attributes:
        name: of ``sources.SOURCES``, or ``imagenet`` for the recommended ones.
        calibrate: folder of at least 300 photos; they are then served in int8, else in fp32.
        views: the models.
        cache: where they are kept; the user's cache by default.
    """

    name: str
    calibrate: Path | None = None
    views: Sequence[View] = ("center",)
    cache: Path | None = None

    @property
    def source(self) -> Source:
        """Where they come from; WeightsError for a name that is not known."""
        source = source_named(self.name)
        if source is None:
            raise WeightsError(
                f"there are no weights {self.name!r}; there are imagenet, {', '.join(SOURCES)}"
            )
        return source

    @property
    def precision(self) -> Precision:
        """Of the complete graphs."""
        return "fp32" if self.calibrate is None else "int8"

    @property
    def base(self) -> Path:
        """Where all public weights are kept."""
        return self.cache or user_cache() / "public"

    @property
    def repository(self) -> Path:
        """Their model repository; its name says what is in it."""
        views = "-".join(self.views)
        return self.base / f"{self.source.name}-{self.precision}-{views}-{PREPROCESS_VERSION}"


def ensure(
    wanted: Wanted, *, say: Callable[[str], None], told: Callable[[str], None], stop: threading.Event
) -> Path:
    """The model repository of public weights, written first where it is not there.

    Args:
        wanted: which.
        say: gets a line for each thing that is done.
        told: gets the progress, over and over.
        stop: once set, it ends with a WeightsError.

    Returns:
        The repository; it appears complete, or not at all, whoever else asks for it at the same time.

    Raises:
        WeightsError: the weights cannot be had or are not what they should be, or the folder cannot be
            written.
        ExportError, RepositoryError: as ``import_weights``.
    """
    repository, base = wanted.repository, wanted.base
    if (repository / CARD).exists():
        return repository

    def waiting() -> None:
        told(f"waiting for another process that is downloading {wanted.source.name}")
        if stop.is_set():
            raise WeightsError("stopped")

    try:
        base.mkdir(parents=True, exist_ok=True)
        with locked(base, waiting):
            if not (repository / CARD).exists():
                _write(wanted, say, _progress(wanted.source, told), stop)
    except OSError as error:
        raise WeightsError(
            f"cannot write {wanted.source.name} to {base}: {error.strerror}; --weights-cache names another "
            "folder"
        ) from error
    return repository


def _write(wanted: Wanted, say: Callable[[str], None], progress: Progress, stop: threading.Event) -> None:
    """Import beside the place, then move; what a killed process left is swept. OSErrors pass."""
    for left in wanted.base.glob(f".{wanted.repository.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
    downloads = wanted.base / "downloads"
    request = Request(
        wanted.source.name,
        wanted.views,
        wanted.precision,
        wanted.calibrate,
        least_photos=CALIBRATION_PHOTOS,
        downloads=downloads,
    )
    staging = Path(tempfile.mkdtemp(prefix=f".{wanted.repository.name}.", dir=wanted.base))
    try:
        import_weights(request, staging / "repository", say=say, progress=progress, stop=stop)
        os.replace(staging / "repository", wanted.repository)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    (downloads / wanted.source.file).unlink(missing_ok=True)  # as much again as the repository


def _progress(source: Source, told: Callable[[str], None]) -> Progress:
    def progress(have: int, total: int | None) -> None:
        share = f" of {total / 1e6:.0f} MB, {100 * have / total:.0f} %" if total else " MB"
        done = have == total
        told(f"converting {source.name}" if done else f"downloading {source.name}: {have / 1e6:.0f}{share}")

    return progress


def main(arguments: Sequence[str]) -> int:
    """``alexnet-server weights``: list them; the exit status."""
    parser = argparse.ArgumentParser(
        prog="alexnet-server weights",
        description="Public weights that alexnet-server --weights NAME fetches, converts and serves.",
    )
    parser.add_argument("--weights-cache", type=Path, metavar="FOLDER", help="default: the user's cache")
    options = parser.parse_args(arguments)
    base = Wanted(RECOMMENDED, cache=options.weights_cache).base
    lines = [f"{'NAME':24} CLASSES  TOP-1   TOP-5   SIZE    HERE  LICENCE"]
    for source in SOURCES.values():
        here = "yes" if any(base.glob(f"{source.name}-*/{CARD}")) else "no"
        figures = f"{100 * source.top1:4.1f} %  {100 * source.top5:4.1f} %  {source.megabytes} MB"
        lines.append(f"{source.name:24} {source.classes:7}  {figures}  {here:4}  {source.licence}")
    lines += [TERMS, f"imagenet is {RECOMMENDED}. They are kept in {base}."]
    print("\n".join(lines))  # noqa: T201 - the command's own output
    return 0
