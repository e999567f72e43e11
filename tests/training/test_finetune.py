"""The command `alexnet-train finetune`, from a folder of photos to the answers of the served model."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from caffe_files import caffemodel
from PIL import Image
from website import serving

from alexnet_server.loading import batch, open_engine
from alexnet_server.models.export.graph import MODEL_NAMES, PRECISIONS, VIEWS, Architecture, serving_graph
from alexnet_server.models.export.layers import Range
from alexnet_server.models.export.weights import random_weights, scaled
from alexnet_server.models.public import importing
from alexnet_server.models.public.sources import SOURCES
from alexnet_server.models.repository import read_repository
from alexnet_server.models.unpack import ensure_unpacked
from alexnet_server.models.variants import LAYERS, VARIANTS
from alexnet_server.models.weights import read_weights, stored_arrays
from alexnet_server.preprocess import prepare
from alexnet_server.service import Classifier
from alexnet_server.settings import Settings
from alexnet_server.telemetry.metrics import Metrics
from alexnet_train import cli
from alexnet_train.evaluate.calibration import softmax
from alexnet_train.evaluate.repository import EngineInfer
from alexnet_train.finetune import base
from alexnet_train.finetune.graph import with_classes
from alexnet_train.finetune.learn import PENALTIES, Fit, choose, folds
from alexnet_train.finetune.report import wilson
from alexnet_train.finetune.views import six_views
from tests.numerics import probability_rounding

COLOURS = {"blue": (40, 60, 220), "Green": (40, 200, 60), "red": (220, 40, 40)}
"""In the sorted order of their names, capitals first."""
CLASSES = sorted(COLOURS)


def photo(name, number, kind="PNG"):
    """A file: 80 x 64 noisy pixels whose colour tells the class."""
    draw = np.random.default_rng([number, *name.encode()])
    pixels = np.clip(COLOURS.get(name, (128, 128, 128)) + draw.normal(0, 50, (64, 80, 3)), 0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def write_class(folder, name, count, first=0):
    (folder / name).mkdir(parents=True)
    for number in range(first, first + count):
        (folder / name / f"{number}.png").write_bytes(photo(name, number))


@pytest.fixture
def folder(tmp_path):
    """Two classes of five photos."""
    for name in ("blue", "red"):
        write_class(tmp_path / "photos", name, 5)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def finetuned(tiny_repository, tmp_path_factory):
    """A finetuned repository, and the photos it was made of."""
    folder = tmp_path_factory.mktemp("finetuned")
    for name in COLOURS:
        write_class(folder / "photos", name, 5)
    (folder / "photos" / "labels.tsv").write_text("0\tred\tas a rose\n")
    assert run(folder / "photos", "--repository", folder / "mine", "--from", tiny_repository) == 0
    return folder


def run(*arguments):
    return cli.main(["finetune", *map(str, arguments)])


def images(folder):
    files = sorted(path for path in folder.rglob("*.png") if path.parent.name in COLOURS)
    labels = [CLASSES.index(path.parent.name) for path in files]
    return np.stack([prepare(path.read_bytes()) for path in files]), np.array(labels)


def infer(repository, precision, model="alexnet"):
    found = read_repository(repository)
    entry = found.models[model]
    return EngineInfer(found, entry, ensure_unpacked(found, (precision,), repository / precision)[model])


# What is served


def test_the_classes_are_told_apart_by_the_model_that_is_served(finetuned):
    photos, labels = images(finetuned / "photos")
    photos, labels = photos[::5], labels[::5]
    for model in MODEL_NAMES.values():
        found = infer(finetuned / "mine", "int8", model)(photos)
        assert (found.argmax(1) == labels).all(), model
    entry = read_repository(finetuned / "mine").models["alexnet"]
    assert entry.labels == (("Green", "Green"), ("blue", "blue"), ("red", "as a rose"))


@pytest.mark.numerics
def test_the_served_probabilities_are_the_new_heads(finetuned):
    photos, _ = images(finetuned / "photos")
    served = infer(finetuned / "mine", "fp32")
    repository = read_repository(finetuned / "mine")
    weights = read_weights(repository.weight_file)
    temperature = repository.models["alexnet"].card["temperature"]
    features = served.features(photos).astype(np.float64)
    logits = features @ weights["fc8.weight"].T.astype(np.float64) + weights["fc8.bias"]
    expected = softmax(logits / temperature)
    terms = 2 * features.shape[1]
    size = float(np.abs(features).max() * np.linalg.norm(weights["fc8.weight"], axis=1).max()) / temperature
    atol = probability_rounding(terms, expected, logits=size)
    np.testing.assert_allclose(served(photos), expected, rtol=0, atol=atol)


async def test_the_server_finds_it_as_its_card_says_and_answers(finetuned):
    settings = Settings(model_repository=finetuned / "mine", engine="onnx")
    classifier = Classifier(settings, Metrics(), decode_threads=1)
    await classifier.load(lambda: batch(open_engine(settings), settings, classifier.metrics))
    try:
        assert classifier.problem() is None, "the golden photo"
        answer = await classifier.classify(photo("red", 99), classifier.model(), top_k=3)
    finally:
        await classifier.close()
    assert (answer.predictions[0].wnid, answer.predictions[0].label) == ("red", "as a rose")


def test_everything_but_fc8_is_the_bases(finetuned, tiny_repository):
    was = stored_arrays((tiny_repository / "alexnet.weights").read_bytes())
    now = stored_arrays((finetuned / "mine" / "alexnet.weights").read_bytes())
    kept = {name for name in was if not name.startswith("fc8.")}
    assert now.keys() - kept == {"fc8.weight", "fc8.bias"}
    for name in kept:
        assert was[name].dtype == now[name].dtype
        np.testing.assert_array_equal(was[name], now[name])
    photos, _ = images(finetuned / "photos")
    features = [infer(path, "int8").features(photos) for path in (finetuned / "mine", tiny_repository)]
    np.testing.assert_array_equal(*features)


def test_card_and_what_is_printed(tiny_repository, folder, tmp_path, capsys):
    for number in range(2):  # wrong on purpose: these are red
        (folder / "blue" / f"odd | {number}.png").write_bytes(photo("red", 50 + number))
    assert run(folder, "--repository", tmp_path / "my own", "--from", tiny_repository) == 0
    out = capsys.readouterr().out.splitlines()
    card = json.loads((tmp_path / "my own" / "card.json").read_text())
    row = card["accuracy"][0]
    assert (row["set"], row["images"], row["precision"]) == ("held-out photos", 12, "int8")
    assert row["top1"] == round(10 / 12, 4), "the two are wrong when held out"
    low, high = wilson(10, 12)
    assert out == [
        "12 photos are too few to calibrate int8 on (64 are needed): the ranges of random-2012 stay",
        f"accuracy on 12 held-out photos: 83.3% (95 % interval {low:.1%} to {high:.1%})",
        "worst confusion: 2 of 7 'blue' are taken for 'red'",
        f"serve it: alexnet-server --model-repository '{tmp_path / 'my own'}'",
    ]
    page = (tmp_path / "my own" / "README.md").read_text()
    assert "| blue | 7 | 71% | red (2) |" in page
    assert r"| blue/odd \| 1.png | blue | red |" in page
    assert (tmp_path / "my own" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (card["name"], card["variant"], card["precisions"]) == ("my-own", "2012", ["int8", "fp32", "fp16"])


def test_the_same_seed_gives_the_same_weights(finetuned, tiny_repository, tmp_path):
    assert run(finetuned / "photos", "--repository", tmp_path / "mine", "--from", tiny_repository) == 0
    again, before = (path / "mine" / "alexnet.weights" for path in (tmp_path, finetuned))
    assert again.read_bytes() == before.read_bytes()
    image = prepare(photo("red", 1))
    one, other = (six_views(image, np.random.default_rng([seed, 0])) for seed in (1, 2))
    np.testing.assert_array_equal(one[[0, 3]], other[[0, 3]])
    np.testing.assert_array_equal(one[3:], one[:3, :, ::-1])
    assert (one != other).any(axis=(1, 2, 3)).tolist() == [False, True, True, False, True, True]


def test_a_validation_folder_judges_and_torch_is_not_needed(tiny_repository, folder, tmp_path):
    for name in ("blue", "red"):
        write_class(tmp_path / "others", name, 2, first=30)
    code = "import sys; sys.modules |= dict.fromkeys(['torch', 'pyarrow'])\n"
    code += "from alexnet_train.cli import main; sys.exit(main())"
    folders = {"repository": tmp_path / "mine", "from": tiny_repository, "validation": tmp_path / "others"}
    flags = [str(part) for name, path in folders.items() for part in (f"--{name}", path)]
    command = [sys.executable, "-c", code, "finetune", str(folder), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "\naccuracy on 4 held-out photos: 100.0%" in done.stdout


def test_public_weights_are_fetched_once(folder, tmp_path, monkeypatch):
    data = caffemodel(dict(random_weights(scaled(VARIANTS["caffe"], 8, 96), 1000).tensors))
    digest = "sha1:" + hashlib.sha1(data).hexdigest()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(importing, "prove", lambda _weights: ["random weights recognise nothing"])
    with serving(data, "bvlc_alexnet.caffemodel") as site:
        source = replace(SOURCES["bvlc_alexnet"], digest=digest, urls=(site.url,))
        monkeypatch.setitem(SOURCES, "bvlc_alexnet", source)
        assert run(folder, "--repository", tmp_path / "mine", "--from", "bvlc_alexnet") == 0
    found = read_repository(tmp_path / "mine")
    assert found.models.keys() == {"alexnet"}
    assert found.card["precisions"] == ["fp32", "fp16"], "nothing was calibrated"
    assert "bvlc_alexnet.caffemodel" in found.card["source"]
    monkeypatch.setitem(SOURCES, "bvlc_alexnet", replace(source, urls=("http://127.0.0.1:9/gone",)))
    assert base.Base("bvlc_alexnet").precision == "fp32"


# Graphs


@pytest.mark.parametrize("classes", [3, 96])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_graph_is_the_one_that_would_be_exported(precision, view, classes):
    """For as many classes as features, too: then both reshapes share a constant."""
    variant = scaled(VARIANTS["2012"], 8, 96)
    names = [f"{layer}.{end}" for layer in LAYERS for end in ("in", "out")]
    ranges = {name: Range(0.0, 1.0 + index) for index, name in enumerate(names)}
    make = {"view": view, "precision": precision, "ranges": ranges}

    def parts(model):
        graph = model.graph
        tensors = {tensor.name: tensor.SerializeToString() for tensor in graph.initializer}
        nodes = [node.SerializeToString() for node in graph.node]
        return tensors, nodes, [output.SerializeToString() for output in graph.output]

    expected = parts(serving_graph(Architecture(variant, classes), temperature=0.5, **make))
    for before, temperature in ((10, 1.0), (96, 0.75)):
        before_it = serving_graph(
            Architecture(variant, before),
            temperature=temperature,
            metadata={"a": "b", "weights": "x"},
            **make,
        )
        changed = with_classes(before_it, classes, 0.5, {"weights": "y"})
        assert parts(changed) == expected
        assert {prop.key: prop.value for prop in changed.metadata_props} == {"a": "b", "weights": "y"}


# Learning


def test_the_fit_is_the_minimum_with_and_without_a_basis():
    """The gradient, in float64 and in the features as they are, vanishes at what is found."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 40)
    features = (draw.normal(0, 1, (40, 2, 300)) + 2 * labels[:, None, None] * draw.normal(0, 1, 300)).astype(
        "f4"
    )
    penalty, everything = 1e-2, np.arange(40)
    for values in (features, features[:, :, :20]):  # fewer rows than features, and more
        fit = Fit(values, labels, 3)
        head = fit.head(fit.solve(everything, penalty))
        rows = values.reshape(80, -1).astype(np.float64)
        variance = ((rows - rows.mean(0)) ** 2).sum(1).mean()
        error = softmax(rows @ head.weight.T + head.bias) - np.repeat(np.eye(3)[labels], 2, axis=0)
        gradient = error.T @ (rows - rows.mean(0)) / 80 + penalty * variance * head.weight
        assert np.abs(gradient).max() < 2e-3 * np.sqrt(variance)
        assert np.abs(error.mean(0)).max() < 1e-3
        np.testing.assert_allclose(
            head.logits(values), fit.logits(fit.solve(everything, penalty), everything), atol=1e-3
        )


