import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_train.data.dataset import Statistics
from alexnet_train.network.draws import Draws
from alexnet_train.run.augment import Augmenter, Colour, enlarged
from tests.numerics import rounding

pytestmark = pytest.mark.numerics
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


def draws(count: int, step: int = 0, seed: int = 3) -> Draws:
    return Draws(seed, step, torch.arange(count))


def noise_of(colour: Colour) -> torch.Tensor:
    """(20,000, 3): what colour noise makes of mean-coloured pixels."""
    augmenter = Augmenter(256, 1, STATISTICS, colour, CPU)
    gray = torch.full((1, 256, 256, 3), 100, dtype=torch.uint8).expand(500, -1, -1, -1)
    noisy = torch.cat([augmenter.random(gray, draws(500, step))[:, :, 0, 0] for step in range(40)])
    return noisy * colour.divisor - (100 - torch.tensor(STATISTICS.mean))


def test_colour_noise_has_the_covariance_of_the_training_pixels() -> None:
    # A tenth of the standard deviation along each principal axis: a hundredth of the pixels' own covariance.
    noise = noise_of(Colour(pca=0.1, divisor=1.1))
    assert torch.allclose(torch.cov(noise.T), torch.tensor(STATISTICS.covariance) / 100, rtol=0.05, atol=1)
    assert noise.mean(0).abs().max() < 0.3


def test_colour_noise_of_the_papers_text_goes_with_the_variances() -> None:
    noise = noise_of(Colour(pca=0.1, measure="variance"))
    values = np.linalg.eigvalsh(np.array(STATISTICS.covariance))
    found = np.linalg.eigvalsh(torch.cov(noise.T.double()).numpy())
    # Variances on a 0-1 scale, in grey levels: lambda / 255**2 * 255.
    np.testing.assert_allclose(found, (0.1 * values / 255) ** 2, rtol=0.05, atol=1e-3)


def test_colour_noise_and_its_divisor_end_together() -> None:
    augmenter = Augmenter(256, 224, STATISTICS, Colour(pca=0.1, divisor=1.1), CPU)
    plain = Augmenter(256, 224, STATISTICS, Colour(), CPU)
    ended = augmenter.random(images(4, 256), draws(4), coloured=False)
    assert torch.equal(ended, plain.random(images(4, 256), draws(4)))


