"""Faults planted in the shipped network: what three photos show, and what the structure shows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from caffe_files import _varint, first_generation
from importing import run, zoo_model

from alexnet_server.models.export.weights import ServingWeights
from alexnet_server.models.public.errors import WeightsError
from alexnet_server.models.public.network import CAFFE_MEAN, TORCHVISION_STD
from alexnet_server.models.public.proof import check_mean, prove
from alexnet_server.models.public.torchvision import MODULES
from alexnet_server.models.repository import read_repository
from alexnet_server.models.variants import LAYERS, VARIANTS, ResponseNorm
from alexnet_server.models.weights import read_weights, tensor

PARTS = ("weight", "bias")
SHIPPED = Path(__file__).parents[2] / "model_repository"


@pytest.fixture(scope="module")
def shipped():
    repository = read_repository(SHIPPED)
    stored = read_weights(repository.weight_file)
    tensors = {f"{layer}.{kind}": tensor(stored, f"{layer}.{kind}") for layer in LAYERS for kind in PARTS}
    mean = stored["mean"].reshape(3)
    return ServingWeights("shipped", VARIANTS["2012"], tensors, mean, repository.models["alexnet"].labels)


def swapped(weights):
    conv1 = np.ascontiguousarray(weights.tensors["conv1.weight"][:, ::-1])
    return replace(weights, tensors={**weights.tensors, "conv1.weight": conv1})


def shifted(weights, by=1):
    rolled = {name: np.roll(weights.tensors[name], by, axis=0) for name in ("fc8.weight", "fc8.bias")}
    return replace(weights, tensors={**weights.tensors, **rolled})


def test_the_shipped_network_recognises_the_photos(shipped):
    lines = prove(shipped)
    assert lines[0].startswith("coffee.jpg: espresso 0.")
    assert lines[1].startswith("cat.jpg: ")
    assert lines[-1] == "all three photos are recognised"


def test_swapped_channels_are_shown_by_the_photos(shipped):
    with pytest.raises(WeightsError, match="red and blue exchanged"):
        prove(swapped(shipped))


@pytest.mark.parametrize("by", [-1, 1, 20])
def test_shifted_classes_are_shown_by_the_photos(shipped, by):
    with pytest.raises(WeightsError, match=r"one place off|does not recognise"):
        prove(shifted(shipped, by))


@pytest.mark.parametrize(
    "mean", [np.zeros(3), CAFFE_MEAN[::-1], CAFFE_MEAN / 255, np.full(3, np.nan), np.full(3, 200)]
)
def test_a_wrong_mean_is_shown_by_the_mean_alone(mean):
    """The photos do not show it: with no mean at all, the shipped network finds the rocket more easily."""
    with pytest.raises(WeightsError, match="the mean"):
        check_mean(mean.astype(np.float32), "here")
    check_mean(CAFFE_MEAN, "here")
    check_mean(np.broadcast_to(CAFFE_MEAN[:, None, None], (3, 256, 256)), "here")


def test_photos_do_not_show_a_wrong_mean(shipped):
    assert prove(replace(shipped, mean=shipped.mean[::-1].copy()))[-1] == "all three photos are recognised"


# Whole files: 230 MB each.


def as_caffemodel(weights, path):
    """Caffe's norms, with the constants of 2012, which the file tells."""
    fields = ((2, 1e-4), (3, 0.75), (5, 2.0))
    norm = b"".join(_varint(field << 3 | 5) + np.float32(value).tobytes() for field, value in fields)
    bgr = swapped(weights).tensors
    path.write_bytes(first_generation(dict(bgr), _varint(1 << 3) + _varint(5) + norm))


def as_onnx(weights, path):
    lrn = ResponseNorm(k=2.0, alpha=1e-4 / 5)
    bgr = swapped(replace(weights, variant=replace(VARIANTS["caffe"], crop=224, lrn=lrn)))
    model = zoo_model(bgr)
    for node in model.graph.node:
        if node.op_type == "LRN":
            next(a for a in node.attribute if a.name == "bias").f = 2.0
    onnx.save(model, path)


def as_pth(weights, path):
    """torchvision's layers: one group, and no norm, which for small activations is a factor of 2 ** -.75."""
    state = {}
    for layer, module, groups in zip(LAYERS, MODULES, (1, 2, 1, 2, 2, 1, 1, 1), strict=True):
        weight, bias = (weights.tensors[f"{layer}.{kind}"] for kind in ("weight", "bias"))
        if groups == 2:
            half, zeros = len(weight) // 2, np.zeros_like(weight[: len(weight) // 2])
            first, second = weight[:half], weight[half:]
            weight = np.concatenate([np.hstack([first, zeros]), np.hstack([zeros, second])])
        factor = 2**-0.75 if layer in ("conv1", "conv2") else 1.0
        if layer == "conv1":
            weight = weight * TORCHVISION_STD.reshape(1, 3, 1, 1)
        for kind, value in (("weight", weight), ("bias", bias)):
            state[f"{module}.{kind}"] = torch.from_numpy(value * np.float32(factor))
    torch.save(state, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "name"), [(as_caffemodel, "x.caffemodel"), (as_onnx, "x.onnx"), (as_pth, "x.pth")]
)
def test_planted_in_a_file_of_each_format(shipped, write, name, tmp_path, capsys):
    labels = SHIPPED / "alexnet" / "labels.txt"
    repository = tmp_path / "models"
    for fault, told in ((swapped, "red and blue"), (shifted, "place off|does not recognise"), (None, None)):
        write(shipped if fault is None else fault(shipped), tmp_path / name)
        status = run(tmp_path / name, "--repository", repository, "--labels", labels, "--views", "center")
        output = capsys.readouterr()
        if fault is None:
            assert status == 0, output.err
            assert "all three photos are recognised" in output.out
        else:
            assert status == 1
            assert any(words in output.err for words in told.split("|")), output.err
            assert not repository.exists(), "nothing is left behind"
