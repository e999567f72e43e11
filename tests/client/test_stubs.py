"""The committed stubs are what the .proto generates."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PB = Path("alexnet_client/pb")


def protoc_arguments() -> list[str]:
    """The arguments of `make proto`, read from the Makefile so that there is one copy of them."""
    recipe = re.search(r"^proto:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    words = recipe[1].replace("\\\n", " ").split()
    return [word.replace("$(BIN)", str(Path(sys.executable).parent)) for word in words[1:]]


def test_stubs_are_current(tmp_path):
    pytest.importorskip("grpc_tools")
    arguments = [re.sub(r"_out=clients$", f"_out={tmp_path}", word) for word in protoc_arguments()]
    assert sum(str(tmp_path) in word for word in arguments) == 4
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
    generated = {path.name: path.read_text() for path in (tmp_path / PB).iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "clients" / PB).glob("*_pb2*")}
    assert committed == generated, "run `make proto` and commit what it writes"
