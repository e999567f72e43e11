"""What keeps `alexnet-server` from starting: one line that says what is wrong, and exit 1."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.server.test_process import command

PORTS = ("--http-port=0", "--grpc-port=0")


def refused(*arguments: str) -> str:
    """The line it says before it is ready."""
    result = command(*PORTS, *arguments)
    assert result.returncode == 1
    said = [line for line in result.stderr.splitlines() if line.startswith("alexnet-server: ")]
    assert len(said) == 1
    assert result.stderr.splitlines()[-1] == said[0]
    assert "Traceback" not in result.stderr
    assert " ready after" not in result.stderr
    return said[0]


@pytest.fixture
def repository(tiny_repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_repository, tmp_path / "repository"))


def test_no_repository(tmp_path: Path) -> None:
    assert "no such folder" in refused(f"--model-repository={tmp_path / 'nothing'}")
    assert "holds no model" in refused(f"--model-repository={tmp_path}")


def test_a_model_that_cannot_be_read(repository: Path) -> None:
    (repository / "alexnet" / "config.pbtxt").write_text("nonsense {")
    line = refused(f"--model-repository={repository}")
    assert str(repository / "alexnet" / "config.pbtxt") in line


def test_labels_that_do_not_match(repository: Path) -> None:
    labels = repository / "alexnet" / "labels.txt"
    labels.write_text(labels.read_text().replace("\t", "\tnot ", 1))
    line = refused(f"--model-repository={repository}")
    assert str(labels) in line
    assert "restore it, or export the model again" in line


def test_weights_that_are_damaged(repository: Path) -> None:
    weights = repository / "alexnet.weights"
    weights.write_bytes(weights.read_bytes()[:-100])
    for model in repository.glob("*/1/model.onnx"):
        model.unlink()
    assert weights.name in refused(f"--model-repository={repository}")


def test_a_taken_grpc_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        line = refused(f"--grpc-port={port}")
    assert f"port {port} on 127.0.0.1 is taken" in line
    assert "--grpc-port" in line


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN={name}"
    subprocess.run(
        ["openssl", *words.split(), "-out", str(cert), "-keyout", str(key)], check=True, capture_output=True
    )
    return cert, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_wrong_key_file(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "ours")
    _, other = certificate(tmp_path, "theirs")
    line = refused(f"--tls-cert-file={cert}", f"--tls-key-file={other}")
    assert "the key is not the certificate's" in line
    line = refused(f"--tls-cert-file={key}", f"--tls-key-file={key}")
    assert "PEM format" in line
