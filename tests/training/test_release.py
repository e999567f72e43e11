"""Two stages' checkpoints to a model repository, measured and compared: the documented commands."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from alexnet_train.cli import main
from alexnet_train.two_stage.compare import paired

CARD = Path(__file__).parents[2] / "training/cards/tiny-imagenet.json"


def release(stages: Path, dataset: Path, repository: Path, card: Path) -> list[str]:
    command = ["release", "--card", str(card), "--repository", str(repository), "--data", str(dataset)]
    for stage in ("convolutions", "classifier"):
        command += [f"--{stage}", str(stages / stage / "last.pt")]
    return [*command, "--features", str(stages / "features")]


@pytest.fixture(scope="module")
def released(stages: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "repository"
    assert main([*release(stages, dataset, folder, CARD), "--name", "mine"]) == 0
    return folder


def arguments(released: Path, stages: Path, dataset: Path) -> list[str]:
    checkpoints = [f"--{s}={stages / s / 'last.pt'}" for s in ("convolutions", "classifier")]
    return ["compare", f"--repository={released}", *checkpoints, f"--data={dataset}/validation"]


def test_a_release_costs_its_network_next_to_nothing(
    released: Path, stages: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(released, stages, dataset)
    assert main([*command, "--precision=fp32", "--model=alexnet", "--model=alexnet_dense"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["views"] for row in rows] == ["center", "dense"]
    for row in rows:
        assert row["images"] == 32
        assert abs(row["difference"]) <= 1 / 32  # eight bits a weight: one image in 32 may stand on the edge
        low, high = row["difference_interval"]
        assert low <= row["difference"] <= high


def test_a_release_is_called_as_it_is_told(released: Path) -> None:
    assert json.loads((released / "card.json").read_text())["name"] == "mine"


def test_a_cards_unknown_entry_is_named_before_anything_is_done(
    stages: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "card.json").write_text('{"titel": "x"}')
    assert main(release(stages, dataset, tmp_path / "repository", tmp_path / "card.json")) == 1
    message = capsys.readouterr().err
    assert "'titel'; a card has title, summary" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "repository").exists()


def test_another_networks_classes_are_refused(
    released: Path, stages: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "repository"
    shutil.copytree(Path(__file__).parents[2] / "model_repository", other)
    assert main(arguments(other, stages, dataset)) == 1
    assert "4 classes" in capsys.readouterr().err


def test_an_unknown_model_is_named(
    released: Path, stages: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(released, stages, dataset), "--precision=fp32", "--model=alexnt"]) == 1
    assert "no model 'alexnt'; there are alexnet, alexnet_10crop" in capsys.readouterr().err


def test_pairs_are_counted_by_hand() -> None:
    served = np.array([True] * 60 + [False] * 40)
    network = np.array([True] * 55 + [False] * 45)  # differs in five images, all to the served one's favour
    result = paired(served, network)
    assert (result["served_top1"], result["network_top1"], result["difference"]) == (0.6, 0.55, 0.05)
    low, high = result["difference_interval"]
    assert 0.0 <= low < 0.03 < 0.07 < high < 0.12  # five of a hundred, +- two standard deviations of .022
