"""Importers end to end: files in the genuine layouts, but small, against other people's readers."""

import hashlib
import http.server
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from caffe_files import _blob, _field, _varint, caffemodel, prototxt
from onnx import TensorProto, helper, numpy_helper

from alexnet_server.repository import read_repository
from alexnet_train import cli
from alexnet_train.importers import caffe, command, onnx_graph, sources, torchvision
from alexnet_train.importers.errors import WeightsError
from alexnet_train.importers.network import CAFFE_MEAN, TORCHVISION_MEAN, TORCHVISION_STD
from alexnet_train.importers.onnx_graph import ZOO_MEAN
from alexnet_train.variants import VARIANTS, ResponseNorm
from alexnet_train.weights import random_weights, scaled

CLASSES = 9
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


def small(name):
    return random_weights(scaled(VARIANTS[name], 8, 96), CLASSES)


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("".join(f"n{i:08d}\tthing {i}\n" for i in range(CLASSES)))
    return path


def run(*arguments):
    return cli.main(["import", *map(str, arguments)])


def served(folder, photos, model="alexnet"):
    session = onnxruntime.InferenceSession(
        read_repository(folder).models[model].onnx, providers=["CPUExecutionProvider"]
    )
    return session.run(["probabilities"], {"images": photos})[0]


def softmax(logits):
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def centre(photo, side):
    start = (256 - side) // 2
    return photo[start : start + side, start : start + side].astype(np.float32)


# Caffe


@pytest.mark.parametrize("name", ["caffe", "caffenet"])
def test_a_caffemodel_is_served_as_opencv_reads_it(name, photos, labels, tmp_path):
    cv2 = pytest.importorskip("cv2")
    weights = small(name)
    variant = weights.variant
    (tmp_path / "net.prototxt").write_text(prototxt(variant, variant.hidden, CLASSES))
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(dict(weights.tensors)))
    theirs = cv2.dnn.readNetFromCaffe(str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel"))
    repository = tmp_path / "models"
    assert (
        run(tmp_path / "net.caffemodel", "--variant", name, "--repository", repository, "--labels", labels)
        == 0
    )
    for photo, found in zip(photos, served(repository, photos), strict=True):
        x = centre(photo, 227)[:, :, ::-1] - CAFFE_MEAN[::-1]
        theirs.setInput(x.transpose(2, 0, 1)[None].copy())
        np.testing.assert_allclose(found, softmax(theirs.forward()[0]), atol=2e-5)


def first_generation(weights, norm=b"", order=("norm1", "pool1")):
    """A V1 net as the files of 2013 are: ``layers`` = 2, name 4, type 5, blobs 6; shapes padded with ones."""
    net = b""
    for name in ("conv1", *order, *LAYERS[1:]):
        layer = _field(4, name.encode())
        for kind in ("weight", "bias") if name in LAYERS else ():
            array = weights[f"{name}.{kind}"]
            shape = (1,) * (4 - array.ndim) + array.shape
            blob = b"".join(_varint(field << 3) + _varint(size) for field, size in enumerate(shape, 1))
            layer += _field(6, blob + _field(5, array.astype("<f4").tobytes()))
        layer += _field(18, norm) if name == "norm1" and norm else b""
        net += _field(2, layer)
    return net


@pytest.mark.parametrize(("order", "name"), [(("norm1", "pool1"), "caffe"), (("pool1", "norm1"), "caffenet")])
def test_the_first_generation_of_caffemodels(order, name, tmp_path):
    weights = small(name)
    path = tmp_path / "old.caffemodel"
    path.write_bytes(first_generation(dict(weights.tensors), order=order))
    network = caffe.read(path, None)
    assert network.variant == replace(weights.variant)
    for tensor, value in weights.tensors.items():
        np.testing.assert_array_equal(network.tensors[tensor], value)
    with pytest.raises(WeightsError, match=f"is a {name}, by the order of its layers"):
        caffe.read(path, "caffenet" if name == "caffe" else "caffe")


def test_a_caffemodels_own_norm_is_used(tmp_path):
    norm = (
        _varint(1 << 3)
        + _varint(3)
        + b"".join(
            _varint(field << 3 | 5) + np.float32(value).tobytes()
            for field, value in ((2, 5e-4), (3, 0.5), (5, 2.0))
        )
    )
    path = tmp_path / "other.caffemodel"
    path.write_bytes(first_generation(dict(small("caffe").tensors), norm))
    assert caffe.read(path, None).variant.lrn == ResponseNorm(k=2.0, alpha=5e-4 / 3, beta=0.5, size=3)


def test_a_mean_image_replaces_the_mean_pixel(photos, labels, tmp_path):
    weights = small("caffe")
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(dict(weights.tensors)))
    mean = (
        np.random.default_rng(0).uniform(90, 140, (3, 256, 256)).astype(np.float32)
    )  # BGR, as Caffe's tools write
    (tmp_path / "mean.binaryproto").write_bytes(_blob(mean[None]))
    np.save(tmp_path / "mean.npy", mean)
    answers = []
    for file in ("mean.binaryproto", "mean.npy"):
        np.testing.assert_array_equal(caffe.read_mean(tmp_path / file), mean[::-1])
        repository = tmp_path / file.replace(".", "_")
        arguments = ["--variant", "caffe", "--views", "center", "--mean", tmp_path / file, "--labels", labels]
        assert run(tmp_path / "net.caffemodel", "--repository", repository, *arguments) == 0
        answers.append(served(repository, photos))
    np.testing.assert_array_equal(*answers)
    np.save(tmp_path / "wrong.npy", mean[:, :9])
    with pytest.raises(WeightsError, match="the mean has shape"):
        caffe.read_mean(tmp_path / "wrong.npy")


