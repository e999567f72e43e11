"""The 2012 update against its equations by hand, and the rates a run goes through."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from alexnet_server.models.variants import VARIANTS
from alexnet_train.config import RECIPES, Config, Stage
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.run.schedule import Rates, Schedule
from alexnet_train.run.update import VELOCITY, Update2012, optimizer_for, set_rates


@pytest.mark.numerics
def test_the_update_is_the_authors_equations() -> None:
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = Update2012([{"params": [w], "name": "fc6.weight", "weight_decay": 0.0005}], momentum=0.9)
    by_hand, velocity = np.array([1.0, -2.0]), np.zeros(2)
    draw = np.random.default_rng(0)
    for rate in (0.01, 0.01, 0.001, 0.0, 0.001):
        gradient = draw.normal(size=2)
        optimizer.param_groups[0] |= {"lr": rate, "frozen": rate == 0}
        w.grad = torch.from_numpy(gradient)
        optimizer.step()
        if rate:
            velocity = 0.9 * velocity - 0.0005 * rate * by_hand - rate * gradient
            by_hand = by_hand + velocity
        np.testing.assert_allclose(w.detach().numpy(), by_hand, rtol=1e-14)
        np.testing.assert_allclose(optimizer.state[w][VELOCITY].numpy(), velocity, rtol=1e-14)


def test_it_is_not_torchs_sgd_once_the_rate_drops() -> None:
    ours, theirs = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    one = Update2012([{"params": [ours], "name": "fc6.weight"}], momentum=0.9)
    two = torch.optim.SGD([theirs], lr=0.0, momentum=0.9)
    distances = []
    for rate in (0.01, 0.01, 0.001, 0.001):
        for optimizer, w in ((one, ours), (two, theirs)):
            optimizer.param_groups[0]["lr"] = rate
            w.grad = torch.ones_like(w)
            optimizer.step()
        distances.append((ours - theirs).abs().max().item())
    assert max(distances[:2]) < 1e-15
    assert distances[2] > 1e-3


def test_rates_by_group_and_weight_decay_on_weights_alone() -> None:
    with torch.device("meta"):
        network = AlexNet(VARIANTS["2012"], 10, batch_norm=True)
    optimizer = optimizer_for(network, Config("x", update="2012"))
    set_rates(optimizer, Rates(weights=0.01, biases=0.02, conv1_weights=0.001, conv1_biases=0.0))
    names = {id(p): n for n, p in network.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"], group["frozen"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found["fc6.weight"] == found["conv2.weight"] == (0.01, 0.0005, False)
    assert found["fc8.bias"] == found["norm_fc7.weight"] == (0.02, 0.0, False)
    assert found["conv1.weight"] == (0.001, 0.0005, False)
    assert found["norm_conv1.bias"] == (0.0, 0.0, True)
    assert len(found) == len(names)


def rates_at_epochs(config: Config, *epochs: float) -> list[Rates]:
    schedule = Schedule(config, steps=9000, per_epoch=100.0)
    return [schedule.rates(round(epoch * 100)) for epoch in epochs]


def test_the_2012_recipe_drops_where_the_authors_log_says() -> None:
    rates = rates_at_epochs(RECIPES["2012"], 0, 24.99, 25, 51, 67, 72, 79, 89.99)
    assert [r.weights for r in rates] == [0.01, 0.01, 1e-3, 1e-4, 1e-4, 1e-4, 1e-5, 1e-5]
    assert [r.conv1_weights for r in rates] == [0.01, 0.01, 1e-3, 1e-4, 1e-5, 0, 0, 0]
    assert {r.biases for r in rates} == {0.02}
    assert [r.conv1_biases for r in rates] == [0.02] * 5 + [0] * 3
    assert [r.colour for r in rates] == [True] * 4 + [False] * 4


def test_biases_may_drop_with_the_first_drop() -> None:
    rates = rates_at_epochs(RECIPES["2012-bias-drop"], 0, 25, 51, 79)
    assert [r.biases for r in rates] == [0.02, 0.002, 0.002, 0.002]


def test_a_plateau_ends_a_stage_and_a_resumed_schedule_goes_on() -> None:
    config = replace(
        RECIPES["2012-plateau"],
        stages=(Stage(0, 0.01, 0.02), Stage(0, 0.001, 0.02), Stage(0, 0.0001, 0.02)),
        plateau_epochs=2,
    )
    schedule = Schedule(config, 10_000, 100.0)
    seen = []
    for epoch, error in enumerate([0.9, 0.8, 0.81, 0.85, 0.7, 0.7, 0.7, 0.69, 0.69], 1):
        over = schedule.observe(epoch * 100, error)
        schedule = Schedule(config, 10_000, 100.0, schedule.state())
        seen.append((schedule.rates(epoch * 100).weights, over))
    assert [rate for rate, _ in seen] == [0.01] * 3 + [0.001] * 3 + [0.0001] * 3
    assert [over for _, over in seen] == [False] * 9
    assert schedule.observe(1000, 0.69)


def test_warm_up_then_cosine() -> None:
    config = Config("x", rate=0.4, warmup_epochs=1, cosine=True)
    schedule = Schedule(config, steps=1100, per_epoch=100.0)
    assert schedule.rates(0).weights == pytest.approx(0.004)
    assert schedule.rates(99).weights == pytest.approx(0.4)
    assert schedule.rates(600).weights == pytest.approx(0.2)
    assert schedule.rates(1099).weights < 1e-5


def test_the_linear_schedule() -> None:
    schedule = Schedule(RECIPES["tiny-convolutions"], 6000, 750.0)
    assert [schedule.rates(s).weights for s in (0, 199, 3500)] == pytest.approx([0.0002, 0.04, 0.04])
    assert schedule.rates(4750).weights == pytest.approx(0.02)


def test_stages_stretch_with_the_length_of_the_run() -> None:
    schedule = Schedule(replace(RECIPES["2012"], epochs=9), steps=900, per_epoch=100.0)
    assert [schedule.rates(s).weights for s in (249, 250, 509, 510, 899)] == [0.01, 1e-3, 1e-3, 1e-4, 1e-5]


def test_a_longer_run_stretches_its_stages() -> None:
    short = Schedule(replace(RECIPES["2012"], epochs=24), steps=844, per_epoch=35.0)
    assert short.rates(700).weights == 0.0001
    longer = Schedule(replace(RECIPES["2012"], epochs=90), 3150, 35.0, short.state())
    assert longer.rates(700) == Schedule(replace(RECIPES["2012"], epochs=90), 3150, 35.0).rates(700)
    assert longer.rates(700).weights == 0.01
