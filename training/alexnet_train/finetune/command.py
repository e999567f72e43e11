"""``alexnet-train finetune``: from photos to a served model in one command, and fc8 without torch."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from alexnet_train.evaluate.repository import EngineInfer
from alexnet_train.finetune.base import Base
from alexnet_train.finetune.calibrate import Calibration, calibrate
from alexnet_train.finetune.errors import FinetuneError
from alexnet_train.finetune.layers import Learned, Lesson, check_torch, learn_fc7, learn_fc8, variant_of
from alexnet_train.finetune.learn import folds
from alexnet_train.finetune.photos import ClassFolders, Photo, check_counts, check_validation, read_folders
from alexnet_train.finetune.report import Report
from alexnet_train.finetune.repository import Finetuned, check_target, write
from alexnet_train.finetune.views import VIEWS, features


@dataclass(frozen=True)
class Examples:
    """Photos that were decoded, (N, 6, hidden) float32 features of their views, (N,) labels.

    Where fc7 is trained, its inputs come before the features: (N, 6, 2 x hidden).
    """

    photos: list[Photo]
    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def joined(self, other: Examples) -> Examples:
        """These and others."""
        return Examples(
            self.photos + other.photos,
            np.concatenate([self.features, other.features]),
            np.concatenate([self.labels, other.labels]),
        )


def finetune(
    photos: Path,
    repository: Path,
    *,
    validation: Path | None = None,
    start: str | None = None,
    layers: str = "fc8",
    seed: int = 2012,
) -> None:
    """Learn the classes of a folder of class folders and write a model repository that serves them.

    Args:
        photos: ``photos/<class>/<photos>``.
        repository: where to; a repository there is replaced.
        validation: photos laid out alike, which judge; by default each fifth of ``photos`` does in turn.
        start: a model repository, or a name that ``import`` knows; the shipped one by default.
        layers: the first that is learned: ``fc8``, or where that is better ``fc7`` or ``conv4``.
        seed: of the zooms, of the fifths and of training layers before fc8.

    Raises:
        FinetuneError: the photos or the start will not do, or PyTorch is missing.
        ExportError: the repository cannot be written, or does not compute what was learned.
    """
    if layers != "fc8":
        check_torch("--deep" if layers == "conv4" else f"--layers {layers}")
    folders, judged = _folders(photos, validation)
    base = Base(start)
    if layers == "conv4":
        variant_of(base)
    check_target(base, repository)
    calibration = calibrate(base, folders.photos, seed)
    infer = base.infer(calibration.ranges, inputs_of="fc7" if layers == "fc7" else None)
    own = _examples(infer, folders, seed, "photos")
    check_counts(folders, own.photos, _warn)
    other = _examples(infer, judged, seed, "validation") if judged is not None else None
    if other is not None and not other.photos:
        raise FinetuneError(f"{validation} holds no photo that can be read")
    seen = own if other is None else own.joined(other)
    learned = _learned(base, layers, seen, len(folders.classes), len(own.labels), seed)
    average = learned.held.temperature(VIEWS)
    temperatures = {"center": learned.held.temperature(1), "ten": average, "dense": average}
    report = Report.of(folders.classes, seen.photos, learned.held, temperatures["center"])
    told = _told(folders, own, base, learned, judged, calibration)
    ranges = {**calibration.ranges, **learned.ranges}
    write(Finetuned(base, folders.classes, learned.tensors, ranges, temperatures, told, report), repository)
    for line in (
        learned.told,
        calibration.told,
        report.accuracy_line(),
        report.confusion_line(),
        f"serve it: alexnet-server --model-repository {shlex.quote(str(repository))}",
    ):
        if line:
            print(line)  # noqa: T201 - the command's own output


def _folders(photos: Path, validation: Path | None) -> tuple[ClassFolders, ClassFolders | None]:
    folders = read_folders(photos, _warn)
    check_counts(folders, folders.photos, lambda _: None)
    if validation is None:
        return folders, None
    judged = read_folders(validation, _warn)
    check_validation(folders, judged)
    return folders, judged


def _examples(infer: EngineInfer, folders: ClassFolders, seed: int, what: str) -> Examples:
    kept, values = features(infer, folders.photos, seed, _warn, what)
    return Examples(kept, values, np.array([photo.label for photo in kept], np.int64))


def _learned(base: Base, layers: str, seen: Examples, classes: int, count: int, seed: int) -> Learned:
    """The first ``count`` examples are learned from; the others judge, or each fifth where there are none."""
    own, others = np.arange(count), np.arange(count, len(seen.labels))
    splits = [(own, others)] if len(others) else folds(seen.labels, seed)
    if layers == "fc8":
        return learn_fc8(Lesson(seen.features, seen.labels, classes, own, splits))
    if layers == "conv4":
        from alexnet_train.finetune.deep import learn_deep

        return learn_deep(Lesson(seen.features, seen.labels, classes, own, splits), base, seen.photos, seed)
    inputs, features = np.split(seen.features, 2, axis=-1)
    lesson = Lesson(features, seen.labels, classes, own, splits)
    return learn_fc7(lesson, inputs, base.tensors("fc7"), seed)


def _told(
    folders: ClassFolders,
    own: Examples,
    base: Base,
    learned: Learned,
    judged: ClassFolders | None,
    calibration: Calibration,
) -> dict[str, Any]:
    """What the card says in words."""
    name, card = base.centre.weights, base.repository.card
    counts = Counter(own.labels.tolist()).values()
    names = ", ".join(folders.names()[:10]) + (", ..." if len(folders.classes) > 10 else "")
    held = learned.held
    judges = "each fifth in turn, held out from what was learned"
    if judged is not None:
        judges = f"{len(held.photos)} photos of another folder"
    elif len(held.photos) < len(own.photos):
        judges = "a fifth of them, held out from what was learned"
    return {
        "summary": f"{len(folders.classes)} classes ({names}) told apart by {learned.names}, learned anew on "
        f"the frozen rest of `{name}`.",
        "data": f"{len(own.photos)} photos, {min(counts)} to {max(counts)} per class, from the folder "
        f"`{folders.path.resolve().name}`; judged on {judges}.",
        "recipe": f"`alexnet-train finetune`: multinomial logistic regression (L-BFGS) on fc7 of {VIEWS} "
        f"views per photo in {base.precision} (the photo, two zooms of 70-100 %, mirrored too), L2 penalty "
        f"{held.penalty:.1e} and temperatures from held-out photos, then fitted to all. The accuracy is that "
        "of the fits that had not seen the photos."
        + "".join(f" {line[0].upper()}{line[1:]}." for line in (learned.told, calibration.told) if line),
        "licence": f"That of the photos, and that of `{name}`: {card.get('licence', 'not known')}",
        "limits": [
            f"It knows {len(folders.classes)} classes and always answers with one of them.",
            f"Everything but {learned.names} was learned elsewhere; what limits `{name}` limits it too.",
        ],
        "source": f"`{name}` (weights {base.centre.weights_sha256})"
        + (f"; {card['source']}" if card.get("source") else ""),
    }


def _warn(line: str) -> None:
    tqdm.write(f"warning: {line}", file=sys.stderr)  # not into the middle of a progress bar