# torchvision


def test_a_pth_is_served_as_torchvisions_layers_compute_it(photos, labels, tmp_path):
    weights = small("owt")
    one, two, three, four, five = weights.variant.channels
    conv, linear, relu, pool = torch.nn.Conv2d, torch.nn.Linear, torch.nn.ReLU, torch.nn.MaxPool2d
    model = torch.nn.Module()
    model.features = torch.nn.Sequential(
        *(conv(3, one, 11, 4, 2), relu(), pool(3, 2), conv(one, two, 5, padding=2), relu(), pool(3, 2)),
        *(conv(two, three, 3, padding=1), relu(), conv(three, four, 3, padding=1), relu()),
        *(conv(four, five, 3, padding=1), relu(), pool(3, 2)),
    )
    model.classifier = torch.nn.Sequential(
        *(torch.nn.Dropout(), linear(five * 36, 96), relu(), torch.nn.Dropout(), linear(96, 96), relu()),
        linear(96, CLASSES),
    )
    state = dict(zip(model.state_dict(), map(torch.from_numpy, weights.tensors.values()), strict=True))
    state = {name: tensor * (55 if name == "features.0.weight" else 1) for name, tensor in state.items()}
    model.load_state_dict(state)
    path, repository = tmp_path / "net.pth", tmp_path / "models"
    torch.save(model.eval().state_dict(), path)
    assert run(path, "--repository", repository, "--labels", labels) == 0
    for photo, found in zip(photos, served(repository, photos), strict=True):
        x = (centre(photo, 224) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.inference_mode():
            pooled = model.features(torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32)))
            expected = model.classifier(pooled.flatten(1)).softmax(1)[0]
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_pth_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "it ran",))

    path = tmp_path / "evil.pth"
    torch.save({"features.0.weight": Evil()}, path)
    with pytest.raises(WeightsError, match="read safely"):
        torchvision.read(path)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("content", [{"state": {"a": torch.zeros(1)}}, torch.zeros(3)])
