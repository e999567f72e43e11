"""Each variant against an implementation that shares nothing with ours."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from caffe_files import caffemodel, prototxt
from ranks import narrow
from torch import Tensor, nn
from torch_reference import head, pool5

from alexnet_server.models.variants import VARIANTS
from alexnet_train.network.alexnet import AlexNet
from tests.numerics import rounding, terms

pytestmark = pytest.mark.numerics
CLASSES = 10


def initialised(network: AlexNet) -> AlexNet:
    """Random weights under which every layer matters: unit gain, biases away from 0."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(0, 1, generator=generator)
            if name.endswith("weight"):
                parameter *= (2 / parameter[0].numel()) ** 0.5
    return network.eval()


def pixels(side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return (torch.rand(2, 3, side, side, generator=generator) * 255 - 110).to(dtype)


@pytest.mark.parametrize("name", ["caffe", "caffenet"])
def test_caffe_variants_are_what_opencv_reads_from_caffes_files(name: str, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    variant = narrow(name)
    network = initialised(AlexNet(variant, CLASSES))
    weights = {n: p.detach().numpy().copy() for n, p in network.named_parameters()}
    (tmp_path / "net.prototxt").write_text(prototxt(variant, variant.hidden, CLASSES))
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(weights))
    theirs = cv2.dnn.readNetFromCaffe(str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel"))
    x = pixels(227)
    with torch.no_grad():
        expected = network.double()(x.double()).numpy()
    for image, logits in zip(x.numpy(), expected, strict=True):
        theirs.setInput(image[None])
        np.testing.assert_allclose(theirs.forward()[0], logits, rtol=0, atol=rounding(terms(weights), logits))


def test_the_comparison_tells_caffe_from_caffenet() -> None:
    x = pixels(227)
    with torch.no_grad():
        one, other = (initialised(AlexNet(narrow(name), CLASSES))(x) for name in ("caffe", "caffenet"))
    assert (one - other).abs().max() > 1e-3 * one.abs().max()


def test_owt_is_torchvisions_layers() -> None:
    variant = replace(VARIANTS["owt"], channels=(16, 24, 32, 24, 24), hidden=64)
    ours = initialised(AlexNet(variant, CLASSES).double())
    one, two, three, four, five = variant.channels
    theirs = nn.Sequential(
        nn.Conv2d(3, one, 11, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(one, two, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(two, three, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(three, four, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(four, five, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.AdaptiveAvgPool2d((6, 6)),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(five * 36, 64),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    ).double()
    theirs.eval().load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = pixels(224, torch.float64)
    with torch.no_grad():
        expected = theirs(x).numpy()
        found = ours(x).numpy()
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=rounding(terms(ours.state_dict()), expected, np.float64)
    )


@pytest.mark.parametrize("name", ["2012", "paper"])
def test_the_papers_variants_are_the_formulas_written_out(name: str) -> None:
    variant = narrow(name)
    network = initialised(AlexNet(variant, CLASSES, dropout=0.0).double())
    tensors = dict(network.state_dict())
    x = pixels(224, torch.float64)
    with torch.no_grad():
        logits, _ = head(pool5(x, variant, tensors), tensors)
        atol = rounding(terms(tensors), logits.numpy(), np.float64)
        np.testing.assert_allclose(network(x).numpy(), logits.numpy(), rtol=0, atol=atol)


def test_max_pool_sends_a_ties_gradient_to_one_maximum() -> None:
    # Known and stated: cuda-convnet2 sends it to every tied maximum.
    x = torch.zeros(1, 1, 3, 3, requires_grad=True)
    torch.nn.functional.max_pool2d(x, 3, 2).sum().backward()
    assert x.grad is not None
    assert x.grad.sum() == 1
