"""Files of torch.save, read without torch: as torch, as training programs and as attackers write them."""

import argparse
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from importing import small

from alexnet_server.models.public import torchvision
from alexnet_server.models.public.errors import WeightsError
from alexnet_server.models.public.torch_file import TorchFile

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


@pytest.fixture(scope="module")
def weights():
    return small("owt")


@pytest.fixture(scope="module")
def state(weights):
    names = [f"{module}.{kind}" for module in torchvision.MODULES for kind in ("weight", "bias")]
    values = [weights.tensors[f"{layer}.{kind}"] for layer in LAYERS for kind in ("weight", "bias")]
    return OrderedDict(zip(names, map(torch.from_numpy, values), strict=True))


def renamed(state, old, new):
    return OrderedDict((name.replace(old, new, 1), value) for name, value in state.items())


PROGRAMS = {
    "its own state": lambda s: s,
    "parameters": lambda s: {n: torch.nn.Parameter(t) for n, t in s.items()},
    "the ImageNet example": lambda s: {
        "epoch": 90,
        "arch": "alexnet",
        "state_dict": renamed(s, "features.", "features.module."),
        "best_acc1": torch.tensor(56.5),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.01}]},
    },
    "DataParallel": lambda s: {"state_dict": OrderedDict((f"module.{n}", t) for n, t in s.items())},
    "torchvision's references": lambda s: {
        "model": s,
        "optimizer": {},
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu")),
    },
    "torch.compile": lambda s: {"model": {f"_orig_mod.{n}": t for n, t in s.items()}},
    "compiled and parallel": lambda s: {"model": {f"module._orig_mod.{n}": t for n, t in s.items()}},
    "Lightning": lambda s: {
        "pytorch-lightning_version": "2.5.0",
        "epoch": 3,
        "state_dict": OrderedDict((f"model.{n}", t) for n, t in s.items()),
        "hyper_parameters": {"lr": 0.1},
    },
    "Lightning, compiled": lambda s: {"state_dict": {f"net._orig_mod.{n}": t for n, t in s.items()}},
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_as_programs_write_them(weights, state, program, legacy, tmp_path):
    path = tmp_path / "x.pth.tar"
    torch.save(PROGRAMS[program](state), path, _use_new_zipfile_serialization=not legacy)
    network = torchvision.read(path)
    for name, value in weights.tensors.items():
        np.testing.assert_array_equal(network.tensors[name], value)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("legacy", [False, True])
def test_numbers_of_every_type_and_layout(dtype, legacy, tmp_path):
    base = torch.arange(-12, 12).reshape(2, 3, 4).to(getattr(torch, dtype))
    tensors = {"t.a": base, "t.b": base.permute(2, 0, 1), "t.c": base[1:, ::2], "t.d": base[0, 0, 0]}
    tensors["t.e"] = torch.zeros(0, 3)
    torch.save(tensors, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    file = TorchFile(tmp_path / "x.pth")
    for name, value in tensors.items():
        found = file.array(file.root[name])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, value.float().numpy())


