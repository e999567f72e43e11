"""From graphs without weights and one weight file to complete ``1/model.onnx`` files.

``alexnet-server unpack`` does it for a repository; the server does it by itself for models that are not there
yet. Beside each complete graph lies ``model.json``, its record: its sha256, its precision, and the sha256 of
the weights and of the graph that it was made of.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alexnet_server import preprocess
from alexnet_server.files import locked, sha256_of, user_cache, write_atomically
from alexnet_server.models.repository import (
    PRECISIONS,
    ModelEntry,
    Repository,
    RepositoryError,
    read_repository,
    readable,
)
from alexnet_server.models.weights import WeightFileError, read_weights

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

_AS_IT_IS = "as it is"
"""For the precision of a model that came complete, without parts to unpack it from."""
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


def default_repository() -> Path:
    """The model that ships: in the installed package, or in the checkout that this file is part of.

    Raises:
        RepositoryError: this installation came without one.
    """
    package = Path(__file__).parents[1]
    for path in (package / "model_repository", package.parents[1] / "model_repository"):
        if path.is_dir():
            return path
    raise RepositoryError("this installation comes without a model: name one with --model-repository")


def unpack(repository: Repository, precision: str) -> dict[str, Path]:
    """Write the complete graph of every model into the repository, and the pixels' code that Triton needs.

    Whatever is there is replaced.

    Raises:
        RepositoryError: weights or graphs are missing or damaged, or the file system refuses.
    """
    targets = {name: entry.onnx for name, entry in repository.models.items()}
    try:
        with locked(repository.path):
            _write(repository, precision, targets)
            write_preprocess(repository.path)
    except OSError as error:
        raise _refused(repository.path, error) from error
    return targets


def write_preprocess(folder: Path) -> None:
    """Put this server's ``preprocess.py`` where Triton's model of that name imports it; OSErrors pass."""
    version = folder / "preprocess" / "1"
    if (version / "model.py").exists():
        write_atomically(version / "preprocess.py", Path(preprocess.__file__).read_bytes())


@readable()
def ensure_unpacked(
    repository: Repository, precisions: Sequence[str], cache: Path | None = None
) -> dict[str, Path]:
    """The complete graph of every model, by its name; what is missing, out of date or damaged is unpacked.

    Args:
        repository: where to look, and to write if it can be written.
        precisions: those that will do. What is missing is unpacked in the first; a repository whose files are
            all of another keeps them, and the first is unpacked to the cache.
        cache: where to write otherwise; the user's cache by default.

    Raises:
        RepositoryError: as ``unpack``.
    """
    wanted = {*precisions, _AS_IT_IS}
    found = _complete(repository)
    if all(found.get(name) in wanted for name in repository.models):
        return {name: entry.onnx for name, entry in repository.models.items()}
    if wanted.issuperset(found.values()):
        try:
            with locked(repository.path):
                return _add(repository, precisions)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise _refused(repository.path, error) from error
    base = cache or user_cache()
    try:
        base.mkdir(parents=True, exist_ok=True)
        with locked(base):
            return _add(repository, precisions, base)
    except OSError as error:
        raise _refused(base, error) from error


def precision_of(graph: Path) -> str:
    """The precision in the record beside a complete graph; empty without a record."""
    return _record(graph).get("precision", "")


def _complete(repository: Repository) -> dict[str, str]:
    """The precision of each complete graph that is whole and up to date, by the model's name."""
    return {name: found for name, entry in repository.models.items() if (found := _precision(entry))}


def _add(repository: Repository, precisions: Sequence[str], cache: Path | None = None) -> dict[str, Path]:
    """Unpack what is missing, into the repository itself or into a cache; OSErrors pass."""
    found, wanted = _complete(repository), {*precisions, _AS_IT_IS}
    files = {name: entry.onnx for name, entry in repository.models.items() if found.get(name) in wanted}
    absent = {}
    for name in repository.models.keys() - files.keys():
        entry = repository.models[name]
        files[name] = entry.onnx if cache is None else _cached(cache, entry, precisions[0])
        if cache is None or not _whole(files[name]):
            absent[name] = files[name]
    for path in absent.values():
        if path.exists():
            log.warning("%s is damaged or out of date", path)
    if absent:
        where = cache or repository.path
        log.info("unpacking %s in %s into %s", ", ".join(sorted(absent)), precisions[0], where)
        _write(repository, precisions[0], absent)
    return files


