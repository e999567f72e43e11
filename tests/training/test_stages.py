"""The CPU's two stages, end to end on a few images: run, features, classifier, join, served graph."""

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from staged import RECIPE, SMALL

from alexnet_server.models.export.graph import serving_graph
from alexnet_server.models.export.weights import ServingWeights
from alexnet_server.models.graphs import fill
from alexnet_server.models.variants import VARIANTS, parameter_shapes
from alexnet_train import checkpoint
from alexnet_train.data.dataset import DatasetError, open_split
from alexnet_train.data.enlarge import enlarge
from alexnet_train.run.augment import Augmenter, Colour
from alexnet_train.run.loop import DivergedError, run
from alexnet_train.two_stage.assemble import join
from alexnet_train.two_stage.classifier import Classifier, Features, train
from alexnet_train.two_stage.features import extract, load_convolutions
from tests.numerics import rounding, terms


def test_both_stages_write_their_logs(stages: Path) -> None:
    for folder, kind in (("convolutions", "top1_error"), ("classifier", "ten_top1_error")):
        log = (stages / folder / "log.jsonl").read_text()
        assert kind in log
        assert "top5" not in log, "five guesses at four classes are always right"


@pytest.mark.numerics
def test_cached_features_are_pool5_to_half_a_level(stages: Path, dataset: Path) -> None:
    split, cache = open_split(dataset / "train"), Features(stages / "features")
    network, _ = load_convolutions(stages / "convolutions/last.pt")
    assert split.statistics is not None
    augmenter = Augmenter(64, 224, split.statistics, Colour(), torch.device("cpu"))
    views = augmenter.ten(torch.from_numpy(split.images[-32:-30]))
    with torch.no_grad():
        pooled = network.pool5(views).flatten(1)
    cached = cache.dequantise(np.asarray(cache.held_out["crops"][:20]))
    ceiling = cache.scale * 255
    half = cache.scale / 2 + rounding(terms(network.state_dict()), ceiling)
    assert ((cached - torch.minimum(pooled, ceiling)).abs() <= half).all()


@pytest.mark.numerics
def test_cached_windows_are_what_the_dense_graph_cuts(stages: Path, dataset: Path) -> None:
    split, cache = open_split(dataset / "train"), Features(stages / "features")
    tensors, _ = join(stages / "convolutions/last.pt", stages / "classifier/last.pt")
    assert split.statistics is not None
    mean = np.array(split.statistics.mean, np.float32)
    weights = ServingWeights("stages", VARIANTS["2012"], tensors, mean, tuple(split.classes))
    graph = fill(serving_graph(weights.architecture, "dense"), weights.served())
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (served,) = session.run(["probabilities"], {"images": enlarge(split.images[-32:-30])})
    model = Classifier(9216, 4, SMALL).eval()
    model.load_state_dict(checkpoint.load(stages / "classifier/last.pt")["model"])
    with torch.no_grad():
        views = model(cache.dequantise(cache.held_out["windows"][:20])).softmax(1).reshape(2, 10, 4)
    np.testing.assert_allclose(served, views.mean(1).numpy(), atol=0.02)
    assert len(np.unique(views.numpy().round(4)[0], axis=0)) == 10, "ten different windows"


def test_epochs_change_the_kind_of_view(stages: Path) -> None:
    cache = Features(stages / "features")
    index = torch.arange(8)
    first, second, third, fifth = (cache.batch(index, epoch) for epoch in (0, 1, 2, 4))
    crops, windows = cache.kinds
    torch.testing.assert_close(first[0::2], cache.dequantise(crops[0][0:8:2]))
    torch.testing.assert_close(first[1::2], cache.dequantise(windows[0][1:8:2]))
    torch.testing.assert_close(second[0::2], cache.dequantise(windows[0][0:8:2]))
    torch.testing.assert_close(third[1::2], cache.dequantise(windows[1][1:8:2]))
    assert torch.equal(first, fifth)


def test_alternating_images_have_one_kind_each(stages: Path, dataset: Path, tmp_path: Path) -> None:
    for name in ("held_out.npy", "held_out_windows.npy"):
        (tmp_path / name).symlink_to(stages / "features" / name)
    extract(stages / "convolutions/last.pt", dataset, tmp_path, crops=1, windows=2, alternate=True)
    cache = Features(tmp_path)
    crops, windows = cache.kinds
    assert len(crops[0]) == len(windows[0]) == len(windows[1]) == cache.count // 2
    for epoch in (0, 1):
        batch = cache.batch(torch.arange(6), epoch)
        torch.testing.assert_close(batch[0::2], cache.dequantise(crops[0][:3]))
        torch.testing.assert_close(batch[1::2], cache.dequantise(windows[epoch][:3]))
    with pytest.raises(DatasetError, match=r"another run \(alternate differ\)"):
        extract(stages / "convolutions/last.pt", dataset, tmp_path, crops=1, windows=2)


