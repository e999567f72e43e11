"""The averaged weights, their batch norm statistics, and what clipping does over towers and alone."""

import pytest
import torch
from ranks import narrow
from torch import nn

from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.draws import Draws
from alexnet_train.run.average import Average
from alexnet_train.run.step import clip

pytestmark = pytest.mark.numerics


def network(batch_norm: bool = True) -> AlexNet:
    made = AlexNet(narrow("2012"), 10, window=99, batch_norm=batch_norm).double()
    made.initialise(torch.Generator().manual_seed(0))
    return made


def test_the_average_is_the_decayed_sum_of_the_weights() -> None:
    net = network(batch_norm=False)
    average = Average(net, decay=0.75)
    expected = net.fc8.weight.detach().clone()
    for step in range(40):
        with torch.no_grad():
            net.fc8.weight.add_(1.0)
        average.update(net, step)
        decay = min(0.75, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net.fc8.weight.detach()
    torch.testing.assert_close(average.network.fc8.weight, expected)


def test_statistics_are_those_of_the_averaged_weights_on_the_batches() -> None:
    net = network()
    average = Average(net, 0.9)
    draw = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 3, 99, 99, generator=draw, dtype=torch.float64), i) for i in range(3)]
    average.recompute_statistics((x, Draws(0, i, torch.arange(8))) for x, i in batches)
    norm = average.network.norm_conv1
    assert isinstance(norm, nn.BatchNorm2d)
    plain = AlexNet(narrow("2012"), 10, window=99).double()
    plain.conv1.weight = net.conv1.weight
    nn.init.zeros_(plain.conv1.bias)
    outputs = [plain._affine("conv1", x) for x, _ in batches]
    means = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    variances = torch.stack([o.var((0, 2, 3)) for o in outputs]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)
    assert norm.momentum == 0.1
    assert not average.network.training


def test_clipping_scales_all_gradients_to_the_limit() -> None:
    net = network(batch_norm=False)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    clip(net, 2.0)
    total = sum((p.grad**2).sum() for p in net.parameters() if p.grad is not None)
    torch.testing.assert_close(total, torch.tensor(4.0, dtype=torch.float64), rtol=1e-5, atol=0)