def test_a_pth_of_something_else(content, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        torchvision.read(tmp_path / "other.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"has no conv1\.bias"):
        torchvision.read(tmp_path / "part.pth")


# ONNX


def zoo_model(weights):
    """A graph as Caffe2 wrote the zoo's: 224 pixels, no padding, pool1 over the edge, its names."""
    variant, nodes, arrays, x = weights.variant, [], {}, "data_0"

    def add(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def parameters(name):
        arrays[f"{name}_w_0"], arrays[f"{name}_b_0"] = (
            weights.tensors[f"{name}.{k}"] for k in ("weight", "bias")
        )
        return [f"{name}_w_0", f"{name}_b_0"]

    behind = (variant.layer1, variant.layer2, ("relu",), ("relu",), variant.layer5)
    for i in range(5):
        kernel, pad, stride = [(11, 0, 4), (5, 2, 1), (3, 1, 1), (3, 1, 1), (3, 1, 1)][i]
        shape = {"kernel_shape": [kernel] * 2, "pads": [pad] * 4, "strides": [stride] * 2}
        x = add("Conv", [x, *parameters(f"conv{i + 1}")], f"conv{i + 1}_1", group=variant.groups[i], **shape)
        for step in behind[i]:
            if step == "relu":
                x = add("Relu", [x], f"conv{i + 1}_2")
            elif step == "lrn":
                x = add("LRN", [x], f"norm{i + 1}_1", alpha=1e-4, beta=0.75, bias=1.0, size=5)
            else:
                edge = 1 if i == 0 else 0
                window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, edge, edge]}
                x = add("MaxPool", [x], f"pool{i + 1}_1", **window)
    arrays["OC2_DUMMY_1"] = np.array([1, -1], np.int64)
    x = add("Reshape", [x, "OC2_DUMMY_1"], "OC2_DUMMY_0")
    for name in ("fc6", "fc7", "fc8"):
        x = add("Gemm", [x, *parameters(name)], f"{name}_1", transB=1)
        if name != "fc8":
            x = add("Dropout", [add("Relu", [x], f"{name}_2")], f"{name}_3")
    add("Softmax", [x], "softmaxout_1")
    graph = helper.make_graph(
        nodes,
        "bvlc_alexnet",
        [helper.make_tensor_value_info("data_0", TensorProto.FLOAT, [1, 3, 224, 224])],
        [helper.make_tensor_value_info("softmaxout_1", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)


@pytest.mark.parametrize("name", ["caffe", "caffenet"])
def test_a_zoo_model_is_served_as_onnxruntime_runs_it(name, photos, labels, tmp_path):
    path, repository = tmp_path / "zoo.onnx", tmp_path / "models"
    onnx.save(zoo_model(small(name)), path)
    assert run(path, "--repository", repository, "--labels", labels) == 0
    theirs = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for photo, found in zip(photos, served(repository, photos), strict=True):
        x = centre(photo, 224)[:, :, ::-1] - ZOO_MEAN[::-1]
        expected = theirs.run(None, {"data_0": x.transpose(2, 0, 1)[None].copy()})[0][0]
        np.testing.assert_allclose(found, expected, atol=2e-5)
    dense = served(repository, photos[:1], "alexnet_dense")
    assert dense.shape == (1, CLASSES)
    np.testing.assert_allclose(dense.sum(), 1, atol=1e-5)


def test_torchvisions_onnx_is_read_by_its_structure(tmp_path):
    """The zoo's ``alexnet_Opset17``: one group, no norms, whatever its tensors are called."""
    weights = small("owt")
    model = zoo_model(replace(weights, variant=replace(weights.variant)))
    graph = model.graph
    convolution = next(node for node in graph.node if node.op_type == "Conv")
    next(a for a in convolution.attribute if a.name == "pads").CopyFrom(
        helper.make_attribute("pads", [2] * 4)
    )
    for node in graph.node:  # transposed weights, as some exporters write them
        if node.op_type == "Gemm" and node.input[1] == "fc8_w_0":
            del node.attribute[:]
            tensor = next(t for t in graph.initializer if t.name == "fc8_w_0")
            tensor.CopyFrom(numpy_helper.from_array(weights.tensors["fc8.weight"].T.copy(), "fc8_w_0"))
    onnx.save(model, tmp_path / "owt.onnx")
    network = onnx_graph.read(tmp_path / "owt.onnx")
    assert network.variant == weights.variant
    np.testing.assert_array_equal(network.mean, TORCHVISION_MEAN)
    np.testing.assert_array_equal(network.std, TORCHVISION_STD)
    for tensor, value in weights.tensors.items():
        np.testing.assert_array_equal(network.tensors[tensor], value)


def broken(change):
    model = zoo_model(small("caffe"))
    change(model.graph)
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.node.append(helper.make_node("QLinearConv", [], ["x"])), "QLinearConv is no part of"),
        (lambda g: g.node.remove(next(n for n in g.node if n.op_type == "Gemm")), "its layers are Conv"),
        (
            lambda g: g.node.remove(next(n for n in g.node if n.op_type == "LRN")),
            "none of caffe, caffenet and owt",
        ),
        (lambda g: g.initializer.remove(g.initializer[0]), "has no constant weight and bias"),
    ],
)
def test_graphs_that_are_no_alexnet(change, message, tmp_path):
    onnx.save(broken(change), tmp_path / "x.onnx")
    with pytest.raises(WeightsError, match=message):
        onnx_graph.read(tmp_path / "x.onnx")


# The command


