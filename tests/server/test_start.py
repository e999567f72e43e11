"""What keeps `alexnet-server` from starting: one line that says what is wrong, and exit 1."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from alexnet_server.models.repository import read_repository
from alexnet_server.models.unpack import unpack
from tests.server.test_process import command

PORTS = ("--http-port=0", "--grpc-port=0")


def refused(*arguments: str, wrapper: Sequence[str] = ()) -> str:
    """The line it says before it is ready."""
    result = command(*PORTS, *arguments, wrapper=wrapper)
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
    assert "contains no model" in refused(f"--model-repository={tmp_path}")


def test_a_model_that_cannot_be_read(repository: Path) -> None:
    (repository / "alexnet" / "config.pbtxt").write_text("nonsense {")
    line = refused(f"--model-repository={repository}")
    assert str(repository / "alexnet" / "config.pbtxt") in line


def test_a_model_without_its_config(repository: Path) -> None:
    """It would be left out without a word, as other people's folders are."""
    (repository / "alexnet" / "config.pbtxt").unlink()
    line = refused(f"--model-repository={repository}")
    assert f"{repository / 'alexnet'} has no config.pbtxt" in line
    shutil.rmtree(repository / "alexnet")  # taken away on purpose: fewer models are served
    assert sorted(read_repository(repository).models) == ["alexnet_10crop", "alexnet_dense"]


def test_a_damaged_file_of_a_complete_model(repository: Path) -> None:
    for part in (*repository.glob("*/graph.*.onnx"), repository / "alexnet.weights"):
        part.unlink()
    model = repository / "alexnet" / "1" / "model.onnx"
    for data in (b"nonsense", b""):
        model.parent.mkdir(exist_ok=True)
        model.write_bytes(data)
        line = refused(f"--model-repository={repository}")
        assert f"cannot load {model}" in line
        assert "export the model again" in line


def test_files_that_may_not_be_read(repository: Path) -> None:
    """As where a volume's files belong to another user than the container's."""
    unpack(read_repository(repository), "int8")
    for path in (repository / "alexnet" / "1" / "model.onnx", repository / "alexnet" / "config.pbtxt"):
        mode = path.stat().st_mode
        path.chmod(0)
        line = refused(f"--model-repository={repository}", wrapper=unprivileged())
        assert f"cannot read {path}: Permission denied (give read permission to the user" in line
        path.chmod(mode)
    repository.chmod(0)
    line = refused(f"--model-repository={repository}", wrapper=unprivileged())
    assert f"cannot read {repository}" in line
    repository.chmod(0o755)


def unprivileged() -> list[str]:
    """What takes root's right to read everything from a command."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root reads everything, and setpriv is not there to prevent it")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]


def test_in_json(tmp_path: Path) -> None:
    """Under `--log-format=json` a log collector gets JSON lines alone."""
    for arguments, environ, status in (
        (["--log-format=json", f"--model-repository={tmp_path}"], {}, 1),
        (["--queue-size=0"], {"ALEXNET_LOG_FORMAT": "json"}, 2),
    ):
        result = command(*PORTS, *arguments, **environ)
        assert result.returncode == status
        last = [json.loads(line) for line in result.stderr.splitlines()][-1]
        assert last["level"] == "critical"
        assert "contains no model" in last["message"] or "--queue-size" in last["message"]


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
    assert f"port {port} on 127.0.0.1 is in use" in line
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
    assert "the key does not match the certificate" in line
    line = refused(f"--tls-cert-file={key}", f"--tls-key-file={key}")
    assert f"{key} is not a certificate in PEM format" in line
    line = refused(f"--tls-cert-file={cert}", f"--tls-key-file={cert}")
    assert f"{cert} is not a key in PEM format" in line
    line = refused(f"--tls-cert-file={cert}", f"--tls-key-file={tmp_path / 'none'}")
    assert f"cannot read {tmp_path / 'none'}: No such file" in line
    sealed = tmp_path / "sealed.key"
    words = f"ec -in {key} -out {sealed} -aes128 -passout pass:secret"
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
    assert "has a passphrase" in refused(f"--tls-cert-file={cert}", f"--tls-key-file={sealed}")


def test_a_wrong_file_of_api_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    for data, words in ((b"# none yet\n", "holds no API key"), (b"\xff\xfe\x00", "is not text")):
        file.write_bytes(data)
        line = refused(f"--api-keys-file={file}")
        assert str(file) in line
        assert words in line
