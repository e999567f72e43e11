"""Every model and precision of a model repository over a labelled set, and into the model card.

alexnet-train evaluate --repository model_repository --data data/tiny/validation --name validation --record
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet_server.engines import Outputs
from alexnet_server.engines.onnx import OnnxEngine
from alexnet_server.loading import describe
from alexnet_server.machine import usable_cores
from alexnet_server.models.export.card import readme
from alexnet_server.models.repository import ModelEntry, Repository, RepositoryError, read_repository
from alexnet_server.models.unpack import ensure_unpacked
from alexnet_server.preprocess import prepare
from alexnet_train.data.dataset import DatasetError, Split, with_labels_of
from alexnet_train.evaluate.accuracy import Evaluation, draw_confusion, evaluate


def open_photos(folder: Path) -> Split:
    """A folder of photos with ``labels.tsv`` (file, index, WordNet id, words), prepared as the server does.

    Raises:
        DatasetError: the table is missing or malformed.
    """
    try:
        rows = [line.split("\t") for line in (folder / "labels.tsv").read_text().splitlines() if line]
        table = [(name, int(index)) for name, index, *_ in rows]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder}/labels.tsv: expected file, index, ... a line ({error})") from error
    images = np.stack([prepare((folder / name).read_bytes()) for name, _ in table])
    return Split(images, np.array([index for _, index in table]), [], None)


def evaluate_repository(
    path: Path,
    split: Split,
    name: str,
    *,
    models: Sequence[str] | None,
    precisions: Sequence[str] | None,
    out: Path | None,
    record: bool,
) -> Iterator[dict[str, Any]]:
    """One row of figures for each model and precision, as the card keeps them.

    Args:
        path: the model repository.
        split: labelled images.
        name: what the card calls them.
        models: their names; all by default.
        precisions: unpacked one after another; all but fp16, which is for GPUs, by default.
        out: folder for ``<model>-<precision>.tsv`` (classes) and ``.png`` (confusion).
        record: replace the card's rows of this set, for the views and precisions that are measured.
    """
    rows = []
    written = read_repository(path).card.get("precisions", ["fp32"])
    for precision in precisions or [one for one in ("int8", "fp32") if one in written]:
        repository = read_repository(path)
        files = ensure_unpacked(repository, (precision,))
        for entry in chosen(repository, models):
            own = with_labels_of(split, entry.labels, entry.name)
            result = evaluate(EngineInfer(repository, entry, files[entry.name]), own)
            rows.append({"set": name, "views": entry.view, "precision": precision, **result.summary()})
            if out is not None:
                _write_tables(result, own, entry, out / f"{entry.name}-{precision}")
            yield rows[-1]
    if record:
        _record(path, rows)


def chosen(repository: Repository, models: Sequence[str] | None) -> list[ModelEntry]:
    """The models of these names, or all in the order of their names.

    Raises:
        RepositoryError: the repository has no model of that name.
    """
    known = sorted(repository.models)
    for name in models or ():
        if name not in known:
            raise RepositoryError(f"{repository.path} has no model {name!r}; there are {', '.join(known)}")
    return [repository.models[name] for name in models or known]


class EngineInfer:
    """One model of a repository in the server's engine, any number of images at a time."""

    def __init__(self, repository: Repository, entry: ModelEntry, file: Path) -> None:
        self.name = entry.name
        self.engine = OnnxEngine(
            [describe(repository, entry, file)], {entry.name: file}, threads=usable_cores()
        )
        self.largest = entry.max_batch_size

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, 256, 256, 3) to probabilities (N, classes), at most the model's largest batch at once."""
        return np.concatenate([part.probabilities for part in self._outputs(images, features=False)])

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The same to features (N, hidden), fc7 of the centre view."""
        found = [part.features for part in self._outputs(images, features=True)]
        return np.concatenate([values for values in found if values is not None])

    def _outputs(self, images: NDArray[np.uint8], *, features: bool) -> list[Outputs]:
        parts = [images[i : i + self.largest] for i in range(0, len(images), self.largest)]
        return [self.engine.infer(self.name, part, features=features) for part in parts]


def _write_tables(result: Evaluation, split: Split, entry: ModelEntry, stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    classes = split.classes or list(entry.labels)
    rows = result.per_class(classes)
    lines = ["\t".join(rows[0])] if rows else []
    lines += ["\t".join(str(value) for value in row.values()) for row in rows]
    stem.with_suffix(".tsv").write_text("\n".join(lines) + "\n")
    draw_confusion(result.confusion(), stem.with_suffix(".png"))


def _record(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Put the rows into card.json, in place of those of the same measurement, and write the page anew."""
    card = json.loads((path / "card.json").read_text())
    measured = {(row["set"], row["views"], row["precision"]): row for row in (*card["accuracy"], *rows)}
    card["accuracy"] = list(measured.values())
    for model in card["models"].values():
        model["accuracy"] = [row for row in card["accuracy"] if row["views"] == model["views"]]
    (path / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (path / "README.md").write_text(readme(card), encoding="utf-8")
