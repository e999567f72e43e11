import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from alexnet_server.models.entropy import PRECISION, decode, encode


@given(
    arrays.arrays(
        np.uint8,
        st.tuples(st.integers(1, 30), st.integers(1, 90)),
        elements=st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 255)),
    )
)
@settings(max_examples=60, deadline=None)
def test_what_is_coded_comes_back(symbols):
    np.testing.assert_array_equal(decode(encode(symbols)), symbols)


def peaked(shape, spread=None):
    """Symbols as quantised weights have them; ``spread`` makes some columns much sparser than others."""
    rng = np.random.default_rng(0)
    values = rng.laplace(size=shape)
    if spread is not None:
        values *= np.exp(spread * rng.standard_normal(shape[1]))
    return np.minimum(np.abs(values), 9).astype(np.uint8)


def coded_bits(coded):
    return 8 * (coded.words.nbytes + coded.states.nbytes + coded.frequencies.nbytes)


def entropy(symbols):
    share = np.bincount(symbols.reshape(-1)) / symbols.size
    return -(share[share > 0] * np.log2(share[share > 0])).sum()


def test_size_is_the_entropy():
    symbols = peaked((512, 4096))
    assert coded_bits(encode(symbols)) < 1.01 * entropy(symbols) * symbols.size


def test_columns_of_unequal_density_are_coded_below_the_plain_entropy():
    symbols = peaked((512, 4096), spread=0.8)
    assert coded_bits(encode(symbols)) < 0.92 * entropy(symbols) * symbols.size


def test_tables_add_up_and_know_every_symbol():
    symbols = peaked((64, 256))
    symbols[0, 0] = 255
    coded = encode(symbols)
    assert (coded.frequencies.sum(axis=2, dtype=int) == 1 << PRECISION).all()
    np.testing.assert_array_equal(decode(coded), symbols)


def test_damage_is_noticed():
    coded = encode(peaked((64, 256)))
    words = coded.words.copy()
    words[len(words) // 2] ^= 1
    with pytest.raises(ValueError, match="data"):
        decode(dataclasses.replace(coded, words=words))
    with pytest.raises(ValueError, match="too early"):
        decode(dataclasses.replace(coded, words=coded.words[:-5]))
    frequencies = coded.frequencies.copy()
    frequencies[0, 0, 0] += 1
    with pytest.raises(ValueError, match="add up"):
        decode(dataclasses.replace(coded, frequencies=frequencies))