@pytest.mark.parametrize("seed", range(3))
def test_random_windows_are_a_function_of_seed_step_and_sample(seed: int) -> None:
    augmenter = Augmenter(64, 128, STATISTICS, Colour(0.1, 0.15), CPU)
    first, second = (augmenter.random(images(4, 64), draws(4, seed=seed)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (4, 3, 128, 128)
    assert not torch.equal(first, augmenter.random(images(4, 64), draws(4, seed=seed + 100)))
    part = augmenter.random(images(4, 64)[2:], Draws(seed, 0, torch.tensor([2, 3])))
    atol = rounding(64 + 64, 255)  # enlarged along each axis by a matrix
    torch.testing.assert_close(part, first[2:], rtol=0, atol=atol)


def test_32_consecutive_images_share_crop_and_mirror() -> None:
    augmenter = Augmenter(256, 64, STATISTICS, Colour(), CPU, shared_crops=32)
    one = images(1, 256).expand(128, -1, -1, -1)
    crops = augmenter.random(one, draws(128))
    for group in crops.split(32):
        assert (group == group[0]).all()
    assert len({group[0].numpy().tobytes() for group in crops.split(32)}) == 4


def test_offsets_reach_both_ends_and_half_are_mirrored() -> None:
    ramp = torch.arange(256, dtype=torch.uint8)[None, None, :, None].expand(100, 256, 256, 3)
    augmenter = Augmenter(256, 240, STATISTICS, Colour(), CPU)
    x = augmenter.random(ramp, draws(100))[:, 0, 0] + STATISTICS.mean[0]
    mirrored = x[:, 0] > x[:, -1]
    left = torch.where(mirrored, x[:, -1], x[:, 0])
    assert (left.min().item(), left.max().item()) == (0, 16)
    assert 0.4 < mirrored.float().mean() < 0.6


def test_the_mean_image_is_subtracted_at_its_centre_wherever_the_crop_is() -> None:
    mean = np.random.default_rng(0).uniform(0, 255, (256, 256, 3)).astype(np.float32)
    augmenter = Augmenter(256, 224, STATISTICS, Colour(), CPU, mean_image=mean)
    plain = Augmenter(256, 224, Statistics([0, 0, 0], STATISTICS.covariance), Colour(), CPU)
    expected = plain.random(images(4, 256), draws(4)) - torch.from_numpy(mean[16:240, 16:240]).permute(
        2, 0, 1
    )
    assert torch.equal(augmenter.random(images(4, 256), draws(4)), expected)


def test_ten_views_are_ten_explicit_crops_mirrored_before_the_mean() -> None:
    mean = np.random.default_rng(0).uniform(0, 255, (256, 256, 3)).astype(np.float32)
    source = images(2, 256)
    views = (
        Augmenter(256, 224, STATISTICS, Colour(), CPU, mean_image=mean).ten(source).view(2, 10, 3, 224, 224)
    )
    for image, found in zip(source.numpy(), views.numpy(), strict=True):
        expected = []
        for top, left in ((0, 0), (0, 32), (32, 0), (32, 32), (16, 16)):
            crop = image[top : top + 224, left : left + 224].astype(np.float32)
            expected += [crop - mean[16:240, 16:240], crop[:, ::-1] - mean[16:240, 16:240]]
        np.testing.assert_array_equal(found, np.stack(expected).transpose(0, 3, 1, 2))


def test_a_mean_of_small_images_is_enlarged_as_they_are() -> None:
    small = 100 + images(1, 64)[0].numpy().astype(np.float32) // 4  # no overshoot for Pillow to clamp
    pillow = np.asarray(
        Image.fromarray(small.astype(np.uint8)).resize((256, 256), Image.Resampling.BICUBIC), np.float32
    )
    difference = np.abs(np.clip(enlarged(small), 0, 255) - pillow)
    assert difference.mean() < 0.5
    assert difference.max() <= 2


def test_a_resized_crop_of_everything_is_pillows_reduction() -> None:
    source = images(1, 256)
    augmenter = Augmenter(256, 128, STATISTICS, Colour(), CPU, resized_area=1.0)
    whole = torch.tensor([0.0]), torch.tensor([256.0])
    filters = augmenter._filters(*whole)
    ours = torch.einsum("nis,nsjc,nkj->nikc", filters, source.float(), filters)[0]
    pillow = Image.fromarray(source[0].numpy()).resize((128, 128), Image.Resampling.BILINEAR)
    assert (ours - torch.from_numpy(np.array(pillow)).float()).abs().max() <= 1


def test_resized_crops_have_the_right_shape_range_and_variety() -> None:
    augmenter = Augmenter(64, 112, STATISTICS, Colour(), CPU, resized_area=0.25)
    crops = augmenter.cut_resized(images(8, 64), draws(8))
    assert crops.shape == (8, 112, 112, 3)
    assert crops.min() > -40
    assert crops.max() < 295
    repeated = augmenter.cut_resized(images(1, 64).expand(8, -1, -1, -1), draws(8))
    assert len({crop.numpy().tobytes() for crop in repeated}) == 8


def test_resized_crops_keep_within_both_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    augmenter = Augmenter(64, 32, STATISTICS, Colour(), CPU, resized_area=0.15, resized_area_max=0.4)
    extents: list[torch.Tensor] = []
    filters = augmenter._filters
    monkeypatch.setattr(
        augmenter, "_filters", lambda first, extent: extents.append(extent) or filters(first, extent)
    )
    augmenter.cut_resized(images(1, 64).expand(500, -1, -1, -1), draws(500))
    share = extents[0] * extents[1] / 256**2
    assert 0.149 < share.min() < 0.17
    assert 0.38 < share.max() < 0.401
