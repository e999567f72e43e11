import numpy as np
import pytest

from alexnet_server.models.export.quantize import CONV_LIMIT, FACTOR_LIMIT, fit, pack, quantise_rows
from alexnet_server.models.export.weights import random_weights, scaled
from alexnet_server.models.variants import VARIANTS
from alexnet_server.models.weights import parse_weights, tensor


def relative_error(found, weight):
    return ((found.astype(np.float64) - weight) ** 2).mean() / (weight.astype(np.float64) ** 2).mean()


@pytest.fixture(scope="module")
def served():
    return random_weights(scaled(VARIANTS["2012"], 8, 128), 40, mean="pixel").served()


@pytest.mark.numerics
@pytest.mark.parametrize("limit", [32, 127, 2.5])
def test_rows_are_on_a_grid_that_holds_their_maximum(limit):
    weight = np.random.default_rng(0).normal(size=(6, 4, 3, 3)).astype(np.float32)
    weight[2] = 0
    quantised = quantise_rows(weight, limit)
    found = quantised.dequantise()
    assert found.shape == weight.shape
    step = np.abs(weight).reshape(6, -1).max(1) / limit
    assert (np.abs(found - weight).reshape(6, -1).max(1) <= step * (0.5 + 1e-5)).all()
    if limit == int(limit):
        largest = np.abs(weight).reshape(6, -1).max(1)
        np.testing.assert_allclose(np.abs(found).reshape(6, -1).max(1), largest, rtol=1e-6)


@pytest.mark.parametrize("budget", [90_000, 150_000])
def test_fit_fills_a_budget_without_passing_it(budget, served):
    data = pack(served, fit(served, budget=budget))
    assert 0.97 * budget < len(data) <= budget
    stored = parse_weights(data)
    assert set(stored) == set(served)
    for name, value in served.items():
        assert stored[name].shape == value.shape
        if not name.endswith(".weight"):
            np.testing.assert_array_equal(stored[name], value)
        elif name not in ("fc6.weight", "fc7.weight"):
            assert relative_error(stored[name], value) < 1e-3, name


def test_a_larger_budget_leaves_a_smaller_error(served):
    errors = [
        relative_error(fit(served, budget=budget)["fc6.weight"].dequantise(), served["fc6.weight"])
        for budget in (90_000, 120_000, 180_000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 5 * errors[-1]


def test_with_room_for_all_of_it_eight_bits_are_kept(served):
    assert np.abs(fit(served, budget=1 << 30)["fc6.weight"].codes).max() == FACTOR_LIMIT
    assert np.abs(fit(served, budget=1 << 30)["conv2.weight"].codes).max() == CONV_LIMIT


def test_a_hopeless_budget_is_refused(served):
    with pytest.raises(ValueError, match="do not fit into 20,000 bytes: even at the coarsest they take"):
        fit(served, budget=20_000)
    factors = {"fc6": (np.ones((128, 2), np.float32), np.ones((2, 1152), np.float32))}
    factors["fc7"] = (np.ones((128, 2), np.float32), np.ones((2, 128), np.float32))
    with pytest.raises(ValueError, match="do not fit into 20,000 bytes"):
        fit(served, factors, 20_000)


def test_a_mean_image_is_kept_to_a_sixteenth_of_a_level():
    served = random_weights(scaled(VARIANTS["2012"], 8, 64), 5).served()
    stored = parse_weights(pack(served, {}))
    assert stored["mean"].shape == (3, 256, 256)
    assert np.abs(stored["mean"] - served["mean"]).max() <= 1 / 16


def test_factors_are_multiplied_when_asked_for(served):
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=shape).astype(np.float32) for shape in ((128, 6), (6, 1152)))
    quantised = fit(served, {"fc6": (left, right)})
    stored = parse_weights(pack(served, quantised))
    np.testing.assert_array_equal(tensor(stored, "fc6.weight"), quantised["fc6.weight"].dequantise())
    assert relative_error(tensor(stored, "fc6.weight"), left @ right) < 1e-3
