"""Where runs start: folded weights of a model repository with their batch norms put back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet_train import checkpoint
from alexnet_train.config import RECIPES
from alexnet_train.data.dataset import open_split
from alexnet_train.export.card import Card
from alexnet_train.export.repository import Plan, export
from alexnet_train.export.weights import ServingWeights, random_weights, scaled
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.variants import VARIANTS
from alexnet_train.run.loop import Training, run
from alexnet_train.run.parallel import Workers
from alexnet_train.run.start import start_from
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


def test_a_run_starts_from_the_shipped_repository(dataset: Path, tmp_path: Path) -> None:
    config = replace(RECIPES["tiny-convolutions"], steps=1, batch_size=8, hidden=8, held_out=8, rate=0.0)
    run(config, dataset, tmp_path, init=SHIPPED)
    started, _ = load_convolutions(tmp_path / "last.pt", 4)
    shipped, _ = load_convolutions(SHIPPED, 4)
    kept, given = (net.layer("conv3").weight.float() for net in (started, shipped))
    # One update at a rate of 0 moves the running statistics by a tenth and the weights not at all.
    assert torch.corrcoef(torch.stack([kept.flatten(), given.flatten()]))[0, 1] > 0.99


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
    plain, _ = load_convolutions(stages / "convolutions/last.pt", 4)
    doubled, _ = load_convolutions(tmp_path / "last.pt", 4)
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
