"""The paper's artefacts: served checkpoints and ensembles, figures, ablations, tables."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from alexnet_server.models.variants import ABLATED, layers_of, variant_named
from alexnet_train import checkpoint
from alexnet_train.checkpoint import CheckpointError
from alexnet_train.cli import main
from alexnet_train.config import RECIPES, Config, ConfigError
from alexnet_train.data.dataset import open_split
from alexnet_train.evaluate.checkpoints import Served, evaluate_checkpoints
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.paper import ablate as ablating
from alexnet_train.paper import figures
from alexnet_train.paper.ablate import ABLATIONS, ablate, render
from alexnet_train.paper.figure1 import Figure1, epochs_to_target, figure1
from alexnet_train.paper.figures import draw_curves, kernels, nearest
from alexnet_train.run.log import LogError, read
from alexnet_train.run.loop import run
from tests.numerics import probability_rounding, terms

TINY = {
    "window": 99,
    "hidden": 64,
    "batch_size": 8,
    "epochs": 0,
    "steps": 2,
    "held_out": 16,
    "log_steps": 1,
    "checkpoint_steps": 2,
    "evaluate_epochs": 0,
}


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Checkpoints of two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        run(replace(RECIPES["2012-tiny"], seed=seed, **TINY), dataset, folder / str(seed))
    return [folder / "1/last.pt", folder / "2/last.pt"]


@pytest.mark.numerics
def test_served_probabilities_are_the_trained_networks_over_explicit_views(
    dataset: Path, runs: list[Path]
) -> None:
    split, state = open_split(dataset / "validation"), checkpoint.load(runs[0])
    served = Served.load(runs[0], 64)
    network = AlexNet(variant_named("2012"), 4, window=99, hidden=64)
    network.load_state_dict(state["model"])
    assert state["mean"].shape == (256, 256, 3)
    with torch.no_grad():
        crops = served.views.ten(torch.from_numpy(split.images[:3]))
        expected = network.eval()(crops).softmax(1).view(3, 10, 4).mean(1)
    found = served.probabilities(split.images[:3], ten=True)
    atol = probability_rounding(terms(state["model"]), expected.numpy())
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=atol)
    assert served.features(split.images[:3]).shape == (3, 64)
    assert served.features(split.images[:3]).min() >= 0


def test_an_ensemble_is_the_mean_of_its_members_probabilities(dataset: Path, runs: list[Path]) -> None:
    split = open_split(dataset / "validation")
    results = evaluate_checkpoints(runs, split, ten=False)
    assert set(results) == {str(runs[0]), str(runs[1]), "ensemble"}
    mean = sum(Served.load(path, 64).probabilities(split.images) for path in runs) / 2
    top1 = float((mean.argmax(1) == split.labels).mean())
    assert results["ensemble"]["top1"] == pytest.approx(top1, abs=1e-4)


def test_a_checkpoint_of_other_classes_is_named(dataset: Path, runs: list[Path]) -> None:
    split = open_split(dataset / "validation")
    more = replace(split, classes=[*split.classes, ("n9", "more")])
    with pytest.raises(CheckpointError, match="4 classes, the split has 5"):
        evaluate_checkpoints(runs[:1], more, ten=False)


def test_the_command_reports_each_the_ensemble_and_the_paper(
    dataset: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoints", *map(str, runs), "--data", str(dataset), "--views", "center"]) == 0
    out = capsys.readouterr().out
    assert "| ensemble | 32 |" in out
    assert "| five CNNs | ILSVRC-2012 validation | 38.1 % | 16.4 % |" in out


def test_figures_are_drawn_from_a_run(dataset: Path, runs: list[Path], tmp_path: Path) -> None:
    command = ["figures", "--checkpoint", str(runs[0]), "--data", str(dataset), "--out", str(tmp_path)]
    # Four classes cannot fill eight photos of different ones; the drawing repeats them.
    assert main(command) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "figure-3-kernels.png",
        "figure-4-predictions.png",
        "figure-4-neighbours.png",
        "curves.png",
    }
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 200


def test_kernels_keep_the_towers_apart_and_share_one_range() -> None:
    weight = np.zeros((96, 3, 11, 11), np.float32)
    weight[0], weight[95] = -1, 1
    picture = kernels(weight)
    assert picture.shape == (6 * 12 + 1 + 9, 16 * 12 + 1, 3)
    assert (picture[1:12, 1:12] == 0).all()
    assert (picture[-12:-1, -12:-1] == 1).all()
    assert (picture[1:12, 13:24] == 0.5).all()
    assert (picture[37:45] == 1).all()


def test_nearest_are_the_nearest() -> None:
    draw = np.random.default_rng(0)
    queries, pool = draw.normal(size=(3, 8)).astype(np.float32), draw.normal(size=(50, 8)).astype(np.float32)
    expected = [np.argsort(((pool - q) ** 2).sum(1))[:6] for q in queries]
    np.testing.assert_array_equal(nearest(queries, pool, 6), expected)


def test_curves_survive_a_line_cut_short_and_name_a_log_without_losses(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n{"step": 1, "loss": 5.3}\n{"step": 2, "loss": 5.2, "top1_error": 0.9, ')
    assert len(read(path)) == 2
    draw_curves([path], tmp_path / "curves.png")
    path.write_text('{"step": 0}\n')
    with pytest.raises(LogError, match="no loss in it yet"):
        draw_curves([path], tmp_path / "curves.png")


@pytest.mark.parametrize("classes", [5, 6])
def test_curves_and_tables_have_top_5_of_more_than_five_classes_alone(
    classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {}
    for ablation, top1 in ((ABLATIONS[0], 0.5), (ABLATIONS[1], 0.75)):
        errors = {"top1_error": top1} | ({"top5_error": top1 / 2} if classes > 5 else {})
        ends[ablation.name] = tmp_path / ablation.name.replace(" ", "-") / "1" / "log.jsonl"
        ends[ablation.name].parent.mkdir(parents=True)
        records = ({"step": 1, "loss": 2.0}, {"step": 1, **errors, "finished": True})
        ends[ablation.name].write_text("".join(json.dumps(record) + "\n" for record in records))
    whole, without = render(tmp_path).splitlines()[2:4]
    assert whole.split(" | ")[1:4] == (["50.0", "25.0", "0.0/0.0"] if classes > 5 else ["50.0", "–", "0.0/–"])
    assert without.split(" | ")[1:4] == (
        ["75.0", "37.5", "25.0/12.5"] if classes > 5 else ["75.0", "–", "25.0/–"]
    )
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "_save", lambda figure, _path: drawn.append(figure))
    draw_curves(list(ends.values()), tmp_path / "curves.png")
    right = drawn[0].axes[1]
    assert len(right.lines) == 2 * (1 + (classes > 5))
    figures._pyplot().close(drawn[0])


def test_epochs_to_the_target_are_interpolated() -> None:
    assert epochs_to_target([0.9, 0.5, 0.0]) == pytest.approx(1.5)
    assert epochs_to_target([0.9, 0.5]) == float("inf")


def test_figure_1_finds_relu_faster_on_an_easy_set(dataset: Path, tmp_path: Path) -> None:
    config = Figure1(classes=4, images=96, batch_size=32, epochs=4, rates=(0.01,))
    results = figure1(open_split(dataset / "train"), tmp_path, config)
    assert (tmp_path / "figure-1.png").exists()
    saved = json.loads((tmp_path / "figure-1.json").read_text())
    assert saved["relu"]["errors"] == results["relu"]["errors"]
    errors = results["relu"]["errors"]
    assert isinstance(errors, list)
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("name", ABLATED)
def test_ablated_networks_run(name: str) -> None:
    variant = variant_named(name)
    network = AlexNet(variant, 10, hidden=64, window=99)
    network.initialise(torch.Generator().manual_seed(0))
    assert network(torch.randn(1, 3, 99, 99) * 70).shape == (1, 10)
    assert ("conv4.weight" in dict(network.named_parameters())) == ("conv4" in layers_of(variant))


def test_ablations_run_once_and_make_a_table(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablating, "ABLATIONS", (ABLATIONS[0], ABLATIONS[1], ABLATIONS[7]))
    config = replace(RECIPES["2012-tiny"], **TINY)
    table = ablate(config, dataset, tmp_path, seeds=2).read_text()
    lines = table.splitlines()
    assert lines[2].startswith("| whole |")
    assert lines[3].startswith("| without LRN |")
    assert "1.4/1.2 (3.3)" in lines[3]
    assert "±" in lines[2]
    assert len(lines) == 5

    def again(*_: object) -> None:
        raise AssertionError("a finished run was repeated")

    monkeypatch.setattr(ablating, "run", again)
    ablate(config, dataset, tmp_path, seeds=2)
    assert render(tmp_path) == table


@pytest.mark.parametrize("config", [RECIPES["modern-tiny"], replace(RECIPES["2012-tiny"], variant="owt")])
def test_ablations_refuse_recipes_that_hide_what_they_measure(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without batch norm"):
        ablate(config, tmp_path, tmp_path, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("update=adam", "update=adam: choose one of 2012, sgd"),
        ("batch_size=0", "must be at least 1"),
        ("batch_size=many", "takes int values"),
        ("stages=1", "no single number"),
        ("window=300", "crops come out of 256 pixels"),
    ],
)
def test_settings_no_run_can_be_made_of_are_named(
    change: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status = main(["run", "2012", "--data", str(tmp_path), "--out", str(tmp_path), "--set", change])
    assert status == 1
    assert message in capsys.readouterr().err
