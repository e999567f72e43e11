import numpy as np
import torch

from alexnet_train.network.draws import Draws, mixed


def test_the_generator_is_splitmix64() -> None:
    # First outputs of SplitMix64 with state 0 (Vigna's reference implementation).
    golden = 0x9E3779B97F4A7C15
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    states = torch.tensor([(golden * i + 2**63) % 2**64 - 2**63 for i in (1, 2, 3)])
    assert [value % 2**64 for value in mixed(states).tolist()] == expected


def test_uniform_numbers_are_uniform_and_independent_across_names_steps_and_samples() -> None:
    rows = torch.arange(200)
    u = Draws(1, 5, rows).uniform("fc6", 500).double()
    assert abs(u.mean() - 0.5) < 0.003
    assert abs(u.var() - 1 / 12) < 0.001
    assert 0 <= u.min() < u.max() < 1
    counts = np.histogram(u.numpy(), 16, (0, 1))[0]
    assert (abs(counts - 6250) < 5 * 6250**0.5).all()
    for other in (Draws(1, 6, rows).uniform("fc6", 500), Draws(1, 5, rows).uniform("fc7", 500)):
        assert abs(np.corrcoef(u.flatten(), other.flatten())[0, 1]) < 0.02
    assert abs(np.corrcoef(u[:-1].flatten(), u[1:].flatten())[0, 1]) < 0.02
    assert abs(np.corrcoef(u[:, :-1].flatten(), u[:, 1:].flatten())[0, 1]) < 0.02


def test_a_sample_draws_the_same_wherever_it_stands_and_however_the_step_is_given() -> None:
    whole = Draws(1, 5, torch.arange(8)).normal("colour", 3)
    part = Draws(1, torch.tensor(5), torch.tensor([6, 7])).normal("colour", 3)
    assert torch.equal(part, whole[6:])


def test_normal_numbers_are_normal() -> None:
    z = Draws(1, 0, torch.arange(1000)).normal("colour", 100).double()
    assert abs(z.mean()) < 0.01
    assert abs(z.var() - 1) < 0.02
    assert abs((z**4).mean() - 3) < 0.15
