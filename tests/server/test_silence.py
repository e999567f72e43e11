"""Nothing that is started here reports to anybody, or writes where nobody asked it to."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import server_process

ROOT = Path(__file__).parents[2]
_LOOKED_UP = re.compile(r"sin6?_port=htons\((?:53|80|443)\)")


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_the_server_writes_to_its_own_cache_alone_and_looks_up_no_name(
    engine: str, tiny_repository: Path, tmp_path: Path
) -> None:
    home, calls = tmp_path / "home", tmp_path / "calls"
    home.mkdir()
    environ = {"HOME": str(home), "XDG_CACHE_HOME": "", "CI": "", "TMPDIR": str(home)}
    trace = ["strace", "-D", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(calls)]
    with server_process(
        tmp_path / "log",
        f"--engine={engine}",
        f"--model-repository={tiny_repository}",
        module="alexnet_server",
        wrapper=trace if shutil.which("strace") else [],
        **environ,
    ) as server:
        assert server.end(signal.SIGINT) == 0
    written = {path.relative_to(home).parts[:2] for path in home.rglob("*") if path.is_file()}
    assert written <= {(".cache", "alexnet")}
    if calls.exists():
        assert not [line for line in calls.read_text().splitlines() if _LOOKED_UP.search(line)]


@pytest.mark.parametrize("package", ["alexnet_server", "alexnet_train"])
def test_importing_a_package_of_ours_silences_the_engines(package: str) -> None:
    code = (
        f"import os, sys, {package}; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'; import openvino; "
        "assert sys.modules['openvino_telemetry'] is None; assert not hasattr(openvino, 'convert_model')"
    )
    environ = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environ)


def test_images_and_tritons_own_script_are_silent_too() -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    silent = [stage.splitlines()[0] for stage in stages if "ORT_DISABLE_TELEMETRY=1" in stage]
    assert [line.split()[-1] for line in silent] == ["final", "tritonserver"]
    assert "ORT_DISABLE_TELEMETRY=1" in (ROOT / "tests" / "triton" / "install.sh").read_text()
