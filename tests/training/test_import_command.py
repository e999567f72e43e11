"""The command `alexnet-train import`, from a web server to a repository that the server serves."""

import hashlib
import json
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from caffe_files import caffemodel, first_generation
from full_disk import file_size_limit
from importing import CLASSES, run, served, small, zoo_model
from website import serving

from alexnet_server import preprocess
from alexnet_server.models.public import download, importing, sources, torchvision
from alexnet_server.models.repository import read_repository
from tests.processes import server_process

CC0 = Path(__file__).parents[1] / "data" / "cc0"
NOT_IN_CPU = ("torch", "onnxruntime", "tqdm", "pyarrow", "scipy", "matplotlib")
"""What the image `cpu` does without: `[train]`, and a second engine beside OpenVINO."""


@pytest.fixture
def published(monkeypatch):
    """A web server with a caffemodel, published as ``bvlc_alexnet``."""
    data = first_generation(dict(small("caffe").tensors))
    source = replace(sources.SOURCES["bvlc_alexnet"], digest="sha1:" + hashlib.sha1(data).hexdigest())
    monkeypatch.setitem(sources.SOURCES, "bvlc_alexnet", source)
    monkeypatch.setattr(download, "WAIT_S", 0.0)
    with serving(data, "bvlc_alexnet.caffemodel") as site:
        yield site


@pytest.fixture
def by_name(published, labels, tmp_path):
    """The command that imports it: where to, where downloads go, what else."""

    def by_name(*more):
        folders = ["--repository", tmp_path / "models", "--downloads", tmp_path / "downloads"]
        return run("bvlc_alexnet", "--url", published.url, "--labels", labels, *folders, *more)

    return by_name


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_import_by_name_from_a_mirror(by_name, tmp_path, photos, capsys):
    assert by_name() == 0
    assert "alexnet_10crop: " in capsys.readouterr().out
    found = read_repository(tmp_path / "models")
    assert set(found.models) == {"alexnet", "alexnet_10crop", "alexnet_dense"}
    assert all(entry.onnx.exists() for entry in found.models.values())
    assert found.card["title"] == "BVLC AlexNet (Caffe)"
    assert found.card["source"].startswith(
        "http://dl.caffe.berkeleyvision.org/bvlc_alexnet.caffemodel, sha256:"
    )
    assert found.models["alexnet"].card["accuracy"][0]["top1"] == 0.571
    assert found.models["alexnet"].golden is not None
    assert served(tmp_path / "models", photos, "alexnet_10crop").shape == (3, CLASSES)
    assert files(tmp_path / "downloads") == [tmp_path / "downloads" / "bvlc_alexnet.caffemodel"]


def test_a_cut_connection_is_resumed(by_name, published, tmp_path, capsys):
    published.cuts = [30_000, 50_000]
    assert by_name("--views", "center") == 0
    assert published.asked == [None, "bytes=30000-", "bytes=80000-"]
    published.cuts = [len(published.data) // 2, 0, 0, 0, 0]
    (tmp_path / "downloads" / "bvlc_alexnet.caffemodel").unlink()
    assert by_name() == 1
    assert "run it again to continue from" in capsys.readouterr().err
    assert by_name("--views", "center") == 0
    assert published.asked[-1] == f"bytes={len(published.data) // 2}-"
    assert (tmp_path / "downloads" / "bvlc_alexnet.caffemodel").read_bytes() == published.data


def test_a_flipped_byte_is_refused_unless_the_user_says_so(by_name, published, tmp_path, capsys):
    published.data = published.data[:-9] + bytes([published.data[-9] ^ 1]) + published.data[-8:]
    assert by_name() == 1
    assert "published is sha1:" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
    assert files(tmp_path / "downloads") == []
    assert by_name("--unverified", "--views", "center") == 0
    assert "not the published file" in read_repository(tmp_path / "models").card["source"]


def test_a_disk_that_is_full_leaves_nothing_of_the_download(by_name, published, tmp_path, capsys):
    with file_size_limit(len(published.data) - 1):
        assert by_name() == 1
    message = capsys.readouterr().err
    assert f"cannot write to {tmp_path / 'downloads'}: File too large; --downloads names another" in message
    assert files(tmp_path) == [tmp_path / "classes.txt"]


def test_a_disk_that_is_full_leaves_nothing_of_the_repository(by_name, tmp_path, capsys):
    assert by_name("--views", "center") == 0
    before = {path: path.read_bytes() for path in files(tmp_path)}
    largest = (tmp_path / "models" / "alexnet.weights").stat().st_size
    for size in (50, largest - 1):
        with file_size_limit(size):
            assert by_name() == 1
        assert f"cannot write {tmp_path / 'models'}: File too large" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in files(tmp_path)} == before


def test_a_disk_that_is_full_leaves_no_half_of_a_graph(by_name, tmp_path, capsys):
    assert by_name("--views", "center") == 0
    repository = read_repository(tmp_path / "models")
    graph, weights = repository.models["alexnet"].onnx, tmp_path / "models" / "alexnet.weights"
    assert weights.stat().st_size < graph.stat().st_size - 1
    with file_size_limit(graph.stat().st_size - 1):
        graph.unlink()
        assert by_name("--views", "center") == 1
    assert "File too large" in capsys.readouterr().err
    assert files(graph.parent) == [graph.with_suffix(".json")], "what told of the graph that was taken away"
    assert by_name("--views", "center") == 0
    assert graph.exists()


