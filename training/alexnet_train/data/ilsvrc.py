"""The ILSVRC-2012 and -2010 downloads as they come: tar files beside the development kit.

Images are read straight out of the tar files (training: one tar a class inside the big one), which are never
unpacked. Classes stand in sorted WordNet id order, as in ImageFolder and torchvision; the kit numbers them in
another order, and only validation labels are given by its numbers.
"""

from __future__ import annotations

import io
import os
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from alexnet_train.data.dataset import DatasetError
from alexnet_train.data.item import Item


@dataclass(frozen=True)
class _Place:
    """Where an image lies inside a tar file."""

    offset: int
    size: int
    label: int
    name: str


def is_ilsvrc(folder: Path) -> bool:
    """Whether ``folder`` holds the challenge's tar files."""
    return any(folder.glob("ILSVRC*_im*.tar"))


class Ilsvrc:
    """A split of a folder with the challenge's files, under their original names.

    Args:
        folder: holds ``ILSVRC2012_img_train.tar``, ``ILSVRC2012_img_val.tar`` and
            ``ILSVRC2012_devkit_t12.tar.gz`` (2010: ``ILSVRC2010_images_train.tar``,
            ``ILSVRC2010_images_val.tar``, ``ILSVRC2010_devkit-1.0.tar.gz``).
        split: ``train``, ``validation``, or the ``test`` of 2010, whose labels were published
            (``ILSVRC2010_test_ground_truth.txt``; Table 1 of the paper is of it).

    Raises:
        DatasetError: a file is missing, cut short, or at odds with the development kit.
    """

    def __init__(self, folder: Path, split: str) -> None:
        part = {"train": "train", "validation": "val", "test": "test"}.get(split)
        if part is None:
            raise DatasetError(f"{folder}: split {split!r}; the challenge has train, validation and test")
        self.kit = _Kit(_one(folder, "ILSVRC*devkit*.t*gz", "development kit"))
        self.classes = [(wnid, self.kit.words[wnid]) for wnid in sorted(self.kit.words)]
        self.tar = _one(folder, f"ILSVRC*_im*_{part}.tar", f"{split} images")
        label_of = {wnid: label for label, (wnid, _) in enumerate(self.classes)}
        try:
            if split == "train":
                self.places = self._train(label_of)
            else:
                self.places = self._numbered(label_of, self._truth(folder, split))
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DatasetError(f"{self.tar}: not a complete tar file ({error}); download it again") from error
        # Shuffled once, as the 2012 code did when it wrote its batches: neighbours share a crop there.
        random.Random(2012).shuffle(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def items(self, start: int) -> Iterator[Item]:
        """Images in the shuffled order, from number ``start`` on."""
        with self.tar.open("rb") as file:
            for place in self.places[start:]:
                yield Item(os.pread(file.fileno(), place.size, place.offset), place.label, place.name)

    def order(self) -> None:
        """The places are shuffled already."""

    def _train(self, label_of: dict[str, int]) -> list[_Place]:
        """Every image of every class' tar; headers are read, images skipped."""
        places: list[_Place] = []
        with tarfile.open(self.tar) as outer:
            members = [member for member in outer if member.isfile()]
            found = {Path(member.name).stem for member in members}
            if found != set(label_of):
                raise DatasetError(
                    f"{self.tar}: its classes are not the development kit's "
                    f"({len(found - set(label_of))} unknown, {len(set(label_of) - found)} missing); "
                    "take both from the same year"
                )
            for member in tqdm(members, desc="reading headers", unit="class", mininterval=1):
                inside = outer.extractfile(member)
                assert inside is not None
                before, wnid = len(places), Path(member.name).stem
                with inside, tarfile.open(fileobj=inside, mode="r:") as inner:
                    for image in inner:
                        if image.isfile():
                            offset = member.offset_data + image.offset_data
                            places.append(_Place(offset, image.size, label_of[wnid], image.name))
                if len(places) == before:
                    raise DatasetError(f"{self.tar}: class {wnid} is empty; download it again")
        self._check_end(places)
        return places

    def _truth(self, folder: Path, split: str) -> list[int]:
        """The kit's class numbers of the images in name order; those of the test come beside the kit."""
        if split == "validation":
            return self.kit.ground_truth
        path = _one(folder, "ILSVRC*test_ground_truth.txt", "test labels")
        truth = [int(line) for line in path.read_text().split()]
        self.kit.check(truth, str(path))
        return truth

    def _numbered(self, label_of: dict[str, int], truth: list[int]) -> list[_Place]:
        """Images in name order, whose labels are listed by the kit's own class numbers."""
        with tarfile.open(self.tar) as tar:
            members = sorted((m for m in tar if m.isfile()), key=lambda member: member.name)
        if len(members) != len(truth):
            raise DatasetError(
                f"{self.tar}: {len(members)} images, and {len(truth)} labels in {self.kit.path}; "
                "download the shorter one again"
            )
        places = [
            _Place(
                member.offset_data, member.size, label_of[self.kit.wnid_of(number)], Path(member.name).name
            )
            for member, number in zip(members, truth, strict=True)
        ]
        self._check_end(places)
        return places

    def _check_end(self, places: list[_Place]) -> None:
        size = self.tar.stat().st_size
        cut = [place.name for place in places if place.offset + place.size > size]
        if cut:
            raise DatasetError(f"{self.tar}: ends inside {cut[0]}; download it again")


class _Kit:
    """What the development kit says: class numbers, WordNet ids, words, validation labels."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.words: dict[str, str] = {}
        self._wnids: dict[int, str] = {}
        self.ground_truth: list[int] = []
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    name = Path(member.name).name
                    inside = tar.extractfile(member) if member.isfile() else None
                    if inside is not None and name == "meta.mat":
                        self._read_classes(inside.read())
                    elif inside is not None and name.endswith("validation_ground_truth.txt"):
                        self.ground_truth = [int(line) for line in inside.read().split()]
        except Exception as error:  # loadmat raises a dozen kinds for a damaged file
            raise DatasetError(
                f"{path}: not a readable development kit ({error}); download it again"
            ) from error
        if not self.words or not self.ground_truth:
            raise DatasetError(
                f"{path}: no meta.mat or no validation_ground_truth.txt in it; download it again"
            )
        self.check(self.ground_truth, f"{path}: validation")

    def check(self, numbers: list[int], what: str) -> None:
        """Raise ``DatasetError`` unless all are class numbers of the kit."""
        if wrong := set(numbers) - set(self._wnids):
            raise DatasetError(f"{what} labels {sorted(wrong)[:5]} are not classes in meta.mat")

    def wnid_of(self, number: int) -> str:
        """The WordNet id of the kit's class ``number`` (from 1)."""
        return self._wnids[number]

    def _read_classes(self, data: bytes) -> None:
        """Leaf synsets of ``meta.mat``; inner nodes of the hierarchy have children and are no classes."""
        from scipy.io import loadmat

        synsets: Any = loadmat(io.BytesIO(data), squeeze_me=True, struct_as_record=False)["synsets"]
        for synset in synsets:
            if int(synset.num_children) == 0:
                number = int(getattr(synset, "ILSVRC2012_ID", 0) or getattr(synset, "ILSVRC2010_ID", 0))
                self._wnids[number] = str(synset.WNID)
                self.words[str(synset.WNID)] = str(synset.words)


def _one(folder: Path, pattern: str, what: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DatasetError(
            f"{folder}: {len(found)} files called {pattern} for the {what}; put exactly one year's there"
        )
    return found[0]