class Mirror:
    """A file on a local web server."""

    def __init__(self, folder):
        handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *a: None})
        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), lambda *a, **k: handler(*a, directory=str(folder), **k)
        )
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A caffemodel on a web server, published as ``bvlc_alexnet``."""
    site = tmp_path / "site"
    site.mkdir()
    path = site / "bvlc_alexnet.caffemodel"
    path.write_bytes(first_generation(dict(small("caffe").tensors)))
    digest = "sha1:" + hashlib.sha1(path.read_bytes()).hexdigest()
    source = replace(sources.SOURCES["bvlc_alexnet"], digest=digest)
    monkeypatch.setitem(sources.SOURCES, "bvlc_alexnet", source)
    mirror = Mirror(site)
    yield path, f"{mirror.url}/{path.name}"
    mirror.close()


def test_import_by_name_from_a_mirror(published, labels, tmp_path, photos, capsys):
    _, url = published
    repository, downloads = tmp_path / "models", tmp_path / "downloads"
    arguments = ["bvlc_alexnet", "--repository", repository, "--labels", labels, "--downloads", downloads]
    assert run(*arguments, "--url", url) == 0
    assert "alexnet_10crop: " in capsys.readouterr().out
    found = read_repository(repository)
    assert set(found.models) == {"alexnet", "alexnet_10crop", "alexnet_dense"}
    assert all(entry.onnx.exists() for entry in found.models.values())
    assert found.card["title"] == "BVLC AlexNet (Caffe)"
    assert found.card["source"].startswith(
        "http://dl.caffe.berkeleyvision.org/bvlc_alexnet.caffemodel, sha256:"
    )
    assert found.models["alexnet"].card["accuracy"][0]["top1"] == 0.571
    assert found.models["alexnet"].golden is not None
    assert served(repository, photos, "alexnet_10crop").shape == (3, CLASSES)
    assert (downloads / "bvlc_alexnet.caffemodel").exists()


def test_a_damaged_download_writes_nothing(published, labels, tmp_path, capsys):
    path, url = published
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    arguments = ["bvlc_alexnet", "--url", url, "--repository", tmp_path / "models", "--labels", labels]
    assert run(*arguments, "--downloads", tmp_path / "downloads") == 1
    assert "published is sha1:" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
    assert run(*arguments, "--downloads", tmp_path / "downloads", "--unverified", "--views", "center") == 0
    assert "not the published file" in read_repository(tmp_path / "models").card["source"]


def test_a_file_is_held_to_its_name(published, labels, tmp_path, capsys):
    path, _ = published
    copy = Path(shutil.copy(path, tmp_path))
    arguments = ["--repository", tmp_path / "models", "--labels", labels, "--views", "center"]
    assert run(copy, *arguments) == 0
    copy.write_bytes(first_generation(dict(small("caffenet").tensors)))
    assert run(copy, *arguments) == 0, "the same bytes: random weights do not depend on the order"
    copy.write_bytes(copy.read_bytes() + b"\x00\x00")
    assert run(copy, *arguments) == 1
    assert "not the file it is named after" in capsys.readouterr().err


def test_int8_is_calibrated_on_a_folder_of_photos(published, labels, tmp_path, photos, capsys):
    path, _ = published
    cats = Path(__file__).parents[1] / "data" / "cc0"
    arguments = [path, "--repository", tmp_path / "models", "--labels", labels, "--precision", "int8"]
    assert run(*arguments) == 1
    assert "--calibrate FOLDER" in capsys.readouterr().err
    assert run(*arguments, "--calibrate", cats) == 0
    assert read_repository(tmp_path / "models").card["precisions"] == ["fp32", "fp16", "int8"]
    assert served(tmp_path / "models", photos).shape == (3, CLASSES)
    assert run(*arguments, "--calibrate", tmp_path / "site") == 1
    assert "holds no photos" in capsys.readouterr().err


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
    assert "say --variant" in capsys.readouterr().err
    assert run(tmp_path / "y.caffemodel", "--variant", "caffe", "--repository", tmp_path / "models") == 1
    assert "9 classes apart and ILSVRC-2012 names 1000" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_a_truncated_file_is_refused(published, tmp_path):
    path, _ = published
    data = path.read_bytes()
    (tmp_path / "short.caffemodel").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="damaged"):
        caffe.read(tmp_path / "short.caffemodel", "caffe")


def test_the_thousand_classes():
    labels = command._labels(None, 1000)
    assert labels[0] == ("n01440764", "tench, Tinca tinca")
    assert labels[281] == ("n02123045", "tabby, tabby cat")
    assert labels[999][0] == "n15075141"
    assert [wnid for wnid, _ in labels] == sorted({wnid for wnid, _ in labels})


def test_caffe_and_onnx_files_need_no_torch(published, labels, tmp_path):
    path, _ = published
    onnx.save(zoo_model(small("caffenet")), tmp_path / "zoo.onnx")
    block = "import sys\nfor name in ('torch', 'tqdm', 'pyarrow', 'matplotlib'): sys.modules[name] = None\n"
    code = block + "from alexnet_train.cli import main\nsys.exit(main(sys.argv[1:]))"
    path = path.rename(tmp_path / "net.caffemodel")
    for file in (path, tmp_path / "zoo.onnx"):
        arguments = [
            "import",
            file,
            "--repository",
            tmp_path / file.stem,
            "--labels",
            labels,
            "--views",
            "center",
        ]
        subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
        )
        assert (tmp_path / file.stem / "alexnet" / "1" / "model.onnx").exists()
