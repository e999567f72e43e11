"""Reading a model repository: Triton's folders, checked against one another before anything is loaded.

Every folder whose config.pbtxt carries our ``parameters`` is one of ours; others (Triton ensembles, backends'
models) are left alone. Beside the models lie the one copy of the weights and the model card;
model_repository's README describes the layout.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_server.preprocess import PREPROCESS_VERSION

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

VIEWS = ("center", "ten", "dense")
PRECISIONS = ("int8", "fp16", "fp32")
CARD = "card.json"


class RepositoryError(ValueError):
    """A model repository that cannot be served; one line saying what is wrong and how to fix it."""


@dataclass(frozen=True)
class ModelEntry:
    """One model of a repository, as its folder, its config.pbtxt and the card describe it."""

    name: str
    folder: Path
    view: str
    """``center``, ``ten`` or ``dense``."""
    labels: tuple[tuple[str, str], ...]
    """(WordNet id, words) in output order."""
    max_batch_size: int
    features: int
    """Length of a row of ``features``."""
    preprocess_version: str
    weights: str
    """The name of the weights."""
    weights_sha256: str
    labels_sha256: str
    card: Mapping[str, Any]
    """What the card says of this model: accuracy, golden photo, temperature. Empty without a card."""

    @property
    def onnx(self) -> Path:
        """Where the complete graph is, or will be once unpacked."""
        return self.folder / "1" / "model.onnx"

    @property
    def golden(self) -> tuple[str, int, float] | None:
        """File, best index and its score of the golden photo, in fp32."""
        golden = self.card.get("golden")
        return (golden["file"], golden["index"], golden["score"]) if golden else None

    def graph(self, precision: str) -> Path:
        """The graph without weights."""
        return self.folder / f"graph.{precision}.onnx"


@dataclass(frozen=True)
class Repository:
    """A model repository: its models by name, its card, and the weight file if it has one."""

    path: Path
    models: Mapping[str, ModelEntry]
    card: Mapping[str, Any]
    weight_file: Path | None


@contextmanager
def readable() -> Iterator[None]:
    """Whatever the file system refuses, as a RepositoryError that names the file.

    Raises:
        RepositoryError: a file or folder may not be read, or its disk fails.
    """
    try:
        yield
    except OSError as error:
        hint = (
            " (give read permission to the user that the server runs as)"
            if isinstance(error, PermissionError)
            else ""
        )
        raise RepositoryError(f"cannot read {error.filename}: {error.strerror}{hint}") from error


@readable()
def read_repository(path: Path) -> Repository:
    """Read and check a repository.

    Raises:
        RepositoryError: there is none, it cannot be read, or a model's parts contradict one another or this
            server.
    """
    if not path.is_dir():
        raise RepositoryError(f"{path} is not a model repository: there is no such folder")
    card = _read_card(path / CARD)
    for name in card.get("models", {}):
        # A folder that was taken away on purpose is one thing, half a model another.
        if (path / name).is_dir() and not (path / name / "config.pbtxt").exists():
            raise RepositoryError(
                f"{path / name} has no config.pbtxt: restore it, export the model again, or remove the folder"
            )
    models = {}
    for config_file in sorted(path.glob("*/config.pbtxt")):
        config = read_config(config_file)
        if "preprocess_version" in config.parameters:
            entry = _entry(config_file.parent, config, card)
            models[entry.name] = entry
    if not models:
        raise RepositoryError(f"{path} contains no model: alexnet-train export and import write them")
    weights = {entry.weights_sha256 for entry in models.values()}
    named = (card.get("weights") or {}).get("file")
    weight_file = path / named if named else None
    if weight_file is not None and len(weights) > 1:
        raise RepositoryError(f"{path}: models of different weights share {named}; export them together")
    return Repository(path, models, card, weight_file)


def read_config(path: Path) -> ModelConfig:
    """A config.pbtxt as Triton's own message.

    Raises:
        OSError: it cannot be read.
        RepositoryError: it is malformed.
    """
    # Not at the top: exporting writes configs where no tritonclient is installed.
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(f"cannot read {path}: {error}") from error


def _read_card(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        card: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return card
    except ValueError as error:
        raise RepositoryError(f"cannot read the model card {path}: {error}") from error


def _entry(folder: Path, config: ModelConfig, card: Mapping[str, Any]) -> ModelEntry:
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    missing = {"views", "weights", "weights_sha256", "labels_sha256"} - set(parameters)
    if missing:
        raise RepositoryError(f"{folder}/config.pbtxt lacks the parameters {', '.join(sorted(missing))}")
    if config.name not in ("", folder.name):
        raise RepositoryError(f"{folder}/config.pbtxt must name the model as its folder, not {config.name!r}")
    if parameters["preprocess_version"] != PREPROCESS_VERSION:
        raise RepositoryError(
            f"{folder.name} needs the pixels of preprocessing {parameters['preprocess_version']}, "
            f"but this server makes those of {PREPROCESS_VERSION}: export the model again, or install the "
            "release that it came with"
        )
    if parameters["views"] not in VIEWS:
        raise RepositoryError(
            f"{folder.name}: views {parameters['views']!r} is not one of {', '.join(VIEWS)}"
        )
    if config.max_batch_size < 1:
        raise RepositoryError(f"{folder}/config.pbtxt needs a max_batch_size of at least 1")
    labels = _labels(folder / "labels.txt", parameters["labels_sha256"])
    sizes = {output.name: list(output.dims) for output in config.output}
    if sizes.get("probabilities") != [len(labels)] or len(sizes.get("features", [])) != 1:
        raise RepositoryError(
            f"{folder}/config.pbtxt declares outputs {sizes}; expected probabilities [{len(labels)}], one "
            "for each line of labels.txt, and features"
        )
    return ModelEntry(
        name=folder.name,
        folder=folder,
        view=parameters["views"],
        labels=labels,
        max_batch_size=config.max_batch_size,
        features=sizes["features"][0],
        preprocess_version=parameters["preprocess_version"],
        weights=parameters["weights"],
        weights_sha256=parameters["weights_sha256"],
        labels_sha256=parameters["labels_sha256"],
        card=card.get("models", {}).get(folder.name, {}),
    )


def _labels(path: Path, sha256: str) -> tuple[tuple[str, str], ...]:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise RepositoryError(f"there is no {path}: restore it, or export the model again") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RepositoryError(
            f"{path} is not the one that the model was exported with (its sha256 differs): "
            "restore it, or export the model again"
        )
    labels = []
    for number, line in enumerate(data.decode().splitlines(), 1):
        wnid, tab, words = line.partition("\t")
        if not (wnid and tab and words):
            raise RepositoryError(f"{path}, line {number}: expected WordNet id, tab, words")
        labels.append((wnid, words))
    return tuple(labels)
