"""From graphs without weights and one weight file to complete ``1/model.onnx`` files.

``alexnet-server unpack`` does it for a repository; the server does it by itself for models that are not there
yet. Files appear whole or not at all, however many processes write them.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import helper

from alexnet_server.models.graphs import Forms, fill
from alexnet_server.models.onnxfile import read_metadata
from alexnet_server.models.repository import (
    PRECISIONS,
    ModelEntry,
    Repository,
    RepositoryError,
    read_repository,
    readable,
    sha256_of,
)
from alexnet_server.models.weights import WeightFile, WeightFileError, read_weights

log = logging.getLogger(__name__)

GRAPH_KEY = "graph_sha256"
"""Metadata of a complete graph: the sha256 of the graph without weights that it was made of."""

_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}
_LEFTOVER_S = 3600


def default_repository() -> Path:
    """The model that ships: in the installed package, or in the checkout that this file is part of.

    Raises:
        RepositoryError: this installation came without one.
    """
    package = Path(__file__).parents[1]
    for path in (package / "model_repository", package.parents[1] / "model_repository"):
        if path.is_dir():
            return path
    raise RepositoryError("this installation ships no model: name one with --model-repository")


def user_cache() -> Path:
    """Where models go when their repository cannot be written: ``$XDG_CACHE_HOME/alexnet``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "alexnet"


def unpack(repository: Repository, precision: str) -> dict[str, Path]:
    """Write the complete graph of every model into the repository, over whatever is there.

    Raises:
        RepositoryError: weights or graphs are missing or damaged, or the file system refuses.
    """
    targets = {name: entry.onnx for name, entry in repository.models.items()}
    try:
        _write(repository, precision, targets)
    except OSError as error:
        raise _refused(repository.path, error) from error
    return targets


@readable()
def ensure_unpacked(
    repository: Repository, precisions: Sequence[str], cache: Path | None = None
) -> dict[str, Path]:
    """The complete graph of every model, by its name; those that are missing or out of date are unpacked.

    Args:
        repository: where to look, and to write if it can be written.
        precisions: those that will do. What is missing is unpacked in the first; a repository whose files are
        all
            of another keeps them, and the first is unpacked to the cache.
        cache: where to write otherwise; the user's cache by default.

    Raises:
        RepositoryError: as ``unpack``.
    """
    found = {name: entry.onnx for name, entry in repository.models.items() if _serves(entry, precisions)}
    missing = repository.models.keys() - found.keys()
    if not missing:
        return found
    precision = precisions[0]
    targets = {name: repository.models[name].onnx for name in missing}
    if not any(path.exists() and _current(repository.models[name]) for name, path in targets.items()):
        try:
            log.info("unpacking %s in %s into %s", ", ".join(sorted(missing)), precision, repository.path)
            _write(repository, precision, targets)
            return found | targets
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise _refused(repository.path, error) from error
    base = cache or user_cache()
    targets = {name: _cached(base, repository.models[name], precision) for name in missing}
    absent = {name: path for name, path in targets.items() if not path.exists()}
    try:
        if absent:
            log.info("unpacking %s in %s into %s", ", ".join(sorted(absent)), precision, base)
            _write(repository, precision, absent)
    except OSError as error:
        raise _refused(base, error) from error
    return found | targets


def _current(entry: ModelEntry) -> bool:
    """Does the complete graph belong to the config and, where there is one, to the graph without weights?"""
    metadata = read_metadata(entry.onnx)
    if metadata.get("weights_sha256") != entry.weights_sha256:
        return False
    graph = entry.graph(metadata.get("precision", ""))
    return not graph.exists() or metadata.get(GRAPH_KEY) == sha256_of(graph)


def _serves(entry: ModelEntry, precisions: Sequence[str]) -> bool:
    if not entry.onnx.exists():
        return False
    if not any(entry.graph(precision).exists() for precision in PRECISIONS):
        return True  # a model without parts to unpack: what lies there is what there is
    return _current(entry) and read_metadata(entry.onnx).get("precision") in precisions


