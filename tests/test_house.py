"""The order of the house's rooms: a wrong import, planted in a copy, is found."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("clients/alexnet_client", "server/alexnet_server", "training/alexnet_train")


@pytest.fixture
def house(tmp_path):
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(house):
    """What import-linter says of the copy."""
    roots = os.pathsep.join(str((house / package).parent) for package in PACKAGES)
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(
        command, cwd=house, env=os.environ | {"PYTHONPATH": roots}, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("file", "planted", "broken"),
    [
        ("server/alexnet_server/http/upload.py", "alexnet_server.rpc.messages", "its doors independent"),
        ("server/alexnet_server/oip/tensors.py", "alexnet_server.http.body", "The server's storeys"),
        (
            "server/alexnet_server/engines/labels.py",
            "alexnet_server.batching.batcher",
            "The server's storeys",
        ),
        ("server/alexnet_server/batching/admission.py", "alexnet_server.batching.batcher", "No circle"),
        ("training/alexnet_train/network/draws.py", "alexnet_train.run.step", "The training's storeys"),
        ("training/alexnet_train/data/item.py", "alexnet_train.data.sources", "No circle"),
        ("server/alexnet_server/results.py", "alexnet_train.config", "One way through the house"),
    ],
)
def test_a_wrong_import_is_caught(house, file, planted, broken):
    with (house / file).open("a") as code:
        code.write(f"\n\ndef _planted() -> None:\n    import {planted}\n")
    status, said = lint(house)
    assert status == 1
    line = next(line for line in said.splitlines() if broken in line)
    assert line.endswith("BROKEN"), said


def test_the_house_as_it_is_keeps_its_order(house):
    assert lint(house)[0] == 0
