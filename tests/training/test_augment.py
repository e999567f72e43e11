import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_train.augment import Augmenter, Colour
from alexnet_train.dataset import Statistics

STATISTICS = Statistics(
    [120.0, 110.0, 100.0], [[4900.0, 4200.0, 3700.0], [4200.0, 4600.0, 4400.0], [3700.0, 4400.0, 5000.0]]
)
CPU = torch.device("cpu")


def images(count: int, side: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def test_enlargement_is_pillows_within_a_level() -> None:
    sources = images(4, 64)
    offsets = torch.zeros(4, dtype=torch.long)
    ours = Augmenter(64, 256, STATISTICS, Colour(), CPU).cut(sources, offsets, offsets).numpy()
    pillow = [
        np.asarray(Image.fromarray(s).resize((256, 256), Image.Resampling.BICUBIC)) for s in sources.numpy()
    ]
    assert np.abs(ours - np.stack(pillow)).max() <= 1


def test_windows_of_a_256_pixel_source_are_its_pixels() -> None:
    sources = images(3, 256)
    top, left = torch.tensor([0, 32, 17]), torch.tensor([32, 0, 5])
    cut = Augmenter(256, 224, STATISTICS, Colour(), CPU).cut(sources, top, left)
    for i in range(3):
        expected = sources[i, top[i] : top[i] + 224, left[i] : left[i] + 224]
        assert torch.equal(cut[i], expected.float())


def test_colour_noise_has_the_covariance_of_the_training_pixels() -> None:
    augmenter = Augmenter(256, 1, STATISTICS, Colour(pca=0.1), CPU)
    gray = torch.full((20_000, 256, 256, 3), 100, dtype=torch.uint8)[:1].expand(20_000, -1, -1, -1)
    generator = torch.Generator().manual_seed(3)
    draws = torch.cat(
        [augmenter.random(gray[i : i + 500], generator)[:, :, 0, 0] for i in range(0, 20_000, 500)]
    )
    covariance = torch.cov(draws.T)
    # covariance of 0.1 sigma along each principal axis is a hundredth of the pixels' own
    assert torch.allclose(covariance, torch.tensor(STATISTICS.covariance) / 100, rtol=0.05, atol=1)


@pytest.mark.parametrize("seed", range(3))
def test_random_windows_repeat_with_their_generator(seed: int) -> None:
    augmenter = Augmenter(64, 128, STATISTICS, Colour(0.1, 0.15), CPU)
    first, second = (augmenter.random(images(4, 64), torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (4, 3, 128, 128)
    assert not torch.equal(first, augmenter.random(images(4, 64), torch.Generator().manual_seed(seed + 100)))
