"""A command whose packages are not installed says in a line which extra brings them."""

import subprocess
import sys
import tomllib

import pytest

from tests.processes import ROOT

PROGRAM = """
import sys
from importlib import import_module
missing, module, *arguments = sys.argv[1:]
sys.modules.update(dict.fromkeys(missing.split(",")))
sys.argv[1:] = arguments
sys.exit(import_module(module).main())
"""


@pytest.mark.parametrize(
    ("command", "missing", "arguments", "extra"),
    [
        ("alexnet-server", "uvicorn", [], "'.[cpu]'"),
        ("alexnet-train", "numpy", ["--help"], "'.[train]'"),
        ("alexnet", "httpx", ["health", "--address", "http://localhost:1"], "'.[http]'"),
    ],
)
def test_the_missing_extra_is_named(command, missing, arguments, extra):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module = scripts[command].removesuffix(":main")
    program = [sys.executable, "-c", PROGRAM, missing, module, *arguments]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith(f"{command}: ")
    assert missing in done.stderr
    assert extra in done.stderr
    assert "Traceback" not in done.stderr
