"""Each wheel with its base dependencies alone, installed where there is nothing else, classifies."""

import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.processes import ROOT, server_process

CAT = ROOT / "tests" / "data" / "cc0" / "cat.jpg"

PROGRAM = """
import sys
from alexnet_client import AsyncClient, Client
with Client(sys.argv[1]) as client:
    print(client.classify(sys.argv[2]).top.label)
    print(next(client.classify_many([sys.argv[2]])).top.label)
heavy = {"numpy", "PIL", "fastapi", "onnx", "onnxruntime", "tritonclient", "pydantic", "torch"}
print(sorted(heavy & set(sys.modules)))
"""


@pytest.fixture(scope="module", params=["alexnet", "alexnet-client"])
def environment(request, tmp_path_factory):
    """An empty environment with a wheel in it: the wheel's name, and the path of its programs."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source = folder / "source"  # a build leaves files beside its source
    ignored = shutil.ignore_patterns(".git", ".venv", "model.onnx", "__pycache__", "tests", "*.log")
    shutil.copytree(ROOT if request.param == "alexnet" else ROOT / "clients", source, ignore=ignored)
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", str(folder / "venv"))
    programs = folder / "venv" / "bin"
    run(
        str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)
    )
    return request.param, programs


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_base_install_classifies(environment, tmp_path):
    name, programs = environment
    listed = run(str(programs / "python"), "-m", "pip", "list", "--format=freeze")
    names = {line.partition("==")[0] for line in listed.splitlines()}
    assert names - {"pip", "setuptools", "wheel"} == {name, "grpcio", "protobuf", "typing_extensions"}
    with server_process(tmp_path / "log") as server:
        out = run(str(programs / "python"), "-c", PROGRAM, server.target, str(CAT))
        assert out.splitlines()[2] == "[]"
        assert out.splitlines()[0] == out.splitlines()[1]
        table = run(str(programs / "alexnet"), "classify", str(CAT), "--address", server.target)
        assert table.splitlines()[1].endswith(out.splitlines()[0])
    if name == "alexnet":
        for command in ("alexnet-server", "alexnet-train"):
            done = subprocess.run([str(programs / command)], capture_output=True, text=True, timeout=60)
            assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
            assert "pip install '.[" in done.stderr


def test_both_projects_say_the_same_of_the_client():
    whole, alone = (
        tomllib.loads((ROOT / path).read_text())["project"]
        for path in ("pyproject.toml", "clients/pyproject.toml")
    )
    for key in ("version", "requires-python", "dependencies"):
        assert whole[key] == alone[key]
    assert alone["scripts"].items() <= whole["scripts"].items()
    assert whole["optional-dependencies"]["http"] == alone["optional-dependencies"]["http"]
    assert (ROOT / "clients" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