def test_every_photo_is_held_out_once_and_every_class_in_each_fifth():
    labels = np.repeat([0, 1, 2], [5, 17, 30])
    turns = folds(labels, 1)
    assert sorted(np.concatenate([out for _, out in turns])) == list(range(52))
    for learned, out in turns:
        assert not set(learned) & set(out)
        assert set(labels[out]) == {0, 1, 2}
    assert len(folds(np.zeros(2001, np.int64), 1)) == 1


def test_few_photos_that_are_all_right_leave_doubt():
    labels = np.repeat([0, 1], 8)
    features = np.eye(2, dtype=np.float32)[labels][:, None, :] * np.ones((1, 6, 1), np.float32)
    held = choose(Fit(features, labels, 2), folds(labels, 0))
    assert held.penalty in PENALTIES
    best = softmax(held.logits[:, :1] / held.temperature(1)).max(-1).mean()
    assert best < 0.98, "17 of 18, with a right and a wrong answer imagined"


def test_the_interval_of_a_share():
    """Figures of Newcombe 1998 (Statistics in Medicine 17:857-872), table I, method 3."""
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson(right, count) == pytest.approx((low, high), abs=1e-4)


# What people do wrong


def one_class(folder):
    shutil.rmtree(folder / "red")


def no_class(folder):
    for name in ("blue", "red"):
        shutil.rmtree(folder / name)
    (folder / "a.png").write_bytes(photo("red", 1))


