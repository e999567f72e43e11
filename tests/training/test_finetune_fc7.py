"""`alexnet-train finetune --layers fc7`: fc7 and fc8, where held-out photos gain by it."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from test_finetune import CLASSES, infer, run, write_class

from alexnet_server.models.export.calibrate import calibrate
from alexnet_server.models.export.graph import MODEL_NAMES
from alexnet_server.models.export.quantize import fit
from alexnet_server.models.export.run import runner
from alexnet_server.models.export.weights import random_weights, scaled
from alexnet_server.models.export.write import packed_weights
from alexnet_server.models.repository import read_repository
from alexnet_server.models.variants import VARIANTS
from alexnet_server.models.weights import parse_weights, stored_arrays
from alexnet_server.preprocess import prepare
from alexnet_train.evaluate.calibration import softmax
from alexnet_train.finetune import hidden
from alexnet_train.finetune.base import Base
from alexnet_train.finetune.graph import with_inputs_of
from alexnet_train.finetune.hidden import Views, stop_early
from alexnet_train.finetune.learn import Fit, HeldOut, choose, folds
from tests.numerics import probability_rounding
from tests.repositories import structured_photos, write_repository

RANK = 1
"""Of the bases' fc7: all but nothing comes through, so that there is much to gain."""


@pytest.fixture
def eager(monkeypatch):
    """So few weights, seen so few times, take longer steps, and all of them."""
    monkeypatch.setattr(hidden, "RATE", 3e-3)
    monkeypatch.setattr(hidden, "DROPOUT", 0.0)
    monkeypatch.setattr(hidden, "PATIENCE", hidden.EPOCHS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Thirty photos of each of three classes."""
    folder = tmp_path_factory.mktemp("fc7") / "photos"
    for name in CLASSES:
        write_class(folder, name, 30)
    return folder


def write_base(folder, product):
    """A network whose fc7 has rank 1, stored as a product or whole; fc6 likewise, of a higher rank."""
    weights = random_weights(scaled(VARIANTS["2012"], 8, 96), 10, mean="pixel")
    draw, tensors, factors = np.random.default_rng(3), dict(weights.tensors), {}
    for layer, rank in (("fc6", 40), ("fc7", RANK)):
        out, inputs = tensors[f"{layer}.weight"].shape
        left = draw.standard_normal((out, rank), np.float32) / np.float32(rank**0.5)
        right = draw.standard_normal((rank, inputs), np.float32) * np.float32(1.4 / inputs**0.5)
        factors[layer], tensors[f"{layer}.weight"] = (left, right), left @ right
    weights = replace(weights, tensors=tensors)
    quantised = fit(weights.served(), factors) if product else fit(weights.served(), budget=100_000)
    ranges = calibrate(packed_weights(weights, quantised), structured_photos())
    write_repository(folder, weights=weights, quantised=quantised, ranges=ranges)


def images(folder):
    return np.stack([prepare(path.read_bytes()) for path in sorted(folder.rglob("*.png"))[::6]])


@pytest.mark.parametrize("product", [False, True], ids=["whole", "product"])
def test_fc7_that_helps_is_served(product, photos, tmp_path, eager, capsys):
    write_base(tmp_path / "base", product)
    assert run(photos, "--repository", tmp_path / "mine", "--from", tmp_path / "base", "--layers", "fc7") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("fc7 is trained too, in ")
    found = read_repository(tmp_path / "mine")
    assert found.card["summary"].startswith("3 classes (Green, blue, red) told apart by fc7 and fc8, ")
    assert f"F{first[1:]}." in found.card["recipe"]

    files = (tmp_path / name / "alexnet.weights" for name in ("base", "mine"))
    was, now = (stored_arrays(file.read_bytes()) for file in files)
    kept = {name for name in was if not name.startswith(("fc7.", "fc8."))}
    parts = {"fc7.weight.left", "fc7.weight.right"} if product else {"fc7.weight"}
    assert now.keys() - kept == parts | {"fc7.bias", "fc8.weight", "fc8.bias"}
    for name in kept:
        np.testing.assert_array_equal(was[name], now[name])

    for model in MODEL_NAMES.values():
        exact, rough = (infer(tmp_path / "mine", precision, model) for precision in ("fp32", "int8"))
        assert np.abs(exact(images(photos)) - rough(images(photos))).max() < 0.15
        pair = [one.features(images(photos)).ravel() for one in (exact, rough)]
        assert np.corrcoef(*pair)[0, 1] > 0.99


@pytest.mark.numerics
def test_the_served_probabilities_are_those_of_the_new_layers(photos, tmp_path, eager):
    write_base(tmp_path / "base", True)
    assert run(photos, "--repository", tmp_path / "mine", "--from", tmp_path / "base", "--layers", "fc7") == 0
    base = Base(str(tmp_path / "mine"))
    stored = parse_weights(base.weight_file.read_bytes())
    weights = {name: tensor.astype(np.float64) for name, tensor in stored.items()}
    run_it = runner(with_inputs_of(base.model("fp32"), "fc7"))
    inputs, features = np.split(run_it(["features"], images(photos))[0].astype(np.float64), 2, axis=1)
    hidden_units = inputs @ weights["fc7.weight.right"].T @ weights["fc7.weight.left"].T + weights["fc7.bias"]
    np.testing.assert_allclose(features, np.maximum(hidden_units, 0), atol=1e-5 * np.abs(hidden_units).max())
    logits = features @ weights["fc8.weight"].T + weights["fc8.bias"]
    temperature = base.centre.card["temperature"]
    expected = softmax(logits / temperature)
    size = float(np.abs(features).max() * np.linalg.norm(weights["fc8.weight"], axis=1).max()) / temperature
    atol = probability_rounding(2 * features.shape[1], expected, logits=size)
    served = infer(tmp_path / "mine", "fp32")(images(photos))
    np.testing.assert_allclose(served, expected, rtol=0, atol=atol)


def test_fc7_that_does_not_help_stays(photos, tmp_path, monkeypatch, capsys):
    """At a rate that destroys it: then everything is as with fc8 alone."""
    monkeypatch.setattr(hidden, "RATE", 10.0)
    write_base(tmp_path / "base", True)
    for layers in ("fc7", "fc8"):
        flags = ["--repository", tmp_path / "mine" / layers, "--from", tmp_path / "base", "--layers", layers]
        assert run(photos, *flags) == 0
    told = "fc7 stays as it was: no more of the 90 held-out photos are right with it than by chance"
    assert capsys.readouterr().out.splitlines()[0] == told
    files = (tmp_path / "mine" / layers / "alexnet.weights" for layers in ("fc7", "fc8"))
    both = [stored_arrays(file.read_bytes()) for file in files]
    assert both[0].keys() == both[1].keys()
    for name in both[0]:
        np.testing.assert_array_equal(both[0][name], both[1][name])


def test_the_best_epoch_is_the_one_that_is_kept(eager, monkeypatch):
    """Labels that hang on what fc7 throws away: there is something to learn."""
    monkeypatch.setattr(hidden, "RATE", 0.03)
    draw = np.random.default_rng(0)
    inputs = np.maximum(draw.standard_normal((200, 2, 12), np.float32), 0)
    labels = (inputs[:, :, 0].sum(1) > inputs[:, :, 1].sum(1)).astype(np.int64)
    fc7 = {"fc7.weight": np.zeros((12, 12), np.float32), "fc7.bias": np.zeros(12, np.float32)}
    fc7["fc7.weight"][2:] = draw.standard_normal((10, 12)) * (np.arange(12) > 1)
    fc7["fc7.bias"][:2] = 0.5
    features = np.maximum(inputs @ fc7["fc7.weight"].T + fc7["fc7.bias"], 0)
    splits = folds(labels, 1)
    solver = Fit(features, labels, 2)
    alone = choose(solver, splits)
    heads = [solver.head(solver.solve(learned, alone.penalty)) for learned, _ in splits]
    held, epochs = stop_early(Views(inputs, labels), splits, heads, fc7, alone, 1)
    assert 0 < epochs <= hidden.EPOCHS
    assert held.loss < alone.loss
    assert held.beats(alone)
    assert not alone.beats(held)
    assert not held.beats(held)
    again, same = stop_early(Views(inputs, labels), splits, heads, fc7, alone, 1)
    assert same == epochs
    np.testing.assert_array_equal(again.logits, held.logits)

    monkeypatch.setattr(HeldOut, "beats", lambda *_: False)
    assert stop_early(Views(inputs, labels), splits, heads, fc7, alone, 1) == (alone, 0)


@pytest.mark.parametrize(
    ("gained", "lost", "better"), [(4, 0, False), (5, 0, True), (8, 2, False), (9, 2, True), (2, 9, False)]
)
def test_what_chance_cannot_explain(gained, lost, better):
    """Of a fair coin thrown ``gained + lost`` times, more than two standard deviations."""

    def held(right):
        logits = np.zeros((40, 1, 2), np.float32)
        logits[np.arange(40), 0, np.where(right, 1, 0)] = 1
        return HeldOut(np.arange(40), np.ones(40, np.int64), logits, 0.1)

    photo = np.arange(40)
    before, after = held(photo >= gained), held((photo < 20) | (photo >= 20 + lost))
    assert after.beats(before) == better


def test_pytorch_is_missing(photos, tiny_repository, tmp_path):
    code = "import sys; sys.modules['torch'] = None\nfrom alexnet_train.cli import main; sys.exit(main())"
    flags = ["--repository", str(tmp_path / "mine"), "--from", str(tiny_repository), "--layers", "fc7"]
    command = [sys.executable, "-c", code, "finetune", str(photos), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "alexnet-train: --layers fc7 needs PyTorch: pip install '.[train]'\n"


def test_other_layers_are_refused(photos, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(photos, "--repository", tmp_path / "mine", "--layers", "fc6")
    assert ended.value.code == 2
    assert "argument --layers: invalid choice: 'fc6' (choose from " in capsys.readouterr().err
