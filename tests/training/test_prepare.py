import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alexnet_server.preprocess import PREPROCESS_VERSION
from alexnet_server.preprocess import prepare as prepare_photo
from alexnet_train.cli import main
from alexnet_train.data import prepare as preparing
from alexnet_train.data.dataset import DatasetError, open_split
from alexnet_train.data.prepare import prepare
from alexnet_train.data.sources import parquet_files


def encoded(side: int, seed: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + side % 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def parquet(folder: Path, images: list[bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "labels.tsv").write_text("0\tn1\tone\n1\tn2\ttwo\n")
    column = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    for part, start in enumerate(range(0, len(images), 8)):
        rows = column[start : start + 8]
        table = pa.table({"image": rows, "label": [i % 2 for i in range(start, start + len(rows))]})
        pq.write_table(table, folder / f"train-{part}.parquet")
    return folder


def test_parquet_of_64_pixels_is_kept_at_64(tmp_path: Path) -> None:
    images = [encoded(64, i) for i in range(20)]
    assert prepare(parquet(tmp_path / "in", images), tmp_path / "out", "train", workers=1) == []
    split = open_split(tmp_path / "out" / "train")
    assert split.images.shape == (20, 64, 64, 3)
    assert split.labels.tolist() == [0, 1] * 10
    assert split.classes == [("n1", "one"), ("n2", "two")]
    np.testing.assert_array_equal(split.images[7], np.asarray(Image.open(io.BytesIO(images[7]))))
    assert split.statistics is not None
    np.testing.assert_allclose(split.statistics.mean, split.images.reshape(-1, 3).mean(0), rtol=1e-6)


def test_class_folders_are_the_pixels_the_server_sees(tmp_path: Path) -> None:
    for wnid in ("n2", "n1"):
        (tmp_path / "in" / "train" / wnid).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "in" / "train" / wnid / f"{i}.jpg").write_bytes(encoded(300, i + len(wnid), "JPEG"))
    prepare(tmp_path / "in", tmp_path / "out", "train", workers=1)
    split = open_split(tmp_path / "out" / "train")
    assert [wnid for wnid, _ in split.classes] == ["n1", "n2"]
    served = {prepare_photo(p.read_bytes()).tobytes() for p in (tmp_path / "in").rglob("*.jpg")}
    assert {image.tobytes() for image in split.images} == served


def test_unreadable_images_are_reported_and_left_out(tmp_path: Path) -> None:
    images = [encoded(64, i) for i in range(10)]
    images[3], images[8] = b"not an image", images[8][:300]
    broken = prepare(parquet(tmp_path / "in", images), tmp_path / "out", "train", workers=1)
    assert [line.split(":")[0] for line in broken] == ["3.png", "8.png"]
    split = open_split(tmp_path / "out" / "train")
    assert split.labels.tolist() == [0, 1, 0, 0, 1, 0, 1, 1]


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = parquet(tmp_path / "in", [encoded(64, i) for i in range(24)])
    monkeypatch.setattr(preparing, "CHUNK", 8)
    prepare(source, tmp_path / "whole", "train", workers=1)
    record, calls = preparing._write_progress, []

    def die_after_two(*arguments: object) -> None:
        record(*arguments)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_write_progress", die_after_two)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "cut", "train", workers=1)
    with pytest.raises(DatasetError, match="not a complete prepared split"):
        open_split(tmp_path / "cut" / "train")
    prepare(source, tmp_path / "cut", "train", workers=1)
    for name in ("images.npy", "labels.npy", "meta.json"):
        assert (tmp_path / "cut/train" / name).read_bytes() == (tmp_path / "whole/train" / name).read_bytes()


def test_an_empty_class_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in" / "train" / "n1").mkdir(parents=True)
    words = ["prepare", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--split", "train"]
    assert main(words) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "n1: a class folder without images" in message


def test_a_truncated_memmap_and_labels_out_of_range_are_named(tmp_path: Path) -> None:
    prepare(
        parquet(tmp_path / "in", [encoded(64, i) for i in range(9)]), tmp_path / "out", "train", workers=1
    )
    folder = tmp_path / "out" / "train"
    np.save(folder / "labels.npy", np.full(9, 2))
    with pytest.raises(DatasetError, match=r"labels outside 0\.\.1"):
        open_split(folder)
    whole = (folder / "images.npy").read_bytes()
    (folder / "images.npy").write_bytes(whole[:-100])
    with pytest.raises(
        DatasetError, match=r"train: not a complete prepared split .*run `alexnet-train prepare`"
    ):
        open_split(folder)


def test_a_full_disk_is_told_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = parquet(tmp_path / "in", [encoded(64, i) for i in range(4)])
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(DatasetError, match=r"GB are needed .* free some space"):
        prepare(source, tmp_path / "out", "train", workers=1)


def test_data_of_other_pixels_is_refused_in_a_line(tmp_path: Path) -> None:
    prepare(
        parquet(tmp_path / "in", [encoded(64, i) for i in range(3)]), tmp_path / "out", "train", workers=1
    )
    path = tmp_path / "out" / "train" / "meta.json"
    meta = json.loads(path.read_text())
    assert meta.pop("preprocess_version") == PREPROCESS_VERSION
    path.write_text(json.dumps(meta))
    with pytest.raises(
        DatasetError, match=r"^[^\n]*prepared by preprocessing 1, .*`alexnet-train prepare` again$"
    ):
        open_split(path.parent)


def test_labels_without_a_class_are_named(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in", [encoded(64, i) for i in range(4)])
    (source / "labels.tsv").write_text("0\tn1\tone\n")
    with pytest.raises(DatasetError, match=r"1\.png: label 1 is outside 0\.\.0"):
        prepare(source, tmp_path / "out", "train", workers=1)


def test_the_mean_image_is_kept_beside_the_training_images(tmp_path: Path) -> None:
    prepare(
        parquet(tmp_path / "in", [encoded(64, i) for i in range(9)]), tmp_path / "out", "train", workers=1
    )
    split = open_split(tmp_path / "out" / "train")
    assert split.mean_image is not None
    np.testing.assert_allclose(split.mean_image, split.images.mean(0), rtol=1e-5)


def test_a_corrupt_first_image_does_not_hide_the_size(tmp_path: Path) -> None:
    images = [b"nonsense", *(encoded(64, i) for i in range(3))]
    assert len(prepare(parquet(tmp_path / "in", images), tmp_path / "out", "train", workers=1)) == 1
    assert open_split(tmp_path / "out" / "train").size == 64


def test_a_file_that_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "train" / "n1"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encoded(300, 1, "JPEG"))
    (folder / "b.jpg").symlink_to(tmp_path / "gone.jpg")
    report = prepare(tmp_path / "in", tmp_path / "out", "train", workers=1)
    assert len(report) == 1
    assert "b.jpg (No such file" in report[0]


def folders(root: Path, *names: str, first: int = 0) -> Path:
    for number, name in enumerate(names, first):
        root.joinpath(name).mkdir(parents=True)
        (root / name / "photo.png").write_bytes(encoded(64, number))
    return root


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_a_validation_split_has_the_training_splits_numbers(tmp_path: Path, name: str) -> None:
    folders(tmp_path / "in/train", "n1", "n2", "n3")
    folders(tmp_path / "in" / name, "n3", first=7)
    for split in ("train", "validation"):
        prepare(tmp_path / "in", tmp_path / "out", split, workers=1)
    split = open_split(tmp_path / "out/validation")
    assert split.labels.tolist() == [2]
    assert [wnid for wnid, _ in split.classes] == ["n1", "n2", "n3"]


def test_both_splits_are_looked_for_before_the_first_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders(tmp_path / "in/train", "n1", "n2")
    words = ["prepare", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert "in/validation: no class folders" in told
    assert told.endswith("; to do without validation, add --split train\n")
    assert not (tmp_path / "out").exists()
    assert main([*words, "--split", "train"]) == 0
    folders(tmp_path / "in/val", "n1", first=7)
    assert main(words) == 0
    assert len(open_split(tmp_path / "out/validation").labels) == 1


@pytest.mark.parametrize("name", ["validation", "data/valid", "data/val"])
def test_published_parquet_may_shorten_the_name_of_validation(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}-00000-of-00001.parquet"
    file.parent.mkdir(exist_ok=True)
    file.touch()
    assert parquet_files(tmp_path, "validation") == [file]
    assert parquet_files(tmp_path, "train") == []


def test_a_class_that_training_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    folders(tmp_path / "in/train", "n1", "n2")
    folders(tmp_path / "in/validation", "n1", "n7", first=7)
    prepare(tmp_path / "in", tmp_path / "out", "train", workers=1)
    with pytest.raises(DatasetError, match="out/train has no class n7; its classes begin with n1, n2"):
        prepare(tmp_path / "in", tmp_path / "out", "validation", workers=1)


def test_what_file_managers_leave_behind_is_no_class_and_no_image(tmp_path: Path) -> None:
    folders(tmp_path / "in/train", "n1", "n2", ".ipynb_checkpoints", "@eaDir", "__MACOSX", "n1/@eaDir")
    (tmp_path / "in/train/n2/._photo.png").write_bytes(b"resource fork")
    assert prepare(tmp_path / "in", tmp_path / "out", "train", workers=1) == []
    split = open_split(tmp_path / "out/train")
    assert [wnid for wnid, _ in split.classes] == ["n1", "n2"]
    assert len(split.labels) == 2


@pytest.mark.parametrize(
    ("name", "start", "told"),
    [
        ("phone.HEIC", b"\0\0\0\x18ftypheic", "HEIC"),
        ("scan.tif", b"II*\0", "TIFF"),
        ("new.jxl", b"\xff\x0a", ""),
        ("slide.jp2", b"\0\0\0\x0cjP  ", ""),
    ],
)
def test_images_that_nothing_here_reads_are_reported(
    name: str, start: bytes, told: str, tmp_path: Path
) -> None:
    folders(tmp_path / "in/train", "n1")
    (tmp_path / "in/train/n1" / name).write_bytes(start + bytes(64))
    (report,) = prepare(tmp_path / "in", tmp_path / "out", "train", workers=1)
    assert told in report.partition(f"{name}: ")[2]
    assert f"{name}: " in report


def test_a_prepared_split_is_left_alone_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders(tmp_path / "in/train", *(f"n{i}" for i in range(5)))
    prepare(tmp_path / "in", tmp_path / "out", "train", workers=1)
    assert "5/5" in capsys.readouterr().err, "the bar counts images"
    before = (tmp_path / "out/train/images.npy").stat().st_mtime_ns
    assert prepare(tmp_path / "in", tmp_path / "out", "train", workers=1) == []
    assert capsys.readouterr().err == f"{tmp_path / 'out/train'}: already prepared\n"
    assert (tmp_path / "out/train/images.npy").stat().st_mtime_ns == before


def test_the_bar_moves_by_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[float | None] = []

    class Watched(preparing.tqdm):  # type: ignore[type-arg]
        def update(self, n: float | None = 1) -> bool | None:
            steps.append(n)
            return super().update(n)

    monkeypatch.setattr(preparing, "tqdm", Watched)
    images = [encoded(64, i) for i in range(9)]
    prepare(parquet(tmp_path / "in", [*images, b"broken"]), tmp_path / "out", "train", workers=1)
    assert steps == [1] * 10


def test_measuring_large_images_takes_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "CHUNK", 64)  # of 64 pixels a side, or four images of 256
    images = np.random.default_rng(0).integers(0, 256, (64, 256, 256, 3), np.uint8)
    as_floats = images[:4].size * 8
    tracemalloc.start()
    statistics = preparing.measure(images)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3 * as_floats, "one, the next, and little else; all of them would be sixteen"
    np.testing.assert_allclose(statistics.mean, images.reshape(-1, 3).mean(0))


def rows(
    folder: Path, image: list[object], label: list[object], metadata: dict[str, str] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": image, "label": label})
    pq.write_table(table.replace_schema_metadata(metadata), folder / "train-0.parquet")
    return folder


def test_nulls_in_parquet_are_reported_like_broken_images(tmp_path: Path) -> None:
    images: list[object] = [{"bytes": encoded(64, i), "path": f"{i}.png"} for i in range(4)]
    images[1], images[2] = None, {"bytes": None, "path": "2.png"}
    source = rows(tmp_path / "in", images, [0, 1, 0, None])
    (source / "labels.tsv").write_text("0\tn1\tone\n1\tn2\ttwo\n")
    broken = prepare(source, tmp_path / "out", "train", workers=1)
    assert [line.partition(":")[0] for line in broken] == [
        "row 1 (its image is null)",
        "2.png (its image is null)",
        "3.png (its label is null)",
    ]
    assert open_split(tmp_path / "out/train").labels.tolist() == [0]


def test_published_parquet_names_its_classes_itself(tmp_path: Path) -> None:
    told = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})}
    images: list[object] = [encoded(64, i) for i in range(4)]  # a plain binary column
    rows(tmp_path / "in/data", images, ["dog", "cat", "cat", "dog"], told)
    assert prepare(tmp_path / "in", tmp_path / "out", "train", workers=1) == []
    split = open_split(tmp_path / "out/train")
    assert split.classes == [("cat", "cat"), ("dog", "dog")]
    assert split.labels.tolist() == [1, 0, 0, 1]


def test_parquet_sorted_by_class_is_shuffled_and_keeps_its_labels(tmp_path: Path) -> None:
    images: list[object] = [{"bytes": encoded(64, i), "path": f"{i}.png"} for i in range(40)]
    images[3] = {"bytes": b"broken", "path": "3.png"}
    source = rows(tmp_path / "in", images, [0] * 20 + [1] * 20)
    (source / "labels.tsv").write_text("0\tn1\tone\n1\tn2\ttwo\n")
    assert len(prepare(source, tmp_path / "out", "train", workers=1)) == 1
    split = open_split(tmp_path / "out/train")
    assert set(split.labels[-8:].tolist()) == {0, 1}
    label_of = {
        np.asarray(Image.open(io.BytesIO(encoded(64, i)))).tobytes(): i // 20 for i in range(40) if i != 3
    }
    assert [label_of[image.tobytes()] for image in split.images] == split.labels.tolist()
