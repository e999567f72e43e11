"""A folder of class folders: its classes, its photos, and one line for each thing people do wrong with it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alexnet_train.finetune.errors import FinetuneError

FEWEST = 5
"""Photos of a class; one fifth of them is held out."""
FEW = 15
"""Photos of a class below which a warning is due."""
Warn = Callable[[str], None]


@dataclass(frozen=True)
class Photo:
    """A file, the index of its class, and the sha256 of its content."""

    path: Path
    label: int
    digest: bytes


@dataclass(frozen=True)
class ClassFolders:
    """Classes (label, words) in the sorted order of their folders' names, and their photos."""

    path: Path
    classes: tuple[tuple[str, str], ...]
    photos: Sequence[Photo]

    def names(self) -> list[str]:
        """The folders' names."""
        return [name for name, _ in self.classes]


def read_folders(folder: Path, warn: Warn) -> ClassFolders:
    """List and hash the photos of every class folder; hidden files and folders are skipped.

    A photo that is twice in one class counts once. ``labels.tsv``, where there is one, gives the words: the
    folder's name and the words are the last two columns of its lines.

    Args:
        folder: ``folder/<class>/<photos>``.
        warn: takes a line for what may be meant, but is worth knowing.

    Raises:
        FinetuneError: fewer than two classes, an empty one, a folder inside a class folder, a name that
            labels cannot hold, or a photo in two classes.
        OSError: something cannot be read.
    """
    folders = sorted((path for path in _visible(folder) if path.is_dir()), key=lambda path: path.name)
    if len(folders) < 2:
        found = f"only {folders[0].name!r}" if folders else "none"
        raise FinetuneError(
            f"{folder}: at least two classes are needed, and it holds {found}: one folder of photos each"
        )
    words = _words(folder / "labels.tsv")
    photos: list[Photo] = []
    for label, own in enumerate(folders):
        photos += _class_photos(own, label, warn)
    _refuse_doubles(photos)
    classes = tuple((own.name, words.get(own.name, own.name)) for own in folders)
    loose = [path.name for path in _visible(folder) if path.is_file() and path.name != "labels.tsv"]
    if loose:
        warn(f"{folder}: files beside the class folders belong to no class ({len(loose)}, first {loose[0]})")
    return ClassFolders(folder, classes, photos)


def check_counts(folders: ClassFolders, photos: Iterable[Photo], warn: Warn) -> None:
    """Are there enough photos of every class?

    Raises:
        FinetuneError: fewer than five of one.
    """
    counts = Counter(photo.label for photo in photos)
    for label, name in enumerate(folders.names()):
        count = counts[label]
        if count < FEWEST:
            raise FinetuneError(
                f"{folders.path / name}: {count} readable photos are too few; {FEWEST} are the minimum "
                "and 30 a good start"
            )
        if count < FEW:
            warn(f"{folders.path / name}: {count} photos are few; {FEW} or more make it more reliable")


def check_validation(folders: ClassFolders, validation: ClassFolders) -> None:
    """Does a validation folder hold other photos of the same classes?

    Raises:
        FinetuneError: it does not.
    """
    if odd := sorted(set(folders.names()) ^ set(validation.names())):
        raise FinetuneError(
            f"{validation.path} must hold the same class folders as {folders.path}: "
            f"{odd[0]!r} is only in one of them"
        )
    known = {photo.digest: photo for photo in folders.photos}
    for photo in validation.photos:
        if photo.digest in known:
            raise FinetuneError(
                f"{known[photo.digest].path} and {photo.path} are the same photo: "
                "a photo cannot both train and validate; remove one"
            )


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _class_photos(folder: Path, label: int, warn: Warn) -> list[Photo]:
    name = folder.name
    if "\t" in name or len(name.splitlines()) != 1 or not name.isprintable():
        raise FinetuneError(f"{folder.parent}: rename the class folder {name!r} to printable characters")
    photos: dict[bytes, Photo] = {}
    doubles = 0
    for path in _visible(folder):
        if path.is_dir():
            raise FinetuneError(
                f"{path} is a folder inside the class {name!r}: move its photos into {name!r}, or the folder "
                "beside it as a class of its own"
            )
        digest = hashlib.sha256(path.read_bytes()).digest()
        doubles += digest in photos
        photos.setdefault(digest, Photo(path, label, digest))
    if not photos:
        raise FinetuneError(f"{folder} is empty: put photos of {name!r} into it, or remove it")
    if doubles:
        warn(f"{folder}: photos that occur more than once count only once ({doubles} copies)")
    return list(photos.values())


def _refuse_doubles(photos: Sequence[Photo]) -> None:
    known: dict[bytes, Photo] = {}
    for photo in photos:
        other = known.setdefault(photo.digest, photo)
        if other.label != photo.label:
            raise FinetuneError(
                f"{other.path} and {photo.path} are the same photo in two classes: leave it in one"
            )


def _words(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    words = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        columns = line.split("\t")
        if len(columns) < 2 or not columns[-1]:
            raise FinetuneError(f"{path}, line {number}: expected the class folder's name, a tab, words")
        words[columns[-2]] = columns[-1]
    return words
