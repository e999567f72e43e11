"""Where runs start: folded weights of a model repository with their batch norms put back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet_server.models.export.card import Card
from alexnet_server.models.export.weights import ServingWeights, random_weights, scaled
from alexnet_server.models.export.write import Plan, export
from alexnet_server.models.variants import VARIANTS, parameter_shapes
from alexnet_train import checkpoint
from alexnet_train.cli import main
from alexnet_train.config import RECIPES, ConfigError
from alexnet_train.data.dataset import open_split
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.run import loop
from alexnet_train.run.loop import Training, run
from alexnet_train.run.parallel import Workers
from alexnet_train.run.start import repository_weights, start_from
from alexnet_train.two_stage.assemble import join
from alexnet_train.two_stage.features import load_convolutions

SHIPPED = Path(__file__).parents[2] / "model_repository"
CONFIG = RECIPES["modern-tiny"]


@pytest.fixture(scope="module")
def weights() -> ServingWeights:
    return random_weights(scaled(VARIANTS["2012"], 8, 16), 4)


@pytest.fixture(scope="module")
def repository(weights: ServingWeights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "repository"
    export(Plan(weights, Card("t", "s", "d", "r", "l"), {}), folder)
    return folder


def crops() -> torch.Tensor:
    return 50 * torch.randn(6, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def unfolded_network(repository: Path, weights: ServingWeights) -> AlexNet:
    network = AlexNet(weights.variant, 4, batch_norm=True, dropout=0.0)
    network.initialise(torch.Generator().manual_seed(0))
    start_from(repository, network, CONFIG, [crops() / CONFIG.input_scale])
    return network


def test_an_unfolded_repository_is_the_network_it_serves(repository: Path, weights: ServingWeights) -> None:
    served = AlexNet(weights.variant, 4, dropout=0.0).eval()
    served.load_state_dict({name: torch.tensor(tensor) for name, tensor in weights.tensors.items()})
    network = unfolded_network(repository, weights)
    with torch.no_grad():
        expected = served(crops())
        measured = network.eval()(crops() / CONFIG.input_scale)
        by_batch = network.train()(crops() / CONFIG.input_scale)
    torch.testing.assert_close(measured, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    torch.testing.assert_close(by_batch, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


def test_unfolded_rows_have_the_norm_of_fresh_ones(repository: Path, weights: ServingWeights) -> None:
    network = unfolded_network(repository, weights)
    for name in ("conv1", "conv4", "fc7"):
        norms = network.layer(name).weight.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, 2**0.5))


def test_the_shipped_repository_gives_every_layer() -> None:
    tensors = repository_weights(SHIPPED)
    assert {name: tensor.shape for name, tensor in tensors.items()} == parameter_shapes(VARIANTS["2012"], 200)


def test_a_run_starts_from_the_shipped_repository(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "STATISTICS_IMAGES", 8)
    config = replace(RECIPES["tiny-convolutions"], steps=0, batch_size=8, hidden=8, held_out=8)
    group = Workers("none", 0, 1, torch.device("cpu"))
    training = Training(config, open_split(dataset / "train"), tmp_path, group, SHIPPED)
    assert capsys.readouterr().err == f"took 5 of 8 layers of {SHIPPED}; fc6, fc7, fc8 start afresh\n"
    other = Workers("data", 1, 2, torch.device("cpu"))
    Training(config, open_split(dataset / "train"), tmp_path, other, SHIPPED)
    assert capsys.readouterr().err == "", "of several ranks one tells it"
    shipped, _ = load_convolutions(SHIPPED)
    with torch.no_grad():
        x = 50 * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
        started = training.network.eval().pool5(x / config.input_scale)
        served = shipped.float().pool5(x)
    assert torch.corrcoef(torch.stack([started.flatten(), served.flatten()]))[0, 1] > 0.99  # bfloat16


def test_a_stopped_average_has_the_statistics_of_its_weights(dataset: Path, tmp_path: Path) -> None:
    config = replace(
        CONFIG, window=99, hidden=16, batch_size=8, epochs=0, steps=3, held_out=0, bfloat16=False
    )
    run(config, dataset, tmp_path)
    saved = checkpoint.load(tmp_path / "last.pt")["average"]
    group = Workers("none", 0, 1, torch.device("cpu"))
    training = Training(config, open_split(dataset / "train"), tmp_path, group, None)
    assert training.average is not None
    training.average.recompute_statistics(training._statistics_batches())
    for name, again in training.average.network.state_dict().items():
        torch.testing.assert_close(saved[name], again, msg=name)
    assert not torch.equal(saved["norm_conv1.running_var"], torch.ones(96))


def test_stage_two_reads_the_average(stages: Path, tmp_path: Path) -> None:
    state = checkpoint.load(stages / "convolutions/last.pt")
    average = {name: tensor.clone() for name, tensor in state["model"].items()}
    average["conv5.weight"] *= 2
    torch.save(state | {"average": average}, tmp_path / "last.pt")
    plain, _ = load_convolutions(stages / "convolutions/last.pt")
    doubled, _ = load_convolutions(tmp_path / "last.pt")
    torch.testing.assert_close(doubled.layer("conv5").weight, 2 * plain.layer("conv5").weight)
    joined, _ = join(tmp_path / "last.pt", stages / "classifier/last.pt")
    np.testing.assert_allclose(joined["conv5.weight"], doubled.layer("conv5").weight.detach().numpy())


def test_an_average_without_statistics_is_refused(stages: Path) -> None:
    state = checkpoint.load(stages / "convolutions/last.pt")
    fresh = {
        name: torch.zeros_like(tensor) if name.endswith("num_batches_tracked") else tensor
        for name, tensor in state["model"].items()
    }
    with pytest.raises(checkpoint.CheckpointError, match="resume its run for one update"):
        checkpoint.serving_state(state | {"average": fresh})


def test_a_run_goes_on_from_a_kept_checkpoint(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STATISTICS_IMAGES", 16)
    config = replace(
        CONFIG, window=99, hidden=16, batch_size=8, epochs=0, steps=2, held_out=8, bfloat16=False
    )
    run(config, dataset, tmp_path / "whole")
    assert main(["keep", str(tmp_path / "whole/last.pt"), "--out", str(tmp_path / "on/last.pt")]) == 0
    size, kept_size = ((tmp_path / name / "last.pt").stat().st_size for name in ("whole", "on"))
    assert kept_size < size / 10  # raw weights, average and velocities, in four bytes each, were there
    group, split = Workers("none", 0, 1, torch.device("cpu")), open_split(dataset / "train")
    whole, on = (Training(config, split, tmp_path / name, group, None) for name in ("whole", "on"))
    assert on.done == whole.done == 2
    assert whole.average is not None
    expected = whole.average.network.state_dict()
    for name, tensor in on.network.state_dict().items():
        step = expected[name].abs().max().item() / 127
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=step / 2 + 1e-6, msg=name)
    run(replace(config, steps=3), dataset, tmp_path / "on")
    assert checkpoint.load(tmp_path / "on/last.pt")["step"] == 3


def test_what_is_no_checkpoint_is_named(dataset: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, window=99, hidden=16, batch_size=8, epochs=0, steps=1, held_out=8)
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    for name in ("tensor.pt", "other.pt"):
        with pytest.raises(checkpoint.CheckpointError, match=f"{name}: a file of tensors, but not a"):
            run(config, dataset, tmp_path / "out", init=tmp_path / name)


def test_a_finished_run_started_again_adds_no_line(dataset: Path, tmp_path: Path) -> None:
    config = replace(RECIPES["2012-tiny"], window=99, hidden=16, batch_size=8, epochs=0, steps=1, held_out=8)
    run(config, dataset, tmp_path)
    before = (tmp_path / "log.jsonl").read_text()
    run(config, dataset, tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == before


def test_a_share_that_cannot_be_paired_is_refused_before_training(dataset: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, window=99, hidden=16, batch_size=6, epochs=0, steps=1, held_out=8)
    group = Workers("data", 0, 2, torch.device("cpu"))
    with pytest.raises(
        ConfigError, match="3 images a process, and mixing pairs them: use --set batch_size=8"
    ):
        Training(config, open_split(dataset / "train"), tmp_path, group, None)
