import shutil
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import narrow

from alexnet_server.models.variants import VARIANTS, ResponseNorm, parameter_shapes
from alexnet_train.network.alexnet import AlexNet, convolve_by_blocks, pool5_side
from alexnet_train.network.draws import Draws
from alexnet_train.network.response_norm import (
    _normalised,
    banded_sum,
    response_norm,
    shifted_sum,
    spatial_norm,
)
from tests.numerics import rounding

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("2012", 60_965_224),
        ("paper", 60_965_224),
        ("caffe", 60_965_224),
        ("caffenet", 60_965_224),
        ("owt", 61_100_840),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = AlexNet(VARIANTS[name], 1000)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert {n: tuple(p.shape) for n, p in network.named_parameters()} == parameter_shapes(
        VARIANTS[name], 1000
    )
    assert pool5_side(VARIANTS[name], VARIANTS[name].crop) == 6


@pytest.mark.parametrize("groups", [1, 2])
def test_response_norm_is_the_formula(groups: int) -> None:
    norm = ResponseNorm(k=2.0, alpha=0.02)
    x = torch.randn(2, 12, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.empty_like(x.numpy())
    tower = 12 // groups
    for i in range(12):
        first, last = i // tower * tower, i // tower * tower + tower - 1
        near = range(max(first, i - 2), min(last, i + 2) + 1)
        total = sum(x[:, j].numpy() ** 2 for j in near)
        expected[:, i] = x[:, i].numpy() / (2.0 + 0.02 * total) ** 0.75
    np.testing.assert_allclose(response_norm(x, norm, groups).numpy(), expected, rtol=1e-12)


def test_spatial_norm_is_the_formula() -> None:
    norm = ResponseNorm(k=1.0, alpha=0.03)
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    padded = F.pad(x, (2, 2, 2, 2)).numpy()
    expected = np.empty_like(x.numpy())
    for row in range(6):
        for column in range(7):
            total = (padded[:, :, row : row + 5, column : column + 5] ** 2).sum((2, 3))
            expected[:, :, row, column] = x[:, :, row, column].numpy() * (1.0 + 0.03 * total) ** -0.75
    np.testing.assert_allclose(spatial_norm(x, norm).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_gradients_of_the_norms_are_those_of_their_differences(beta: float) -> None:
    x = torch.randn(2, 12, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = ResponseNorm(k=1.5, alpha=0.3, beta=beta)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: response_norm(x, norm, 2), x)
    assert torch.autograd.gradcheck(lambda x: spatial_norm(x, norm), x)


def test_convolution_by_blocks_is_the_strided_convolution() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 227, 227, dtype=torch.float64, generator=generator)
    weight = torch.randn(8, 3, 11, 11, dtype=torch.float64, generator=generator)
    bias = torch.randn(8, dtype=torch.float64, generator=generator)
    expected = F.conv2d(x, weight, bias, stride=4)
    atol = rounding(weight[0].numel(), expected.numpy(), np.float64)
    torch.testing.assert_close(convolve_by_blocks(x, weight, bias, 4), expected, rtol=0, atol=atol)


def test_constant_lrn_is_below_bfloat16s_resolution_behind_batch_norm() -> None:
    x = torch.randn(4, 96, 15, 15, generator=torch.Generator().manual_seed(0))
    norm = VARIANTS["2012"].lrn
    assert norm is not None
    exact = response_norm(x, norm, 2)
    constant = x * norm.k**-norm.beta
    assert ((exact - constant).abs() <= 2**-9 * exact.abs()).all()


def test_the_norms_for_gpus_are_those_for_cpus() -> None:
    x = torch.randn(2, 12, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for groups in (1, 2):
        torch.testing.assert_close(
            shifted_sum(x, 5, groups), banded_sum(x, 5, groups), rtol=1e-12, atol=1e-12
        )


def test_the_network_compiles_in_one_piece_for_any_step() -> None:
    network = AlexNet(narrow("2012"), 10, window=99).double()
    network.initialise(torch.Generator().manual_seed(0))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    x = torch.randn(4, 3, 99, 99, generator=torch.Generator().manual_seed(1)).double() * 70
    outputs = []
    for step in (3, 4):
        draws = Draws(7, torch.tensor(step), torch.arange(4))
        outputs.append(compiled(x, draws))
        torch.testing.assert_close(outputs[-1], network(x, draws))
    assert not torch.equal(*outputs)


OPERATIONS = 40
"""At most so many, one after another, between an input of a norm and its gradient."""


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # by its own import
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler for inductor's kernels")
@pytest.mark.slow
def test_compiled_norms_and_their_gradients_are_the_eager_ones() -> None:
    norm = VARIANTS["2012"].lrn
    assert norm is not None
    total = partial(shifted_sum, size=norm.size, groups=2)  # as on a GPU
    x = torch.randn(2, 32, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 100
    x.requires_grad_()
    expected = response_norm(x, norm, 2)
    compiled = torch.compile(_normalised, fullgraph=True)(x, norm, total)
    atol = rounding(OPERATIONS, expected.detach().numpy(), np.float64)
    torch.testing.assert_close(compiled, expected, rtol=0, atol=atol)
    weights = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    (wanted,), (found,) = (torch.autograd.grad((y * weights).sum(), x) for y in (expected, compiled))
    atol = rounding(OPERATIONS, weights.numpy(), np.float64)  # of the gradient that comes, times at most 1
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)
