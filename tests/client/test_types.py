"""The type hints admit what the documentation names."""

import subprocess
import sys

from tests.processes import ROOT


def test_a_users_program_passes_a_strict_type_checker():
    program = ROOT / "tests" / "client" / "typed_program.py"
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=pyproject.toml", str(program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
