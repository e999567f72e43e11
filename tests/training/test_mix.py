from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alexnet_train.config import RECIPES
from alexnet_train.network.draws import Draws
from alexnet_train.run.mix import Labels, beta, mixed, mixes
from tests.numerics import rounding

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("parameter", [1.0, 0.2, 0.5])
def test_shares_come_from_the_beta_distribution(parameter: float) -> None:
    share = beta(Draws(0, 0, torch.arange(50_000)), "share", parameter).double()
    assert abs(share.mean() - 0.5) < 0.006
    assert abs(share.var() - 1 / (4 * (2 * parameter + 1))) < 0.004


@pytest.mark.parametrize(("cutmix", "mixup"), [(1.0, 0.0), (0.0, 0.2), (1.0, 0.2)])
def test_images_are_mixed_in_the_share_their_labels_are(cutmix: float, mixup: float) -> None:
    # Image i is grey i: what a mixed image's mean says is what its labels have to say.
    grey = torch.arange(8.0)
    x = grey[:, None, None, None].expand(8, 3, 32, 32)
    out, labels = mixed(x, torch.arange(8), Draws(4, 0, torch.arange(8)), cutmix, mixup)
    assert labels.share is not None
    expected = labels.share * grey + (1 - labels.share) * grey[labels.second]
    torch.testing.assert_close(out.mean((1, 2, 3)), expected, rtol=0, atol=rounding(3 * 32 * 32, expected))
    assert labels.second.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert len({round(share, 4) for share in labels.share.tolist()}) > 1
    if not mixup:
        assert torch.isin(out, grey).all()


def test_mixed_loss_is_the_shares_of_both_losses() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 0, 3, 2])
    share = torch.tensor([1.0, 0.25, 0.5, 0.0], dtype=torch.float64)
    one = F.cross_entropy(logits, first, reduction="none", label_smoothing=0.1)
    two = F.cross_entropy(logits, second, reduction="none", label_smoothing=0.1)
    expected = (share * one + (1 - share) * two).mean()
    np.testing.assert_allclose(Labels(first, second, share).loss(logits, 0.1), expected, rtol=1e-12)


def test_half_of_the_updates_are_mixed_until_the_last_tenth() -> None:
    config = replace(RECIPES["tiny-convolutions-long"], steps=100, decay_steps=0)
    assert [step for step in range(100) if mixes(config, step, 100)] == list(range(0, 90, 2))
