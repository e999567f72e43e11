"""The samples in other languages, run as their first lines say: labels of a photo, and an error."""

import shutil
import subprocess

import pytest

from tests.processes import ROOT, server_process

SAMPLES = ROOT / "clients" / "samples"
CAT = ROOT / "tests" / "data" / "cc0" / "cat.jpg"
GRPC_PACKAGES = ("@grpc/grpc-js", "@grpc/proto-loader")
COMMANDS = {
    "classify.mjs": ("node",),
    "classify_grpc.mjs": ("node",),
    "classify.go": ("go", "run"),
    "Classify.java": ("java",),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with server_process(tmp_path_factory.mktemp("samples") / "log") as running:
        yield running


def test_every_sample_is_run():
    assert {path.name for path in SAMPLES.iterdir()} == set(COMMANDS)
    readme = (ROOT / "clients" / "README.md").read_text()
    assert all(f"(samples/{name})" in readme for name in COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("sample", COMMANDS)
def test_a_sample(sample, server, tmp_path):
    program = COMMANDS[sample]
    if shutil.which(program[0]) is None:
        pytest.skip(f"{program[0]} is not installed")
    shutil.copy(SAMPLES / sample, tmp_path)
    address = [f"http://{server.http_target}"]
    if "grpc" in sample:
        installed = subprocess.run(
            ["npm", "install", "--silent", "--no-audit", *GRPC_PACKAGES], cwd=tmp_path, timeout=200
        )
        assert installed.returncode == 0
        address = [server.target, str(ROOT / "clients" / "alexnet_client" / "pb" / "classifier.proto")]

    def run(photo):
        command = [*program, sample, str(photo), *address]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)

    answered = run(CAT)
    assert answered.returncode == 0, answered.stderr
    assert "class " in answered.stdout
    refused = run(ROOT / "LICENSE")
    assert refused.returncode == 1
    assert "unsupported_format" in refused.stderr