def test_another_network_is_told_by_its_layers(state, tmp_path):
    torch.save(
        {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.bn1.bias": torch.zeros(64)}, tmp_path / "r"
    )
    with pytest.raises(WeightsError, match=r"it holds conv1\.weight \[64, 3, 7, 7\], layer1\.0\.bn1\.bias"):
        torchvision.read(tmp_path / "r")
    torch.save({n: t for n, t in state.items() if "classifier" not in n}, tmp_path / "half")
    with pytest.raises(WeightsError, match=r"has no fc6\.weight.*features\.0\.weight"):
        torchvision.read(tmp_path / "half")


# What nobody honest writes.


def archive(data, storages=None):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("x/data.pkl", data)
        for key, numbers in (storages or {"0": bytes(16)}).items():
            members.writestr(f"x/data/{key}", numbers)
    return file.getvalue()


class Calls:
    def __init__(self, function, *arguments):
        self.what = (function, arguments)

    def __reduce__(self):
        return self.what


TARGET = "/tmp/an alexnet test's pickle ran"
PLANTED = {
    "os.system": Calls(os.system, f"touch {TARGET!r}"),
    "eval": Calls(eval, "print('ran')"),
    "subprocess": Calls(subprocess.check_call, ["touch", TARGET]),
    "Path.touch": Calls(Path.touch, Path(TARGET)),
    "a class": Path("x"),
    "torch's own loader": Calls(torch.load, TARGET),
    "getattr": Calls(getattr, Path, "touch"),
}


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("where", ["zip", "legacy", "a dictionary's key"])
def test_a_planted_pickle_does_not_run(planted, where, tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    if where == "legacy":
        torch.save({"features.0.weight": PLANTED[planted]}, path, _use_new_zipfile_serialization=False)
    else:
        key = "features.0.weight" if where == "zip" else ("state_dict", PLANTED[planted])
        path.write_bytes(archive(pickle.dumps({key: PLANTED[planted]}, 2)))
    for module, name in ((os, "system"), (subprocess, "check_call"), (Path, "touch")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("it ran"))
    with pytest.raises(WeightsError, match=r"read safely: it wants .*nothing was run") as caught:
        torchvision.read(path)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value), "no colour codes"
    assert not Path(TARGET).exists()


def test_nothing_is_imported_for_a_pickle(tmp_path):
    """Importing alone can run code: a module beside the file must not be looked for."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    (tmp_path / "x.pth").write_bytes(archive(b"\x80\x02cevil\nthing\n."))
    code = (
        "import sys; from pathlib import Path\n"
        "from alexnet_server.models.public import torchvision\n"
        "try: torchvision.read(Path('x.pth'))\n"
        "except ValueError as error: print(error)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "evil.thing" in done.stdout


def tensor(shape, strides, offset=0, dtype="FloatStorage"):
    """A pickle of one tensor that says so of itself, over four numbers."""
    body = f"((Vstorage\nctorch\n{dtype}\nV0\nVcpu\nI4\ntQI{offset}\n"
    for numbers in (shape, strides):
        body += "(" + "".join(f"I{number}\n" for number in numbers) + "t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + body.encode() + b"I00\nNtR."


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((2, 3), (3, 1), 0),  # six of four numbers
        ((2,), (1 << 40,), 0),
        ((1 << 40,), (0,), 0),  # one number, a trillion times
        ((4,), (1,), 1),
        ((4,), (-1,), 3),
        ((4,), (1,), -4),
        ((4, 1), (1,), 0),
        ((1,) * 99, (1,) * 99, 0),
    ],
)
def test_tensors_outside_their_storage_are_refused(shape, strides, offset, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(archive(tensor((2, 2), (2, 1))))
    file = TorchFile(path)
    assert file.array(file.root).shape == (2, 2)
    path.write_bytes(archive(tensor(shape, strides, offset)))
    with pytest.raises(WeightsError, match=r"damaged|malformed"):
        TorchFile(path).array(TorchFile(path).root)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # an entry two thousand millions along in the memo
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of exabytes
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a string of gigabytes
        b"\x80\x02(t0.",
        b"\x80\x02",
        b"",
        b"\x80\x02\x82\x01.",  # an extension's code
        b"\x80\x02VQ\nQ.",  # another kind of persistent id
        b"\x80\x02]q\x00h\x00a.",  # a list within itself
    ],
)
def test_broken_pickles_are_refused(data, tmp_path):
    path = tmp_path / "x.pth"
    for content in (archive(data), data):
        path.write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            torchvision.read(path)
        assert str(path) in str(caught.value)


def test_cut_and_flipped_files_are_refused_or_read(state, tmp_path):
    """Never anything but the one error, wherever the damage is."""
    for legacy in (False, True):
        path = tmp_path / "x.pth"
        torch.save(OrderedDict(list(state.items())[:1]), path, _use_new_zipfile_serialization=not legacy)
        data = path.read_bytes()
        rng = np.random.default_rng(0)
        for place in rng.integers(0, min(len(data), 2000), 150):
            damaged = bytearray(data)
            damaged[place] ^= 1 << rng.integers(8)
            path.write_bytes(damaged if place % 2 else data[:place])
            with pytest.raises(WeightsError):  # it is a part of a network at best
                torchvision.read(path)


def test_a_legacy_storage_larger_than_the_file_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"a.b": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert data.endswith(struct.pack("<q", 4) + bytes(16))
    path.write_bytes(data[:-24] + struct.pack("<q", 1 << 50) + bytes(16))
    with pytest.raises(WeightsError, match="truncated"):
        TorchFile(path)


def read_all(path):
    file = TorchFile(path)
    return [file.array(tensor) for tensor in file.root.values()]


@pytest.mark.parametrize("member", ["archive/data.pkl", "archive/data/0"])
@pytest.mark.parametrize("wrong", ["longer than the archive", "compressed or encrypted"])
def test_members_that_lie_of_their_length_or_are_compressed(member, wrong, tmp_path):
    """What is asked for is reserved, however short the file is: a kilobyte took a gigabyte."""
    path = tmp_path / "x.pth"
    torch.save({"a.b": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {f"archive/{name.partition('/')[2]}": archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            compressed = name == member and wrong.startswith("compressed")
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED)
    if wrong.startswith("longer"):
        count = len(members[member])
        entry = path.read_bytes().rindex(b"PK\x01\x02", 0, path.read_bytes().rindex(member.encode()))
        said = bytearray(path.read_bytes())
        assert said[entry + 20 : entry + 28] == struct.pack("<II", count, count)
        said[entry + 20 : entry + 28] = struct.pack("<II", 2**29, 2**26)
        path.write_bytes(said)
    with pytest.raises(WeightsError, match=wrong):
        read_all(path)