def test_missing_features_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"meta\.json is missing; `alexnet-train features`"):
        Features(tmp_path)


@pytest.mark.numerics
def test_joined_weights_are_both_stages_network(stages: Path, dataset: Path) -> None:
    weights, factors = join(stages / "convolutions/last.pt", stages / "classifier/last.pt")
    assert {n: w.shape for n, w in weights.items()} == parameter_shapes(VARIANTS["2012"], 4)
    product = factors["fc6"][0].astype(np.float64) @ factors["fc6"][1]
    atol = rounding(len(factors["fc6"][1]), product)
    np.testing.assert_allclose(product, weights["fc6.weight"], rtol=0, atol=atol)
    model = Classifier(9216, 4, SMALL).eval()
    model.load_state_dict(checkpoint.load(stages / "classifier/last.pt")["model"])
    x = torch.rand(3, 9216, generator=torch.Generator().manual_seed(0))
    served = x
    for name in ("fc6", "fc7"):
        served = torch.relu(
            served @ torch.from_numpy(weights[f"{name}.weight"]).T + torch.from_numpy(weights[f"{name}.bias"])
        )
    served = served @ torch.from_numpy(weights["fc8.weight"]).T + torch.from_numpy(weights["fc8.bias"])
    expected = model(x).detach()
    torch.testing.assert_close(served, expected, rtol=0, atol=rounding(terms(weights), expected))


def test_a_stopped_run_resumes_bit_for_bit(stages: Path, dataset: Path, tmp_path: Path) -> None:
    run(dataclasses.replace(RECIPE, steps=2, decay_steps=0), dataset, tmp_path)
    half = checkpoint.load(tmp_path / "last.pt")
    assert half["step"] == 2
    run(RECIPE, dataset, tmp_path)
    resumed = checkpoint.load(tmp_path / "last.pt")
    whole = checkpoint.load(stages / "convolutions/last.pt")
    assert resumed["step"] == whole["step"] == 4
    for kind in ("model", "velocity"):
        for name, tensor in whole[kind].items():
            assert torch.equal(resumed[kind][name], tensor), name


def test_full_weights_are_joined_as_they_are(stages: Path, dataset: Path, tmp_path: Path) -> None:
    full = dataclasses.replace(SMALL, fc6_rank=0, fc7_rank=0, hidden=4096, epochs=1)
    train(stages / "features", dataset, tmp_path, full)
    weights, factors = join(stages / "convolutions/last.pt", tmp_path / "last.pt")
    assert factors == {}
    assert {n: w.shape for n, w in weights.items()} == parameter_shapes(VARIANTS["2012"], 4)


def test_a_stopped_classifier_resumes_bit_for_bit(stages: Path, dataset: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    saved = checkpoint.save

    def save_once(*arguments: object) -> None:
        saved(*arguments)  # type: ignore[arg-type]
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_once)
        with pytest.raises(Stop):
            train(stages / "features", dataset, tmp_path, SMALL)
    train(stages / "features", dataset, tmp_path, SMALL)
    whole, resumed = (checkpoint.load(p / "last.pt") for p in (stages / "classifier", tmp_path))
    for name, tensor in whole["model"].items():
        assert torch.equal(resumed["model"][name], tensor), name


def test_a_classifier_of_another_rank_is_not_gone_on_with(stages: Path, dataset: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="fc6_rank 8 there, 4 here"):
        train(stages / "features", dataset, stages / "classifier", dataclasses.replace(SMALL, fc6_rank=4))


def test_a_classifier_that_diverges_keeps_its_last_checkpoint(
    stages: Path, dataset: Path, tmp_path: Path
) -> None:
    train(stages / "features", dataset, tmp_path, dataclasses.replace(SMALL, epochs=1))
    state = checkpoint.load(tmp_path / "last.pt")
    state["model"]["fc8.bias"][0] = float("nan")
    torch.save(state, tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(DivergedError, match=r"the loss of update 5 is not a number, at rate 0\.0"):
        train(stages / "features", dataset, tmp_path, SMALL)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_features_fewer_than_a_batch_are_named(stages: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="64 images, fewer than a batch of 256: use --set batch_size=N"):
        train(stages / "features", dataset, tmp_path, dataclasses.replace(SMALL, batch_size=256))


def test_features_are_of_the_classes_their_convolutions_were_trained_on(
    stages: Path, dataset: Path, tmp_path: Path
) -> None:
    state = checkpoint.load(stages / "convolutions/last.pt")
    state["config"] |= {"classes": 2, "held_out": 2}
    torch.save(state, tmp_path / "last.pt")
    extract(tmp_path / "last.pt", dataset, tmp_path, crops=1, windows=0)
    labels = open_split(dataset / "train").labels
    cache = Features(tmp_path)
    assert cache.count == (labels < 2).sum() - 2
    assert cache.classes == 2
