"""What README.md tells a newcomer to type, typed in a checkout; what it shows, compared."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, server_process

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```$", README, re.M | re.S) for line in block.splitlines()
]
MAKE = [line for line in COMMANDS if line.startswith("make ")]
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
TOLERANCE = 0.05
"""Of the golden photo, from one processor to another."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The real one, with the shipped model, as `make serve` starts it."""
    log = tmp_path_factory.mktemp("readme") / "log"
    with server_process(log, "--host=127.0.0.1", module="alexnet_server") as running:
        yield running


def run(command, server):
    environ = os.environ | {"ALEXNET_CLIENT_ADDRESS": server.target}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_short():
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_the_targets(command):
    """Running them would build an environment for each; CI runs both."""
    subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_curl_shows_what_it_says(server):
    (command,) = [line for line in COMMANDS if line.startswith("curl")]
    answer = json.loads(run(["sh", "-c", command.replace("localhost:8080", server.http_target)], server))
    shown = json.loads(re.search(r"^```json\n(.*?)^```$", README, re.M | re.S)[1])
    assert (answer["model"], answer["version"]) == (shown["model"], shown["version"])
    ours, theirs = (each["predictions"][0] for each in (answer, shown))
    assert ours["score"] == pytest.approx(theirs["score"], abs=TOLERANCE)
    assert ours | {"score": 0} == theirs | {"score": 0}


def test_the_program_runs(server):
    out = run([sys.executable, "-c", PROGRAM.replace("localhost:8081", server.target)], server)
    assert out.splitlines()[0] == "espresso"


def test_the_command_runs(server):
    (command,) = [line for line in COMMANDS if line.startswith(".venv/bin/alexnet ")]
    words = command.replace(".venv/bin/", f"{Path(sys.executable).parent}/").split()
    assert "espresso" in run(words, server)


def test_every_command_is_run_here():
    told = [line for line in COMMANDS if line.startswith(("make ", "curl ", ".venv/bin/alexnet "))]
    assert told == COMMANDS