def empty_class(folder):
    (folder / "yellow").mkdir()
    (folder / "yellow" / ".DS_Store").write_bytes(b"hidden")


def four_photos(folder):
    (folder / "red" / "4.png").unlink()


def four_that_can_be_read(folder):
    (folder / "red" / "4.png").write_bytes(b"no photo")


def in_two_classes(folder):
    shutil.copy(folder / "blue" / "1.png", folder / "red" / "copy.png")


def nested(folder):
    write_class(folder / "red", "dark", 2)


def tabbed(folder):
    (folder / "red").rename(folder / "r\ted")


def unworded(folder):
    (folder / "labels.tsv").write_text("red\trose\nblue\n")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (one_class, "at least two classes are needed, and it holds only 'blue'"),
        (no_class, "at least two classes are needed, and it holds none"),
        (empty_class, "yellow is empty: put photos of 'yellow' into it, or remove it"),
        (four_photos, "red: 4 readable photos are too few; 5 are the minimum"),
        (four_that_can_be_read, "red: 4 readable photos are too few; 5 are the minimum"),
        (in_two_classes, "blue/1.png and * are the same photo in two classes: leave it in one"),
        (nested, "red/dark is a folder inside the class 'red': move its photos into 'red', or"),
        (tabbed, r"rename the class folder 'r\ted' to printable characters"),
        (unworded, "labels.tsv, line 2: expected the class folder's name, a tab, words"),
    ],
)
def test_folders_that_are_wrong(wrong, message, folder, tiny_repository, tmp_path, capsys):
    wrong(folder)
    assert run(folder, "--repository", tmp_path / "mine", "--from", tiny_repository) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alexnet-train: ")]
    assert len(errors) == 1
    for part in message.split("*"):
        assert part in errors[0]
    assert not (tmp_path / "mine").exists()


