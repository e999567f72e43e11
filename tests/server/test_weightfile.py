import io
import struct
import zipfile

import numpy as np
import pytest

from alexnet_server.models import weights as module
from alexnet_server.models.weights import WeightFileError, parse_weights, read_weights, tensor


def contents():
    rng = np.random.default_rng(0)
    return {
        "a.weight.codes": rng.integers(-127, 128, (40, 4, 25)).astype(np.int8),
        "a.weight.scales": np.linspace(1, 2, 40, dtype=np.float32),
        "a.bias": np.arange(6, dtype=np.float32),
        "b.weight.left.codes": rng.integers(-127, 128, (8, 3)).astype(np.int8),
        "b.weight.left.scales": np.linspace(1, 2, 8, dtype=np.float32),
        "b.weight.right.codes": rng.integers(-127, 128, (3, 9)).astype(np.int8),
        "b.weight.right.scales": np.linspace(3, 4, 3, dtype=np.float32),
        "mean": np.linspace(0, 255, 3 * 16 * 16).astype(np.float16).reshape(3, 16, 16),
    }


def archive(arrays, save=np.savez_compressed):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_tensors_come_back(save):
    stored = contents()
    weights = parse_weights(archive(stored, save))
    left, right = (
        stored[f"b.weight.{side}.codes"] * stored[f"b.weight.{side}.scales"][:, None]
        for side in ("left", "right")
    )
    expected = {
        "a.weight": stored["a.weight.codes"] * stored["a.weight.scales"][:, None, None],
        "a.bias": stored["a.bias"],
        "b.weight.left": left,
        "b.weight.right": right,
        "mean": stored["mean"].astype(np.float32),
    }
    assert set(weights) == set(expected)
    for name, value in expected.items():
        assert weights[name].dtype == np.float32
        np.testing.assert_array_equal(weights[name], value)
        np.testing.assert_array_equal(tensor(weights, name), value)
    np.testing.assert_array_equal(tensor(weights, "b.weight"), left @ right)


@pytest.fixture
def refused(tmp_path):
    def refused(data, sha256=None):
        path = tmp_path / "alexnet.weights"
        path.write_bytes(data)
        with pytest.raises(WeightFileError) as caught:
            read_weights(path, sha256)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        return message

    return refused


def test_another_sha256_is_refused(refused):
    assert "its sha256 differs" in refused(archive(contents()), "0" * 64)


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.999])
def test_a_flipped_bit_is_refused(where, refused):
    data = bytearray(archive(contents()))
    data[int(where * len(data))] ^= 4
    assert "damaged" in refused(data)


@pytest.mark.parametrize("keep", [0, 3, 10, 40, 400])
def test_a_file_cut_short_is_refused(keep, refused):
    assert "damaged" in refused(archive(contents())[:keep])


def test_earlier_and_other_files_are_told_apart(refused, tmp_path):
    assert "earlier version: write the model repository again" in refused(b"ALEXNET\x01" + bytes(99))
    assert "not a weight file" in refused(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WeightFileError, match="cannot read"):
        read_weights(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a.weight.scales", None),  # codes without their scales
        ("a.weight.scales", np.ones(39, np.float32)),
        ("a.weight.scales", np.ones((), np.float32)),
        ("b.weight.right.codes", None),
        ("b.weight.right.codes", np.ones((4, 9), np.int8)),
        ("a.bias", np.array("text")),
        ("a.bias", np.array([{"an": "object"}], dtype=object)),
        ("a.bias", np.ones(3, np.complex64)),
        ("a.bias", np.asfortranarray(np.ones((3, 4), np.float32))),
    ],
)
def test_arrays_that_make_no_weights_are_refused(name, value, refused):
    stored = contents() | ({} if value is None else {name: value})
    if value is None:
        del stored[name]
    assert "damaged" in refused(archive(stored))


def with_header(shape):
    """An archive whose only array says that it has that shape, and holds four bytes."""
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr(
            "mean.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(4)
        )
    return file.getvalue()


def test_nothing_is_allocated_for_sizes_that_are_not_there(refused):
    assert parse_weights(with_header((1,)))["mean"] == [0]
    for shape in ((1 << 40,), (-1,), (1 << 70, 1 << 70), (True,), ("x",)):
        assert "damaged" in refused(with_header(shape)), shape


def test_what_inflates_beyond_the_limit_is_refused_unread(refused, monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 1 << 20)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("inflated"))
    data = archive({"mean": np.zeros(1 << 20, np.float32)})
    assert len(data) < 10_000
    assert "more than 1 MiB" in refused(data)


def test_a_product_beyond_the_limit_is_refused(refused, monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 1 << 20)
    stored = {"w.left": np.zeros((1 << 12, 1), np.float32), "w.right": np.zeros((1, 1 << 12), np.float32)}
    assert "w is too large" in refused(archive(stored))
