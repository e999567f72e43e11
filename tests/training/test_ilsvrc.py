"""The challenge's tar files, made small: three classes whose kit numbers are not their sorted order."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from alexnet_server.preprocess import prepare as prepare_photo
from alexnet_train.data.dataset import DatasetError, open_split
from alexnet_train.data.prepare import prepare
from alexnet_train.data.sources import open_source

KIT_ORDER = ["n03", "n01", "n02"]
"""ILSVRC2012_ID 1, 2, 3."""


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (270, 300, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def meta(year: int) -> bytes:
    names = [f"ILSVRC{year}_ID", "WNID", "words", "num_children"]
    rows = [(i + 1, wnid, f"words of {wnid}", 0) for i, wnid in enumerate(KIT_ORDER)]
    rows.append((4, "n99", "an inner node", 3))
    array = np.array(rows, dtype=[(name, object) for name in names])
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": array.reshape(-1, 1)})
    return buffer.getvalue()


def challenge(folder: Path, year: int = 2012, **changes: bytes) -> Path:
    """Two training images a class (seed 10 * class + number), four validation images (seed 100 + number)."""
    folder.mkdir()
    image = "img" if year == 2012 else "images"
    classes = {
        f"{wnid}.tar": tar_of({f"{wnid}_{i}.JPEG": jpeg(10 * int(wnid[1:]) + i) for i in range(2)})
        for wnid in KIT_ORDER
    }
    validation = {f"ILSVRC{year}_val_{i:08}.JPEG": jpeg(100 + i) for i in (2, 0, 3, 1)}
    kit = {
        "devkit/data/meta.mat": changes.get("meta", meta(year)),
        f"devkit/data/ILSVRC{year}_validation_ground_truth.txt": changes.get("truth", b"3\n1\n1\n2\n"),
    }
    (folder / f"ILSVRC{year}_{image}_train.tar").write_bytes(changes.get("train", tar_of(classes)))
    (folder / f"ILSVRC{year}_{image}_val.tar").write_bytes(changes.get("val", tar_of(validation)))
    name = "ILSVRC2012_devkit_t12.tar.gz" if year == 2012 else "ILSVRC2010_devkit-1.0.tar.gz"
    (folder / name).write_bytes(tar_of(kit))
    return folder


@pytest.mark.parametrize("year", [2012, 2010])
def test_labels_are_sorted_wordnet_ids_and_not_the_kits_numbers(year: int, tmp_path: Path) -> None:
    source = challenge(tmp_path / "in", year)
    for split in ("train", "validation"):
        assert prepare(source, tmp_path / "out", split, workers=1) == []
    train, validation = (open_split(tmp_path / "out" / split) for split in ("train", "validation"))
    assert train.classes == [("n01", "words of n01"), ("n02", "words of n02"), ("n03", "words of n03")]
    expected = {prepare_photo(jpeg(10 * n + i)).tobytes(): n - 1 for n in (1, 2, 3) for i in range(2)}
    assert {x.tobytes(): y for x, y in zip(train.images, train.labels.tolist(), strict=True)} == expected
    # Kit numbers 3, 1, 1, 2 are n02, n03, n03, n01, in the order of the file names.
    expected = {prepare_photo(jpeg(100 + i)).tobytes(): y for i, y in enumerate([1, 2, 2, 0])}
    found = zip(validation.images, validation.labels.tolist(), strict=True)
    assert {x.tobytes(): y for x, y in found} == expected


def test_the_test_set_of_2010_has_labels_beside_the_kit(tmp_path: Path) -> None:
    source = challenge(tmp_path / "in", 2010)
    images = {f"ILSVRC2010_test_{i:08}.JPEG": jpeg(200 + i) for i in range(2)}
    (source / "ILSVRC2010_images_test.tar").write_bytes(tar_of(images))
    with pytest.raises(DatasetError, match=r"test_ground_truth\.txt for the test labels"):
        open_source(source, "test")
    (source / "ILSVRC2010_test_ground_truth.txt").write_text("1\n2\n")  # n03, n01
    found = {item.name: item.label for item in open_source(source, "test").items(0)}
    assert found == {"ILSVRC2010_test_00000000.JPEG": 2, "ILSVRC2010_test_00000001.JPEG": 0}
    for split in ("train", "test"):
        prepare(source, tmp_path / "out", split, workers=1)
    expected = {prepare_photo(jpeg(200 + i)).tobytes(): label for i, label in enumerate((2, 0))}
    test = open_split(tmp_path / "out/test")
    assert {x.tobytes(): y for x, y in zip(test.images, test.labels.tolist(), strict=True)} == expected


def test_a_bar_counts_the_tar_files_whose_headers_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_source(challenge(tmp_path / "in"), "train")
    told = capsys.readouterr().err
    assert "reading headers" in told
    assert "3/3" in told


def test_images_come_shuffled_and_resume_anywhere(tmp_path: Path) -> None:
    source = open_source(challenge(tmp_path / "in"), "train")
    names = [item.name for item in source.items(0)]
    assert sorted(names) != names
    assert [item.name for item in source.items(4)] == names[4:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": tar_of({"n01.tar": tar_of({"a.JPEG": b"x"})})}, "0 unknown, 2 missing"),
        (
            {"train": tar_of({f"{w}.tar": tar_of({} if w == "n02" else {"a": b"x"}) for w in KIT_ORDER})},
            "class n02 is empty",
        ),
        ({"train": b"not a tar"}, "not a complete tar file"),
        ({"truth": b"1\n2\n"}, "4 images, and 2 labels"),
        ({"truth": b"1\n2\n3\n7\n"}, r"validation labels \[7\]"),
        ({"meta": b"nonsense"}, "not a readable development kit"),
    ],
)
def test_files_at_odds_are_named(changes: dict[str, bytes], message: str, tmp_path: Path) -> None:
    source = challenge(tmp_path / "in", **changes)
    with pytest.raises(DatasetError, match=message) as caught:
        [open_source(source, split) for split in ("train", "validation")]
    assert "ILSVRC2012" in str(caught.value)


def test_a_tar_cut_short_is_named(tmp_path: Path) -> None:
    source = challenge(tmp_path / "in")
    whole = (source / "ILSVRC2012_img_val.tar").read_bytes()
    (source / "ILSVRC2012_img_val.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"img_val\.tar"):
        open_source(source, "validation")


def test_a_corrupt_image_is_reported_and_left_out(tmp_path: Path) -> None:
    broken = {f"ILSVRC2012_val_{i:08}.JPEG": jpeg(i) if i != 2 else jpeg(i)[:500] for i in range(4)}
    source = challenge(tmp_path / "in", val=tar_of(broken))
    report = prepare(source, tmp_path / "out", "validation", workers=1)
    assert [line.split(":")[0] for line in report] == ["ILSVRC2012_val_00000002.JPEG"]
    assert len(open_split(tmp_path / "out/validation").labels) == 3
