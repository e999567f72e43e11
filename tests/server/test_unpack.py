import contextlib
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from alexnet_server import preprocess
from alexnet_server.models import unpack as module
from alexnet_server.models.repository import PRECISIONS, RepositoryError, read_repository
from alexnet_server.models.unpack import ensure_unpacked, main, unpack

NOBODY = 65534


@pytest.fixture
def repository(exported_repository, tmp_path):
    """A copy that a test may unpack and spoil."""
    return shutil.copytree(exported_repository, tmp_path / "model_repository")


@contextlib.contextmanager
def not_writable(folder):
    """Run as somebody who may read but not write the folder, also where tests run as root."""
    os.chmod(folder, 0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        os.chmod(folder, 0o755)


@pytest.fixture
def public_folder():
    """A folder that nobody can reach; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def record(path):
    """What ``model.json`` says of the complete graph beside it."""
    return json.loads(path.with_suffix(".json").read_text())


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_unpacked_models_are_complete_and_run(repository, precision, photos):
    paths = unpack(read_repository(repository), precision)
    assert paths == {
        name: repository / name / "1" / "model.onnx"
        for name in ("alexnet", "alexnet_10crop", "alexnet_dense")
    }
    for name, path in paths.items():
        model = onnx.load(path)
        onnx.checker.check_model(model)
        assert not any(t.data_location for t in model.graph.initializer), "one file, nothing outside it"
        assert record(path)["precision"] == precision
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        probabilities, features = session.run(None, {"images": photos[:1]})
        entry = read_repository(repository).models[name]
        file, index, score = entry.golden
        assert file == "noise.png"
        assert probabilities.shape == (1, len(entry.labels))
        assert features.shape == (1, entry.features)
        assert probabilities[0].argmax() == index
        assert abs(probabilities[0, index] - score) < 0.05


def test_the_record_tells_the_file_beside_it(repository):
    path = unpack(read_repository(repository), "fp32")["alexnet"]
    metadata = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    assert record(path) == {
        "precision": metadata["precision"],
        "weights_sha256": metadata["weights_sha256"],
        "graph_sha256": hashlib.sha256((repository / "alexnet" / "graph.fp32.onnx").read_bytes()).hexdigest(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def test_zeroed_bytes_are_noticed_and_mended(repository, tmp_path):
    """ONNX Runtime loads such a file without a word: most of it is weights."""
    good = unpack(read_repository(repository), "int8")["alexnet"]
    whole = good.read_bytes()
    damaged = bytearray(whole)
    middle = len(whole) // 2
    damaged[middle : middle + 5000] = bytes(5000)
    for path in (good, tmp_path / "copy"):
        path.write_bytes(damaged)
    onnxruntime.InferenceSession(tmp_path / "copy", providers=["CPUExecutionProvider"])
    ensure_unpacked(read_repository(repository), ("int8",))
    assert good.read_bytes() == whole


def test_zeroed_bytes_of_a_model_without_parts_are_refused(repository):
    path = unpack(read_repository(repository), "int8")["alexnet"]
    for part in (repository / "alexnet").glob("graph.*"):
        part.unlink()
    damaged = bytearray(path.read_bytes())
    damaged[9000:14_000] = bytes(5000)
    path.write_bytes(damaged)
    with pytest.raises(RepositoryError, match=r"model\.onnx: it is damaged"):
        ensure_unpacked(read_repository(repository), ("int8",))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"precision": 3}', "null", "\xff"])
def test_a_broken_record_is_written_anew(repository, text):
    path = unpack(read_repository(repository), "int8")["alexnet"]
    path.with_suffix(".json").write_text(text, encoding="latin-1")
    ensure_unpacked(read_repository(repository), ("int8",))
    assert record(path)["precision"] == "int8"


def test_triton_decodes_with_this_servers_code(repository):
    copy = repository / "preprocess" / "1" / "preprocess.py"
    copy.write_text("an older release's")
    unpack(read_repository(repository), "int8")
    assert copy.read_bytes() == Path(preprocess.__file__).read_bytes()


def test_a_repository_of_an_earlier_version_says_how_to_write_it_anew(repository):
    (repository / "alexnet.weights").write_bytes(b"ALEXNET\x01" + bytes(100))
    with pytest.raises(RepositoryError, match=r"earlier version: write the model repository again, with"):
        ensure_unpacked(read_repository(repository), ("int8",))


def test_ensure_unpacks_what_is_missing_and_keeps_what_is_there(repository):
    paths = ensure_unpacked(read_repository(repository), ("int8", "fp32"))
    written = {name: path.stat().st_mtime_ns for name, path in paths.items()}
    assert {record(path)["precision"] for path in paths.values()} == {"int8"}
    again = ensure_unpacked(read_repository(repository), ("fp32", "int8"))
    assert {name: path.stat().st_mtime_ns for name, path in again.items()} == written, "int8 will do"
    (repository / "alexnet" / "1" / "model.onnx").unlink()
    ensure_unpacked(read_repository(repository), ("int8",))
    assert (repository / "alexnet" / "1" / "model.onnx").exists()


def test_another_precision_goes_to_the_cache_and_leaves_the_repository(repository, tmp_path):
    unpack(read_repository(repository), "int8")
    paths = ensure_unpacked(read_repository(repository), ("fp16",), cache=tmp_path / "cache")
    assert {record(path)["precision"] for path in paths.values()} == {"fp16"}
    assert all(path.is_relative_to(tmp_path / "cache") for path in paths.values())
    assert record(repository / "alexnet" / "1" / "model.onnx")["precision"] == "int8"


def test_a_file_of_older_weights_or_graphs_is_replaced(repository):
    unpack(read_repository(repository), "int8")
    path = repository / "alexnet" / "1" / "model.onnx"
    path.with_suffix(".json").write_text(json.dumps(record(path) | {"graph_sha256": "0" * 64}))
    ensure_unpacked(read_repository(repository), ("int8",))
    assert record(path)["graph_sha256"] != "0" * 64
    path.write_bytes(b"")
    ensure_unpacked(read_repository(repository), ("int8",))
    assert record(path)["precision"] == "int8"


def test_a_model_that_comes_complete_needs_no_parts(repository):
    unpack(read_repository(repository), "fp32")
    for name in ("alexnet_10crop", "alexnet_dense"):
        shutil.rmtree(repository / name)
    for path in [repository / "alexnet.weights", *(repository / "alexnet").glob("graph.*")]:
        path.unlink()
    expected = {"alexnet": repository / "alexnet" / "1" / "model.onnx"}
    assert ensure_unpacked(read_repository(repository), ("int8",)) == expected


def test_a_read_only_repository_is_unpacked_into_the_cache(exported_repository, public_folder, monkeypatch):
    repository = shutil.copytree(exported_repository, public_folder / "models")
    cache = public_folder / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for folder in repository.iterdir():
        if folder.is_dir():
            folder.chmod(0o555)
    before = files(repository)
    with not_writable(repository):
        first = ensure_unpacked(read_repository(repository), ("int8",))
        written = {name: path.stat().st_mtime_ns for name, path in first.items()}
        second = ensure_unpacked(read_repository(repository), ("int8",))
    assert files(repository) == before
    assert all(path.is_relative_to(cache / "alexnet") for path in first.values())
    assert {name: path.stat().st_mtime_ns for name, path in second.items()} == written, (
        "found, not written again"
    )


def test_nowhere_to_write_is_said(exported_repository, public_folder):
    repository = shutil.copytree(exported_repository, public_folder / "models")
    for folder in repository.iterdir():
        if folder.is_dir():
            folder.chmod(0o555)
    with not_writable(repository), pytest.raises(RepositoryError, match=r"Permission denied.*unpack DIR"):
        ensure_unpacked(read_repository(repository), ("int8",), cache=repository / "cache")


@pytest.mark.parametrize("where", [20, -20])
def test_damaged_weights_are_refused_and_nothing_is_written(repository, where):
    path = repository / "alexnet.weights"
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    before = files(repository)
    with pytest.raises(RepositoryError, match="damaged"):
        unpack(read_repository(repository), "int8")
    assert files(repository) == before


def test_missing_parts_are_named(repository):
    (repository / "alexnet" / "graph.int8.onnx").unlink()
    with pytest.raises(RepositoryError, match="was not exported in int8"):
        unpack(read_repository(repository), "int8")
    (repository / "alexnet.weights").unlink()
    with pytest.raises(RepositoryError, match=r"cannot read .*alexnet\.weights"):
        unpack(read_repository(repository), "fp32")


def test_a_full_disk_leaves_nothing_half_written(repository):
    before = files(repository)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # each model is larger: the write itself fails
    try:
        with pytest.raises(RepositoryError, match="no room to unpack"):
            unpack(read_repository(repository), "fp32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(repository) == before


def test_a_full_disk_keeps_the_model_that_was_there(repository):
    paths = unpack(read_repository(repository), "int8")
    before = {name: path.read_bytes() for name, path in paths.items()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RepositoryError, match="no room"):
            unpack(read_repository(repository), "fp32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {name: path.read_bytes() for name, path in paths.items()} == before


def test_processes_may_unpack_at_once(repository):
    code = "import sys; from alexnet_server.models.unpack import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--precision", "int8", str(repository)]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    models = [path for path in files(repository) if path.endswith(".onnx") and "/1/" in path]
    assert models == [f"{name}/1/model.onnx" for name in ("alexnet", "alexnet_10crop", "alexnet_dense")]
    for path in models:
        data = (repository / path).read_bytes()
        assert record(repository / path)["sha256"] == hashlib.sha256(data).hexdigest(), "of one writer"
    for path in models:
        onnx.checker.check_model(onnx.load(repository / path))


def test_what_a_killed_process_left_is_swept_after_an_hour(repository):
    folder = repository / "alexnet" / "1"
    folder.mkdir()
    old, fresh = folder / ".model.onnx.abcd", folder / ".model.onnx.efgh"
    for path in (old, fresh):
        path.write_bytes(b"half a model")
    os.utime(old, (time.time() - 4000,) * 2)
    unpack(read_repository(repository), "int8")
    assert sorted(path.name for path in folder.iterdir()) == [".model.onnx.efgh", "model.json", "model.onnx"]


def test_unpacked_files_are_readable_for_others(repository):
    path = unpack(read_repository(repository), "int8")["alexnet"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_command_writes_a_copy_of_the_shipped_repository(exported_repository, tmp_path, monkeypatch, capsys):
    shipped = shutil.copytree(exported_repository, tmp_path / "shipped")
    unpack(read_repository(shipped), "fp32")
    monkeypatch.setattr(module, "default_repository", lambda: shipped)
    target = tmp_path / "new" / "models"
    assert main(["--precision", "int8", str(target)]) == 0
    assert "alexnet_dense: " in capsys.readouterr().out
    repository = read_repository(target)
    assert {record(entry.onnx)["precision"] for entry in repository.models.values()} == {"int8"}
    assert main(["--precision", "fp16", str(target)]) == 0, "a repository of its own by now"
    assert record(target / "alexnet" / "1" / "model.onnx")["precision"] == "fp16"
    assert main([]) == 0, "without a folder: the shipped one itself"
    assert record(shipped / "alexnet" / "1" / "model.onnx")["precision"] == "int8"


def test_command_says_what_is_wrong(exported_repository, tmp_path, monkeypatch, capsys):
    shipped = shutil.copytree(exported_repository, tmp_path / "shipped")
    (shipped / "alexnet.weights").write_bytes(b"")
    monkeypatch.setattr(module, "default_repository", lambda: shipped)
    assert main([]) == 1
    assert "damaged" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file" / "below")]) == 1
    assert "cannot copy" in capsys.readouterr().err


def test_int8_answers_as_fp32_does(repository, photos):
    answers = []
    for precision in ("fp32", "int8"):
        path = unpack(read_repository(repository), precision)["alexnet"]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        answers.append(session.run(["probabilities"], {"images": photos})[0])
    assert np.abs(answers[0] - answers[1]).max() < 0.03