def test_what_is_only_worth_a_warning(folder, tiny_repository, tmp_path, capsys):
    (folder / ".cache").mkdir()
    (folder / "red" / ".hidden.png").write_bytes(b"")
    (folder / "red" / "note.txt").write_text("not a photo")
    (folder / "red" / "same.png").write_bytes(photo("red", 1))
    (folder / "loose.png").write_bytes(photo("red", 60))
    assert run(folder, "--repository", tmp_path / "mine", "--from", tiny_repository) == 0
    err = capsys.readouterr().err.replace(str(folder), "PHOTOS").splitlines()
    warnings = [line.removeprefix("warning: ") for line in err if line.startswith("warning: ")]
    assert warnings.pop(2).startswith("PHOTOS/red/note.txt is left out: ")
    assert warnings == [
        "PHOTOS/red: photos that occur more than once count only once (1 copies)",
        "PHOTOS: files beside the class folders belong to no class (1, first loose.png)",
        "PHOTOS/blue: 5 photos are few; 15 or more make it more reliable",
        "PHOTOS/red: 5 photos are few; 15 or more make it more reliable",
    ]


def test_validation_that_is_wrong(folder, tiny_repository, tmp_path, capsys):
    arguments = ["--repository", tmp_path / "mine", "--from", tiny_repository]
    for name in ("blue", "Green"):
        write_class(tmp_path / "others", name, 2, first=30)
    assert run(folder, "--validation", tmp_path / "others", *arguments) == 1
    assert "'Green' is only in one of them" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "others" / "Green")
    write_class(tmp_path / "others", "red", 2, first=4)
    assert run(folder, "--validation", tmp_path / "others", *arguments) == 1
    assert "are the same photo: a photo cannot both train and validate" in capsys.readouterr().err
    for file in (tmp_path / "others").glob("*/*.png"):
        file.write_text(f"no photo: {file}")
    assert run(folder, "--validation", tmp_path / "others", *arguments) == 1
    assert capsys.readouterr().err.endswith(f"{tmp_path / 'others'} holds no photo that can be read\n")