def test_a_file_is_held_to_its_name(published, labels, tmp_path, capsys):
    copy = tmp_path / "bvlc_alexnet.caffemodel"
    copy.write_bytes(published.data)
    arguments = ["--repository", tmp_path / "models", "--labels", labels, "--views", "center"]
    assert run(copy, *arguments) == 0
    copy.write_bytes(published.data + b"\x00\x00")
    assert run(copy, *arguments) == 1
    assert "not the file that its name says" in capsys.readouterr().err
    copy.write_bytes(published.data[: len(published.data) // 2])
    assert run(copy, *arguments, "--unverified") == 1
    assert "damaged" in capsys.readouterr().err


def test_int8_is_calibrated_on_a_folder_of_photos(by_name, tmp_path, photos, capsys):
    assert by_name("--precision", "int8") == 1
    assert "--calibrate FOLDER" in capsys.readouterr().err
    assert by_name("--precision", "int8", "--calibrate", CC0) == 0
    assert read_repository(tmp_path / "models").card["precisions"] == ["fp32", "fp16", "int8"]
    assert served(tmp_path / "models", photos).shape == (3, CLASSES)
    (tmp_path / "empty").mkdir()
    assert by_name("--precision", "int8", "--calibrate", tmp_path / "empty") == 1
    assert "contains no photos" in capsys.readouterr().err


def test_what_is_asked_for_must_be_there(tmp_path, labels, capsys):
    assert run("resnet", "--repository", tmp_path / "models") == 1
    assert "neither a file nor one of torchvision, bvlc_alexnet" in capsys.readouterr().err
    (tmp_path / "x.h5").write_text("")
    assert run(tmp_path / "x.h5", "--repository", tmp_path / "models") == 1
    assert "expected a .pth" in capsys.readouterr().err
    for name in ("x.caffemodel", "x.onnx", "x.pth"):
        (tmp_path / name).write_bytes(b"<!doctype html>\n<title>404</title>" * 9)
        assert run(tmp_path / name, "--repository", tmp_path / "models") == 1
        assert str(tmp_path / name) in capsys.readouterr().err
    (tmp_path / "y.caffemodel").write_bytes(caffemodel(dict(small("caffe").tensors)))
    assert run(tmp_path / "y.caffemodel", "--repository", tmp_path / "models") == 1
    assert "give --variant" in capsys.readouterr().err
    assert run(tmp_path / "y.caffemodel", "--variant", "caffe", "--repository", tmp_path / "models") == 1
    assert "9 classes and ILSVRC-2012 names 1000" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_the_thousand_classes():
    labels = importing._labels(None, 1000)
    assert labels[0] == ("n01440764", "tench, Tinca tinca")
    assert labels[281] == ("n02123045", "tabby, tabby cat")
    assert labels[999][0] == "n15075141"
    assert [wnid for wnid, _ in labels] == sorted({wnid for wnid, _ in labels})


@pytest.mark.parametrize("kind", ["caffemodel", "onnx", "pth"])
def test_the_image_cpu_imports_every_format(kind, labels, tmp_path):
    """As in the image `cpu`, whose `alexnet-train` starts the same function."""
    path = tmp_path / f"net.{kind}"
    if kind == "onnx":
        onnx.save(zoo_model(small("caffenet")), path)
    elif kind == "pth":
        tensors = small("owt").tensors
        names = [f"{module}.{kind}" for module in torchvision.MODULES for kind in ("weight", "bias")]
        torch.save({n: torch.from_numpy(t) for n, t in zip(names, tensors.values(), strict=True)}, path)
    else:
        path.write_bytes(first_generation(dict(small("caffe").tensors)))
    block = f"import sys\nfor name in {NOT_IN_CPU}: sys.modules[name] = None\n"
    code = block + "from alexnet_train.cli import main\nsys.exit(main(sys.argv[1:]))"
    arguments = ["import", path, "--repository", tmp_path / "models", "--labels", labels, "--calibrate", CC0]
    subprocess.run([sys.executable, "-c", code, *map(str, arguments), "--precision", "int8"], check=True)
    assert read_repository(tmp_path / "models").models["alexnet_dense"].onnx.exists()


def test_what_was_imported_is_served(by_name, tmp_path):
    assert by_name() == 0
    flags = ("--model-repository", str(tmp_path / "models"), "--engine-threads=1")
    with server_process(tmp_path / "log", *flags, module="alexnet_server") as server:
        for views, model in (("center", "alexnet"), ("ten", "alexnet_10crop"), ("dense", "alexnet_dense")):
            request = urllib.request.Request(
                f"http://{server.http_target}/classify?views={views}&top_k={CLASSES}",
                data=(CC0 / "coffee.jpg").read_bytes(),
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                answer = json.load(response)
            assert answer["model"] == model
            scores = {row["wnid"]: row["score"] for row in answer["predictions"]}
            image = preprocess.prepare((CC0 / "coffee.jpg").read_bytes())
            expected = served(tmp_path / "models", image[None], model)[0]
            assert [scores[f"n{i:08d}"] for i in range(CLASSES)] == pytest.approx(expected, abs=1e-4)
