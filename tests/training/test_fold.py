from dataclasses import replace

import numpy as np
import pytest
import torch

from alexnet_server.models.variants import VARIANTS
from alexnet_train.config import Config
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.fold import FoldError, serving_weights
from tests.numerics import rounding, terms

pytestmark = pytest.mark.numerics
PLAIN = Config("plain", window=99, hidden=64)


def trained(config: Config) -> AlexNet:
    """A network that looks trained: batch norm statistics, gains and shifts moved from where they begin."""
    network = AlexNet(
        VARIANTS[config.variant],
        7,
        batch_norm=config.batch_norm,
        dropout=config.dropout,
        window=config.window,
        hidden=config.hidden,
        constant_lrn=config.constant_lrn,
    )
    generator = torch.Generator().manual_seed(3)
    network.initialise(generator)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if name.startswith("norm") and tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.6)
    return network.eval()


@pytest.mark.parametrize(
    "config",
    [
        PLAIN,
        replace(PLAIN, dropout=0.3, input_scale=60.0),
        replace(PLAIN, batch_norm=True, input_scale=60.0, dropout=0.2),
        replace(PLAIN, variant="owt", dropout=0.4),
    ],
    ids=["2012", "scaled", "batch-norm", "owt"],
)
def test_folded_weights_compute_what_evaluation_mode_computes(config: Config) -> None:
    network = trained(config)
    draw = torch.Generator().manual_seed(4)
    pixels = torch.randint(-120, 120, (4, 3, config.window, config.window), generator=draw).double()
    with torch.no_grad():
        served = AlexNet(VARIANTS[config.variant], 7, dropout=0.0, window=config.window, hidden=config.hidden)
        weights = serving_weights(network.state_dict(), config)
        served.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        expected = network.double()(pixels / config.input_scale)
        found = served.eval().double()(pixels)
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}
    # The folded weights are rounded to float32, and nothing else is.
    assert (found - expected).abs().max() <= rounding(terms(weights), expected.numpy())


def test_a_state_of_another_recipe_is_refused_by_name() -> None:
    state = trained(PLAIN).state_dict()
    with pytest.raises(FoldError, match="norm_conv1"):
        serving_weights(state, replace(PLAIN, batch_norm=True))
