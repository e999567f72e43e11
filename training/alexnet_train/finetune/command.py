"""``alexnet-train finetune``: from photos to a served model in one command, without torch."""

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
from alexnet_train.finetune.learn import Fit, HeldOut, choose, folds
from alexnet_train.finetune.photos import ClassFolders, Photo, check_counts, check_validation, read_folders
from alexnet_train.finetune.report import Report
from alexnet_train.finetune.repository import Finetuned, check_target, write
from alexnet_train.finetune.views import VIEWS, features


@dataclass(frozen=True)
class Examples:
    """Photos that were decoded, (N, 6, hidden) float32 features of their views, (N,) labels."""

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
    seed: int = 2012,
) -> None:
    """Learn the classes of a folder of class folders and write a model repository that serves them.

    Args:
        photos: ``photos/<class>/<photos>``.
        repository: where to; a repository there is replaced.
        validation: photos laid out alike, which judge; by default each fifth of ``photos`` does in turn.
        start: a model repository, or a name that ``import`` knows; the shipped one by default.
        seed: of the zooms and of the fifths.

    Raises:
        FinetuneError: the photos or the start will not do.
        ExportError: the repository cannot be written, or does not compute what was learned.
    """
    folders = read_folders(photos, _warn)
    check_counts(folders, folders.photos, lambda _: None)
    judged = None
    if validation is not None:
        judged = read_folders(validation, _warn)
        check_validation(folders, judged)
    base = Base(start)
    check_target(base, repository)
    infer = base.infer()
    own = _examples(infer, folders, seed, "photos")
    check_counts(folders, own.photos, _warn)
    other = _examples(infer, judged, seed, "validation") if judged is not None else None
    seen = own if other is None else own.joined(other)
    fit = Fit(seen.features, seen.labels, len(folders.classes))
    learned = np.arange(len(own.labels))
    judging = np.arange(len(own.labels), len(seen.labels))
    held = choose(fit, folds(own.labels, seed) if other is None else [(learned, judging)])
    head = fit.head(fit.solve(learned, held.penalty))
    average = held.temperature(VIEWS)
    temperatures = {"center": held.temperature(1), "ten": average, "dense": average}
    report = Report.of(folders.classes, seen.photos, held, temperatures["center"])
    told = _told(folders, own, base, held, judged)
    write(Finetuned(base, folders.classes, head, temperatures, told, report), repository)
    for line in (
        report.accuracy_line(),
        report.confusion_line(),
        f"serve it: alexnet-server --model-repository {shlex.quote(str(repository))}",
    ):
        print(line)  # noqa: T201 - the command's own output


def _examples(infer: EngineInfer, folders: ClassFolders, seed: int, what: str) -> Examples:
    kept, values = features(infer, folders.photos, seed, _warn, what)
    return Examples(kept, values, np.array([photo.label for photo in kept], np.int64))


def _told(
    folders: ClassFolders, own: Examples, base: Base, held: HeldOut, judged: ClassFolders | None
) -> dict[str, Any]:
    """What the card says in words."""
    name, card = base.centre.weights, base.repository.card
    counts = Counter(own.labels.tolist()).values()
    names = ", ".join(folders.names()[:10]) + (", ..." if len(folders.classes) > 10 else "")
    judges = "each fifth in turn, held out from what was learned"
    if judged is not None:
        judges = f"{len(held.photos)} photos of another folder"
    elif len(held.photos) < len(own.photos):
        judges = "a fifth of them, held out from what was learned"
    return {
        "summary": f"{len(folders.classes)} classes ({names}) told apart by a new last layer (fc8) on the "
        f"frozen network `{name}`.",
        "data": f"{len(own.photos)} photos, {min(counts)} to {max(counts)} per class, from the folder "
        f"`{folders.path.resolve().name}`; judged on {judges}.",
        "recipe": f"`alexnet-train finetune`: multinomial logistic regression (L-BFGS) on fc7 of {VIEWS} "
        f"views per photo in {base.precision} (the photo, two zooms of 70-100 %, mirrored too), L2 penalty "
        f"{held.penalty:.1e} and temperatures from held-out photos, then fitted to all. The accuracy is that "
        "of the fits that had not seen the photos.",
        "licence": f"That of the photos, and that of `{name}`: {card.get('licence', 'not known')}",
        "limits": [
            f"It knows {len(folders.classes)} classes and always answers with one of them.",
            f"Everything but fc8 was learned elsewhere; what limits `{name}` limits it too.",
        ],
        "source": f"`{name}` (weights {base.centre.weights_sha256})"
        + (f"; {card['source']}" if card.get("source") else ""),
    }


def _warn(line: str) -> None:
    tqdm.write(f"warning: {line}", file=sys.stderr)  # not into the middle of a progress bar