def test_starts_and_targets_that_are_wrong(folder, tiny_repository, tmp_path, capsys):
    def refused(*arguments):
        assert run(folder, *arguments) == 1
        return capsys.readouterr().err.splitlines()[-1]

    assert "neither a model repository nor one of torchvision, " in refused(
        "--repository", tmp_path / "mine", "--from", "resnet50"
    )
    assert "is the network it starts from" in refused(
        "--repository", tiny_repository, "--from", tiny_repository
    )
    shutil.copytree(tiny_repository, tmp_path / "base")
    other = tmp_path / "other" / "resnet"
    other.mkdir(parents=True)
    (other / "config.pbtxt").write_text('name: "resnet"')
    assert "holds another model, resnet" in refused(
        "--repository", tmp_path / "other", "--from", tiny_repository
    )
    for graph in (tmp_path / "base").glob("*/graph.*"):
        graph.unlink()
    assert "holds only complete graphs" in refused(
        "--repository", tmp_path / "x", "--from", tmp_path / "base"
    )
    shutil.rmtree(tmp_path / "base")
    shutil.copytree(tiny_repository, tmp_path / "base")
    with (tmp_path / "base" / "alexnet.weights").open("ab") as file:
        file.write(b"damage")
    assert "is damaged" in refused("--repository", tmp_path / "x", "--from", tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "alexnet")
    assert "has no model of the centre view" in refused(
        "--repository", tmp_path / "x", "--from", tmp_path / "base"
    )
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused("--repository", tmp_path / "file", "--from", tiny_repository)
    assert not (tmp_path / "x").exists()