def _cached(base: Path, entry: ModelEntry, precision: str) -> Path:
    """The name says what is in it, so that no cached file is ever out of date."""
    return base / _graph_sha256(entry, precision)[:16] / entry.name / "model.onnx"


def _graph_sha256(entry: ModelEntry, precision: str) -> str:
    try:
        return sha256_of(entry.graph(precision))
    except OSError as error:
        raise RepositoryError(
            f"{entry.graph(precision)} is missing ({error.strerror}): {entry.name} was not exported "
            f"in {precision}"
        ) from error


def _write(repository: Repository, precision: str, targets: Mapping[str, Path]) -> None:
    """Write complete graphs; OSErrors pass."""
    forms = Forms(_checked_weights(repository))
    for name, target in targets.items():
        entry = repository.models[name]
        digest = _graph_sha256(entry, precision)
        data = entry.graph(precision).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise RepositoryError(f"{entry.graph(precision)} changed while it was read: try again")
        try:
            model = fill(onnx.load_model_from_string(data), forms)
        except Exception as error:  # protobuf's DecodeError is no stable name
            raise RepositoryError(f"{entry.graph(precision)} cannot be completed: {error}") from error
        metadata = {prop.key: prop.value for prop in model.metadata_props}
        if metadata.get("weights_sha256") != entry.weights_sha256:
            raise RepositoryError(f"{entry.graph(precision)} is of other weights than its config.pbtxt says")
        helper.set_model_props(model, metadata | {GRAPH_KEY: digest})
        write_atomically(target, model.SerializeToString())


def _checked_weights(repository: Repository) -> WeightFile:
    path = repository.weight_file
    if path is None:
        raise RepositoryError(f"{repository.path} holds no weights to unpack")
    expected = next(iter(repository.models.values())).weights_sha256
    try:
        if sha256_of(path) != expected:
            raise RepositoryError(
                f"{path} is damaged or not the one the models were exported with (its sha256 is another): "
                "fetch it again"
            )
        return read_weights(path)
    except OSError as error:
        raise RepositoryError(f"cannot read {path}: {error.strerror}") from error
    except WeightFileError as error:
        raise RepositoryError(str(error)) from error


def write_atomically(target: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, even after a power cut.

    Raises:
        OSError: it could not be written; nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp's 0600 would shut out a Triton that runs as another user
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sweep(target: Path) -> None:
    """Remove what a killed writer left an hour ago or longer."""
    for path in target.parent.glob(f".{target.name}.*"):
        try:
            if time.time() - path.stat().st_mtime > _LEFTOVER_S:
                path.unlink()
        except OSError:
            continue  # another process was faster


def _refused(path: Path, error: OSError) -> RepositoryError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RepositoryError(f"no room to unpack the model into {path}: {error.strerror}")
    return RepositoryError(
        f"cannot unpack the model into {path}: {error.strerror}. Name a folder that can be written: "
        "alexnet-server unpack DIR, then --model-repository DIR"
    )


def main(arguments: Sequence[str]) -> int:
    """``alexnet-server unpack``: the exit status."""
    parser = argparse.ArgumentParser(
        prog="alexnet-server unpack",
        description="Write complete, single-file 1/model.onnx files, as Triton and the server load them.",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="int8", help="int8 is for CPUs")
    parser.add_argument(
        "folder", metavar="DIR", nargs="?", type=Path, help="a model repository, or a new folder"
    )
    options = parser.parse_args(arguments)
    try:
        repository = _repository_at(options.folder)
        for name, path in unpack(repository, options.precision).items():
            print(f"{name}: {path} ({path.stat().st_size / 1e6:.0f} MB, {options.precision})")  # noqa: T201
    except RepositoryError as error:
        print(f"alexnet-server unpack: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _repository_at(folder: Path | None) -> Repository:
    if folder is None:
        return read_repository(default_repository())
    if not any(folder.glob("*/config.pbtxt")):
        unpacked = shutil.ignore_patterns("model.onnx", ".*")
        try:
            shutil.copytree(default_repository(), folder, dirs_exist_ok=True, ignore=unpacked)
        except (OSError, shutil.Error) as error:
            raise RepositoryError(f"cannot copy the shipped model to {folder}: {error}") from error
    return read_repository(folder)
