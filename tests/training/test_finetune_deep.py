"""`alexnet-train finetune --deep`: conv4 to fc8, where held-out photos gain by it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from full_disk import file_size_limit
from test_finetune import CLASSES, infer, run, write_class
from test_finetune_fc7 import images, write_base
from test_finetune_fc7 import photos as fc7_photos
from test_finetune_ranges import steps

from alexnet_server.models.export.graph import MODEL_NAMES
from alexnet_server.models.export.run import runner
from alexnet_server.models.export.weights import random_weights, scaled
from alexnet_server.models.repository import read_repository
from alexnet_server.models.variants import VARIANTS
from alexnet_server.models.weights import parse_weights, stored_arrays, tensor
from alexnet_train.finetune import deep, maps, tail
from alexnet_train.finetune.base import Base
from alexnet_train.finetune.errors import FinetuneError
from alexnet_train.finetune.graph import up_to
from alexnet_train.finetune.learn import Head
from alexnet_train.finetune.maps import Front, random_crops
from alexnet_train.finetune.photos import read_folders
from alexnet_train.finetune.tail import NORMED, Crops, Tail, Training
from alexnet_train.network.alexnet import AlexNet
from tests.numerics import logits_size, rounding, terms

photos = fc7_photos
VIEWS_SEEN = 3
"""Crops of a photo here, of so few and so plain ones."""


@pytest.fixture
def eager(monkeypatch):
    """So few weights, seen so few times, take longer steps, and all of them."""
    monkeypatch.setattr(maps, "CROPS", VIEWS_SEEN)
    monkeypatch.setattr(tail, "RATE", 0.01)
    monkeypatch.setattr(tail, "DROPOUT", 0.0)
    monkeypatch.setattr(deep, "EPOCHS", 11)
    monkeypatch.setattr(deep, "PATIENCE", 11)


@pytest.fixture
def trained(monkeypatch):
    """The trainings that a command runs."""
    found = []

    class Noted(Training):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            found.append(self)

    monkeypatch.setattr(deep, "Training", Noted)
    return found


@pytest.mark.numerics
@pytest.mark.timeout(900)
@pytest.mark.parametrize("product", [False, True], ids=["whole", "product"])
def test_layers_that_help_are_served(product, photos, tmp_path, eager, trained, capsys):
    write_base(tmp_path / "base", product)
    assert run(photos, "--repository", tmp_path / "mine", "--from", tmp_path / "base", "--deep") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("conv4 to fc8 are trained, in ")
    found = read_repository(tmp_path / "mine")
    assert found.card["summary"].startswith("3 classes (Green, blue, red) told apart by conv4 to fc8, ")
    assert f"C{first[1:]}." in found.card["recipe"]

    files = (tmp_path / name / "alexnet.weights" for name in ("base", "mine"))
    was, now = (stored_arrays(file.read_bytes()) for file in files)
    frozen = {name for name in was if name.startswith(("conv1.", "conv2.", "conv3.", "mean"))}
    assert now.keys() - frozen == {
        name.removesuffix(".scales").removesuffix(".codes") for name in was.keys() - frozen
    }
    for name in frozen:
        np.testing.assert_array_equal(was[name], now[name])

    # What is served is what PyTorch computes with the batch norms not yet folded.
    base = Base(str(tmp_path / "base"))
    front = up_to(base.model("fp32"), "conv4")
    reads = runner(front)([front.graph.output[0].name], images(photos))[0]
    last = trained[-1].tail.double().eval()
    with torch.no_grad():
        logits = last(torch.from_numpy(reads).double()).numpy()
    entry, served = found.models["alexnet"], infer(tmp_path / "mine", "fp32")
    stored = {
        name: tensor(parse_weights((tmp_path / "mine" / "alexnet.weights").read_bytes()), name)
        for name in [f"{layer}.{part}" for layer in (*NORMED, "fc8") for part in ("weight", "bias")]
    }
    head = Head(stored["fc8.weight"], stored["fc8.bias"])
    features = served.features(images(photos))
    size = logits_size(head.weight, features)
    np.testing.assert_allclose(head.logits(features), logits, rtol=0, atol=rounding(terms(stored), size))
    expected = torch.from_numpy(logits / entry.card["temperature"]).softmax(1).numpy()
    atol = rounding(terms(stored), size / entry.card["temperature"])
    np.testing.assert_allclose(served(images(photos)), expected, rtol=0, atol=atol)

    for model in MODEL_NAMES.values():
        exact, rough = (infer(tmp_path / "mine", precision, model) for precision in ("fp32", "int8"))
        assert np.abs(exact(images(photos)) - rough(images(photos))).max() < 0.15
        pair = [one.features(images(photos)).ravel() for one in (exact, rough)]
        assert np.corrcoef(*pair)[0, 1] > 0.99


def test_layers_that_do_not_help_stay(tmp_path, eager, monkeypatch, capsys):
    """At rates that destroy them, or leave no numbers: then everything is as with fc8 alone."""
    for name in CLASSES:
        write_class(tmp_path / "photos", name, 5)
    write_base(tmp_path / "base", True)
    found, accuracies = {}, set()
    for name, flags, rate in (("fc8", [], 0), ("deep", ["--deep"], 1.0), ("deeper", ["--deep"], 1e4)):
        monkeypatch.setattr(tail, "RATE", rate)
        monkeypatch.setattr(deep, "EPOCHS", 3)
        mine = tmp_path / name / "mine"
        assert run(tmp_path / "photos", "--repository", mine, "--from", tmp_path / "base", *flags) == 0
        first, *out = capsys.readouterr().out.splitlines()
        if flags:
            why = "no more of 3 held-out photos are right with them than by chance"
            assert first == f"conv4 to fc7 stay as they were: {why}"
        accuracies |= {line for line in out if line.startswith("accuracy")}
        found[name] = stored_arrays((mine / "alexnet.weights").read_bytes())
        assert steps(mine) == steps(tmp_path / "base")
    assert len(accuracies) == 1
    for name in ("deep", "deeper"):
        assert found[name].keys() == found["fc8"].keys()
        for key, array in found["fc8"].items():
            np.testing.assert_array_equal(found[name][key], array)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_norms_put_back_change_nothing(name):
    """Of every variant: a tail begins as conv4 to fc8 of the network itself."""
    weights = random_weights(scaled(VARIANTS[name], 8, 96), 4)
    network = AlexNet(weights.variant, 4, dropout=0.0).eval().double()
    network.load_state_dict({name: torch.tensor(one).double() for name, one in weights.tensors.items()})
    x = 50 * torch.randn(5, 3, *[weights.variant.crop] * 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        reads = torch.relu(network._affine("conv3", network.layers1and2(x.double())))
        expected = network(x.double()).numpy()
    crops = Crops(reads.float().numpy()[:, None], np.zeros(5, np.int64), np.arange(5))
    head = Head(weights.tensors["fc8.weight"], weights.tensors["fc8.bias"])
    layers = Tail(VARIANTS[name], weights.tensors, head, crops)
    size = float(np.abs(expected).max())
    for found in (layers.logits(crops.maps)[:, 0], served_logits(layers, network, x)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * size)


def served_logits(layers, network, x):
    """Of the network with the tail's folded tensors."""
    tensors = {name: torch.from_numpy(one).double() for name, one in layers.tensors().items()}
    network.load_state_dict(network.state_dict() | tensors)
    with torch.no_grad():
        return network(x.double()).numpy()