def _precision(entry: ModelEntry) -> str | None:
    """The complete graph's precision, where it is whole and of the same parts as the repository."""
    if not entry.onnx.exists():
        return None
    record = _record(entry.onnx)
    if not any(entry.graph(precision).exists() for precision in PRECISIONS):
        if record and not _whole(entry.onnx):
            raise RepositoryError(
                f"cannot load {entry.onnx}: it is damaged (its sha256 differs); restore it, or export the "
                "model again"
            )
        return _AS_IT_IS
    graph = entry.graph(record.get("precision", ""))
    if record.get("weights_sha256") != entry.weights_sha256:
        return None
    if graph.exists() and sha256_of(graph) != record.get("graph_sha256"):
        return None
    return record.get("precision") if _whole(entry.onnx) else None


def _whole(path: Path) -> bool:
    """Is the complete graph there, byte for byte as it was written?"""
    return path.exists() and sha256_of(path) == _record(path).get("sha256")


def _record(path: Path) -> dict[str, str]:
    """What ``model.json`` says of the complete graph beside it; nothing when it is not there or broken."""
    try:
        record = json.loads(path.with_suffix(".json").read_bytes())
        return {key: str(value) for key, value in record.items()}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}


def _cached(base: Path, entry: ModelEntry, precision: str) -> Path:
    """The name says what is in it, so that no cached file is ever out of date."""
    return base / hashlib.sha256(_graph(entry, precision)).hexdigest()[:16] / entry.name / "model.onnx"


def _graph(entry: ModelEntry, precision: str) -> bytes:
    try:
        return entry.graph(precision).read_bytes()
    except OSError as error:
        raise RepositoryError(
            f"{entry.graph(precision)} is missing ({error.strerror}): {entry.name} was not exported "
            f"in {precision}"
        ) from error


def _write(repository: Repository, precision: str, targets: Mapping[str, Path]) -> None:
    """Write complete graphs; OSErrors pass."""
    import onnx  # slow to import, and not needed where all is unpacked

    from alexnet_server.models.graphs import Forms, fill

    forms = Forms(_weights(repository))
    for name, target in targets.items():
        entry = repository.models[name]
        data = _graph(entry, precision)
        try:
            model = fill(onnx.load_model_from_string(data), forms)
        except Exception as error:  # protobuf's DecodeError is no stable name
            raise RepositoryError(f"{entry.graph(precision)} cannot be completed: {error}") from error
        metadata = {prop.key: prop.value for prop in model.metadata_props}
        if metadata.get("weights_sha256") != entry.weights_sha256:
            raise RepositoryError(
                f"{entry.graph(precision)} belongs to other weights than its config.pbtxt says"
            )
        write_model(target, model, hashlib.sha256(data).hexdigest())


def write_model(target: Path, model: onnx.ModelProto, graph_sha256: str | None = None) -> None:
    """Write a complete graph and its record; OSErrors pass.

    Args:
        target: ``1/model.onnx``.
        model: with ``precision`` and ``weights_sha256`` among its metadata.
        graph_sha256: of the graph without weights, where it was made of one.
    """
    data = model.SerializeToString()
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    record = {key: text for key, text in metadata.items() if key in ("precision", "weights_sha256")}
    record |= {"graph_sha256": graph_sha256} if graph_sha256 else {}
    record["sha256"] = hashlib.sha256(data).hexdigest()
    write_atomically(target, data)
    write_atomically(target.with_suffix(".json"), json.dumps(record, indent=2).encode() + b"\n")


def _weights(repository: Repository) -> Mapping[str, NDArray[np.float32]]:
    if repository.weight_file is None:
        raise RepositoryError(f"{repository.path} has no weights to unpack")
    try:
        return read_weights(repository.weight_file, next(iter(repository.models.values())).weights_sha256)
    except WeightFileError as error:
        raise RepositoryError(str(error)) from error


def _refused(path: Path, error: OSError) -> RepositoryError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RepositoryError(f"no room to unpack the model into {path}: {error.strerror}")
    return RepositoryError(
        f"cannot unpack the model into {path}: {error.strerror}. Choose a folder that can be written: "
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
        unpacked = shutil.ignore_patterns("model.onnx", "model.json", "preprocess.py", "__pycache__", ".*")
        try:
            shutil.copytree(default_repository(), folder, dirs_exist_ok=True, ignore=unpacked)
        except (OSError, shutil.Error) as error:
            raise RepositoryError(f"cannot copy the shipped model to {folder}: {error}") from error
    return read_repository(folder)
