import numpy as np
import pytest

from alexnet_server.models.weights import parse_weights
from alexnet_train.export.quantize import (
    fit,
    fit_factors,
    pack,
    quantise_layer,
    quantise_product,
    quantise_rows,
)
from alexnet_train.export.weights import random_weights, scaled
from alexnet_train.network.variants import VARIANTS

BITS = 8 / 1024


def laplacian(rows, columns, seed=0):
    return np.random.default_rng(seed).laplace(size=(rows, columns)).astype(np.float32)


def relative_error(weight, quantised):
    difference = quantised.dequantise().astype(np.float64) - weight
    return (difference**2).mean() / (weight.astype(np.float64) ** 2).mean()


def bits(quantised):
    arrays = quantised.stored().arrays
    return 8 * sum(a.nbytes for a in arrays.values()) / quantised.symbols.size


@pytest.mark.numerics
def test_rows_are_on_a_grid_that_holds_their_maximum():
    weight = np.random.default_rng(0).normal(size=(6, 4, 3, 3)).astype(np.float32)
    weight[2] = 0
    quantised = quantise_rows(weight, 32)
    found = quantised.dequantise()
    assert found.shape == weight.shape
    step = np.abs(weight).reshape(6, -1).max(1) / 32
    assert (np.abs(found - weight).reshape(6, -1).max(1) <= step / 2 + 1e-7).all()
    np.testing.assert_allclose(
        np.abs(found).reshape(6, -1).max(1), np.abs(weight).reshape(6, -1).max(1), rtol=1e-6
    )


def test_a_coded_layer_beats_a_plain_grid_of_the_same_size():
    """The quantiser's reason to be: at about 1.2 bits a weight its error is far below a rounded grid's."""
    weight = laplacian(256, 2048)
    quantised = quantise_layer(weight, 0.25)
    assert bits(quantised) < 1.35
    sigma = weight.std()
    for step in np.linspace(1.5, 3.5, 9) * sigma:
        grid = np.rint(weight / step)
        share = np.unique(grid, return_counts=True)[1] / weight.size
        if -(share * np.log2(share)).sum() <= bits(quantised):
            assert relative_error(weight, quantised) < 0.75 * ((grid * step - weight) ** 2).mean() / sigma**2
            break
    else:
        pytest.fail("no grid was coarse enough to compare with")


def test_the_penalty_trades_bits_for_error():
    weight = laplacian(128, 1024)
    results = [quantise_layer(weight, penalty) for penalty in (0.02, 0.1, 0.4)]
    sizes, errors = [bits(q) for q in results], [relative_error(weight, q) for q in results]
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


def test_pruned_weights_stay_zero_and_kept_ones_mostly_do_not():
    weight = laplacian(128, 1024)
    mask = np.abs(weight) > np.quantile(np.abs(weight), 0.9)
    quantised = quantise_layer(weight * mask, 0.05)
    assert (quantised.dequantise()[~mask] == 0).all()
    assert (quantised.dequantise()[mask] != 0).mean() > 0.99
    assert relative_error(weight * mask, quantised) < 0.02


def test_signs_and_levels_are_symmetric():
    quantised = quantise_layer(laplacian(64, 512), 0.1)
    mirrored = quantise_layer(-laplacian(64, 512), 0.1)
    np.testing.assert_array_equal(quantised.dequantise(), -mirrored.dequantise())
    assert quantised.levels[0] == 0


@pytest.mark.parametrize("weight", [np.zeros((4, 9), np.float32), np.full((4, 9), 2.5, np.float32)])
def test_constant_weights(weight):
    np.testing.assert_allclose(quantise_layer(weight, 0.1).dequantise(), weight, rtol=1e-2)


@pytest.mark.parametrize("budget", [60_000, 90_000])
def test_fit_fills_a_budget_without_passing_it(budget):
    weights = random_weights(scaled(VARIANTS["2012"], 8, 128), 40, mean="pixel")
    served = weights.served()
    data = pack("tiny", served, fit(served, budget))
    assert 0.97 * budget < len(data) <= budget
    stored = parse_weights(data)
    assert set(stored) == set(served)
    for name, value in served.items():
        assert stored[name].shape == value.shape
        if not name.endswith(".weight"):
            np.testing.assert_array_equal(stored[name], value)
    errors = {
        name: ((stored[name] - value) ** 2).mean() / (value**2).mean()
        for name, value in served.items()
        if "fc" in name
    }
    assert errors["fc8.weight"] < errors["fc6.weight"], "the few weights of fc8 are kept finer"


def test_a_hopeless_budget_is_refused():
    weights = random_weights(scaled(VARIANTS["2012"], 8, 128), 40, mean="pixel")
    with pytest.raises(ValueError, match="do not fit 20,000 bytes"):
        fit(weights.served(), 20_000)


def test_a_mean_image_is_kept_to_a_sixteenth_of_a_level():
    weights = random_weights(scaled(VARIANTS["2012"], 8, 64), 5)
    served = weights.served()
    stored = parse_weights(pack("tiny", served, {}))
    assert stored["mean"].shape == (3, 256, 256)
    assert np.abs(stored["mean"] - served["mean"]).max() <= 1 / 16


def test_factors_are_multiplied_when_read():
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=shape).astype(np.float32) for shape in ((128, 6), (6, 1152)))
    product = quantise_product(left, right)
    weights = random_weights(scaled(VARIANTS["2012"], 8, 128), 5, mean="pixel")
    served = weights.served() | {"fc6.weight": product.dequantise()}
    quantised = fit_factors(served, {"fc6": (left, right)})
    stored = parse_weights(pack("tiny", served, quantised))
    np.testing.assert_array_equal(stored["fc6.weight"], product.dequantise())
    assert relative_error(left @ right, product) < 1e-3