def test_a_training_is_repeated_exactly(photos, tmp_path, eager):
    write_base(tmp_path / "base", True)
    base, files = Base(str(tmp_path / "base")), read_folders(photos, print).photos[::15]
    labels = np.array([photo.label for photo in files])
    weights = base.tensors("fc8")
    head = Head(weights["fc8.weight"][:3], weights["fc8.bias"][:3])
    seen = []
    for order in ([0, 1, 2, 3], [3, 2]):
        crops = Front(base, files, 224, seed=5).crops(np.array(order))
        seen.append(crops[order.index(3)])
    np.testing.assert_array_equal(*seen)
    assert seen[0].shape == (VIEWS_SEEN, 48, 13, 13)
    crops = Crops(Front(base, files, 224, seed=5).crops(np.arange(4)), labels, np.arange(4))
    found = []
    for turns in ([2], [1, 1]):
        training = Training(Tail(VARIANTS["2012"], deep.tensors_of(base), head, crops), crops, seed=3)
        for count in turns:
            training.epochs(count, "test")
        found.append(training.tail.tensors())
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_crops_lie_where_the_centre_view_finds_them():
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    crops = random_crops(image, np.random.default_rng(1), side=227)
    places = set()
    for crop in crops:
        assert not crop[:14].any()
        assert not crop[:, :14].any()
        middle = crop[14 : 14 + 227, 14 : 14 + 227]
        places |= {
            (top, left, mirrored)
            for top in range(30)
            for left in range(30)
            for mirrored, found in ((False, middle), (True, middle[:, ::-1]))
            if np.array_equal(found, image[top : top + 227, left : left + 227])
        }
    assert len(places) == len(crops)
    assert {mirrored for *_, mirrored in places} == {False, True}


def test_no_room_for_the_maps(tiny_repository, photos):
    front = Front(Base(str(tiny_repository)), read_folders(photos, print).photos, 224, 1)
    told = r"crops of 90 photos take \d+ MiB in .*: File too large; set TMPDIR to a folder with more room"
    with file_size_limit(1 << 20), pytest.raises(FinetuneError, match=told):
        front.crops(np.arange(90))


def test_pytorch_is_missing(photos, tiny_repository, tmp_path):
    code = "import sys; sys.modules['torch'] = None\nfrom alexnet_train.cli import main; sys.exit(main())"
    flags = ["--repository", str(tmp_path / "mine"), "--from", str(tiny_repository), "--deep"]
    command = [sys.executable, "-c", code, "finetune", str(photos), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "alexnet-train: --deep needs PyTorch: pip install '.[train]'\n"


@pytest.mark.parametrize("layers", ["fc7", "fc8"])
def test_either_layers_or_deep(layers, photos, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(photos, "--repository", tmp_path / "mine", "--layers", layers, "--deep")
    assert ended.value.code == 2
    assert "argument --deep: not allowed with argument --layers\n" in capsys.readouterr().err


def test_a_base_of_another_network_is_refused(photos, tiny_repository, tmp_path, capsys):
    shutil.copytree(tiny_repository, tmp_path / "base")
    card = json.loads((tmp_path / "base" / "card.json").read_text())
    (tmp_path / "base" / "card.json").write_text(json.dumps(card | {"variant": "2012-no-conv4"}))
    assert run(photos, "--repository", tmp_path / "mine", "--from", tmp_path / "base", "--deep") == 1
    refused = f"{tmp_path / 'base'} is of '2012-no-conv4': leave --deep out\n"
    assert capsys.readouterr().err.endswith(refused)
    assert not (tmp_path / "mine").exists()
