"""Checkpoints of ``run`` as a server loads them: one, and several averaged in one graph."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from alexnet_server.models.repository import read_repository
from alexnet_server.models.unpack import ensure_unpacked, unpack
from alexnet_server.models.variants import VARIANTS
from alexnet_train import checkpoint
from alexnet_train.checkpoint import CheckpointError
from alexnet_train.cli import main
from alexnet_train.config import Config
from alexnet_train.data.dataset import write_meta
from alexnet_train.evaluate.checkpoints import Served
from alexnet_train.export import checkpoints as exporting
from alexnet_train.network.alexnet import AlexNet
from tests.numerics import logits_size, probability_rounding, rounding, terms

pytestmark = pytest.mark.numerics
CLASSES = [("n1", "one"), ("n2", "two"), ("n3", "three")]
CONFIG = Config("2012-tiny", update="2012", mean="image", hidden=64)


def written(path: Path, seed: int, config: Config = CONFIG, **more: object) -> Path:
    """A checkpoint as ``run`` writes it, of a network that was not trained."""
    network = AlexNet(VARIANTS["2012"], 3, hidden=64, batch_norm=config.batch_norm)
    network.initialise(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        network.fc8.weight.mul_(20)
    mean = torch.rand(256, 256, 3, generator=torch.Generator().manual_seed(9)) * 255
    mean = mean.half().float()  # as the weight file keeps it
    more = {"mean": mean, "classes": CLASSES, "size": 256, "schedule": {}, **more}
    checkpoint.save(path, config, 1, network.state_dict(), {}, **more)
    return path


def run_graph(path: Path, images: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["probabilities", "features"], {"images": images})


def same(found: list[np.ndarray], expected: list[np.ndarray], path: Path) -> None:
    """Probabilities and features of a network of the checkpoint's size."""
    state = checkpoint.load(path)["model"]
    count, size = terms(state), logits_size(state["fc8.weight"], expected[1])
    atol = probability_rounding(count, expected[0], logits=size)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=atol)
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=rounding(count, expected[1]))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_an_exported_checkpoint_is_the_network(batch_norm: bool, images: np.ndarray, tmp_path: Path) -> None:
    path = written(tmp_path / "last.pt", 1, replace(CONFIG, batch_norm=batch_norm, input_scale=60.0))
    assert main(["export", str(path), "--repository", str(tmp_path / "repository")]) == 0
    unpack(read_repository(tmp_path / "repository"), "fp32")
    served = Served.load(path, 256, torch.device("cpu"))
    for model, ten in (("alexnet", False), ("alexnet_10crop", True)):
        found = run_graph(tmp_path / "repository" / model / "1/model.onnx", images)
        same(found, [served.probabilities(images, ten), served.features(images)], path)


def test_several_checkpoints_are_averaged_in_one_graph(images: np.ndarray, tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{seed}.pt", seed) for seed in (1, 2)]
    assert main(["export", *map(str, paths), "--repository", str(tmp_path / "repository")]) == 0
    repository = read_repository(tmp_path / "repository")
    assert set(repository.models) == {"alexnet", "alexnet_10crop", "alexnet_dense"}
    members = [Served.load(path, 256, torch.device("cpu")) for path in paths]
    for model, ten in (("alexnet", False), ("alexnet_10crop", True)):
        found = run_graph(repository.models[model].onnx, images)
        each = [member.probabilities(images, ten) for member in members]
        assert np.abs(each[0] - each[1]).max() > 1e-3
        same(found, [(each[0] + each[1]) / 2, members[0].features(images)], paths[0])


def test_networks_of_other_classes_are_not_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = written(tmp_path / "1.pt", 1)
    other = written(tmp_path / "2.pt", 2, classes=[*CLASSES[:2], ("n9", "nine")])
    assert main(["export", str(one), str(other), "--repository", str(tmp_path / "repository")]) == 1
    assert f"{other} has other classes than {one}" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def test_a_network_of_smaller_windows_is_not_served(tmp_path: Path) -> None:
    path = written(tmp_path / "last.pt", 1, replace(CONFIG, window=128))
    from alexnet_train.export.checkpoints import load

    with pytest.raises(CheckpointError, match="windows of 128 pixels, and 2012 serves 224"):
        load(path, "x")


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({"activation": "tanh"}, "trained with activation tanh"),
        ({"variant": "2012-no-overlap"}, "layers the serving graph does not have"),
        ({"variant": "2012-no-conv4"}, "layers the serving graph does not have"),
    ],
)
def test_what_the_serving_graph_cannot_express_is_refused(
    changes: dict[str, str], mend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "last.pt", 1, replace(CONFIG, **changes))  # type: ignore[arg-type]
    assert main(["export", str(path), "--repository", str(tmp_path / "repository")]) == 1
    message = capsys.readouterr().err
    assert mend in message
    assert message.count("\n") == 1
    assert not (tmp_path / "repository").exists()


def test_an_export_that_is_not_its_checkpoints_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "last.pt", 1)
    folded = exporting.serving_weights
    monkeypatch.setattr(
        exporting, "serving_weights", lambda *a: folded(*a) | {"conv1.bias": np.ones(96, "f")}
    )
    assert main(["export", str(path), "--repository", str(tmp_path / "repository")]) == 1
    assert "differs from the network by up to" in capsys.readouterr().err


def test_exports_into_one_folder_replace_each_other(tmp_path: Path) -> None:
    paths = [str(written(tmp_path / f"{seed}.pt", seed)) for seed in (1, 2)]
    folder = tmp_path / "repository"
    for given, weight_file in ((paths[:1], True), (paths, False), (paths[1:], True)):
        assert main(["export", *given, "--repository", str(folder)]) == 0
        repository = read_repository(folder)
        assert (repository.weight_file is not None) == weight_file
        assert repository.card["precisions"]
        ensure_unpacked(repository, ("fp32",))
        assert (folder / "README.md").read_text().startswith("# alexnet")


def test_a_cards_unknown_entry_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "card.json").write_text('{"titel": "x"}')
    command = ["export", str(written(tmp_path / "last.pt", 1)), "--repository", str(tmp_path / "repository")]
    assert main([*command, "--card", str(tmp_path / "card.json")]) == 1
    message = capsys.readouterr().err
    assert "card.json: " in message
    assert "'titel'; a card has title, summary" in message


@pytest.mark.parametrize("members", [1, 2])
def test_what_export_wrote_can_be_evaluated_as_it_is(
    members: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(written(tmp_path / f"{seed}.pt", seed)) for seed in range(members)]
    folder, split = tmp_path / "repository", tmp_path / "photos"
    assert main(["export", *paths, "--repository", str(folder)]) == 0
    split.mkdir()
    draw = np.random.default_rng(1)
    np.save(split / "images.npy", draw.integers(0, 256, (4, 256, 256, 3), np.uint8))
    np.save(split / "labels.npy", np.array([0, 1, 2, 0]))
    write_meta(split, CLASSES, 4, 256, None)
    command = ["evaluate", "--repository", str(folder), "--data", str(split), "--name", "four", "--record"]
    assert main([*command, "--model", "alexnet", "--out", str(tmp_path / "tables")]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (row["set"], row["views"], row["precision"], row["images"]) == ("four", "center", "fp32", 4)
    assert json.loads((folder / "card.json").read_text())["accuracy"] == [row]
    assert "four" in (folder / "README.md").read_text()
    assert (tmp_path / "tables/alexnet-fp32.tsv").read_text().startswith("wnid\twords\timages\ttop1\n")
