import numpy as np
import pytest

from alexnet_server.models.entropy import encode
from alexnet_server.models.weights import Stored, WeightFileError, parse_weights, read_weights, write_weights


def contents():
    symbols = np.random.default_rng(0).integers(0, 3, (40, 100)).astype(np.uint8)
    levels, scales = np.array([0, 0.5, -0.75], np.float32), np.linspace(1, 2, 40, dtype=np.float32)
    expected = (levels[symbols] * scales[:, None]).reshape(40, 4, 25)
    coded = Stored((40, 4, 25), "levels", {**vars(encode(symbols)), "levels": levels, "scales": scales})
    plain = np.arange(6, dtype=np.float32)
    half = np.linspace(0, 255, 3 * 16 * 16).astype(np.float16)
    stored = {
        "a.weight": coded,
        "a.bias": Stored((6,), "plain", {"values": plain}),
        "mean": Stored((3, 16, 16), "plain", {"values": half}),
    }
    return stored, {"a.weight": expected, "a.bias": plain, "mean": half.astype(np.float32).reshape(3, 16, 16)}


def test_tensors_come_back():
    stored, expected = contents()
    weights = parse_weights(write_weights("a network", stored))
    assert weights.name == "a network"
    assert list(weights) == list(expected)
    for name, value in expected.items():
        assert weights[name].dtype == np.float32
        np.testing.assert_array_equal(weights[name], value)
        assert weights[name] is weights[name], "decoded once"


def test_the_same_weights_give_the_same_bytes():
    assert write_weights("n", contents()[0]) == write_weights("n", contents()[0])


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.999])
def test_a_flipped_bit_is_refused(where, tmp_path):
    data = bytearray(write_weights("n", contents()[0]))
    data[int(where * len(data))] ^= 4
    path = tmp_path / "alexnet.weights"
    path.write_bytes(data)
    with pytest.raises(WeightFileError, match="damaged") as caught:
        read_weights(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [3, 10, 40, 400])
def test_a_file_cut_short_is_refused(keep):
    with pytest.raises(WeightFileError, match=r"damaged|not a weight file"):
        parse_weights(write_weights("n", contents()[0])[:keep])


def test_other_files_and_newer_formats_are_told_apart(tmp_path):
    with pytest.raises(WeightFileError, match="not a weight file"):
        parse_weights(b"version https://git-lfs.github.com/spec/v1\n")
    data = bytearray(write_weights("n", contents()[0]))
    data[7] = 9
    with pytest.raises(WeightFileError, match="format 9 is not known"):
        parse_weights(bytes(data))
    data = write_weights("n", {"x": Stored((1,), "wavelet", {"values": np.zeros(1, np.float32)})})
    with pytest.raises(WeightFileError, match="'wavelet'"):
        parse_weights(data)["x"]
    with pytest.raises(WeightFileError, match="cannot read"):
        read_weights(tmp_path / "none")
