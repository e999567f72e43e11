"""What README.md tells a newcomer to type, typed in a checkout; what it shows, compared."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_server.http import examples
from tests.processes import ROOT, server_process

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```$", README, re.M | re.S) for line in block.splitlines()
]
MAKE = [line for line in COMMANDS if line.startswith("make ")]
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
SHOWN = re.search(r"^```json\n(.*?)^```$", README, re.M | re.S)[1]
TOLERANCE = 0.05
"""Of the golden photo, from one processor to another."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with server_process(tmp_path_factory.mktemp("readme") / "log") as running:
        yield running


@pytest.fixture
def real_server(tmp_path):
    """With the shipped model, as `make serve` starts it."""
    with server_process(tmp_path / "log", module="alexnet_server") as running:
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


def classified(server):
    (command,) = [line for line in COMMANDS if line.startswith("curl")]
    return json.loads(run(["sh", "-c", command.replace("localhost:8080", server.http_target)], server))


def test_curl_runs(server):
    shown = json.loads(SHOWN)
    assert list(classified(server)) == list(shown)


def test_the_servers_documentation_shows_the_same():
    shown = json.loads(SHOWN)["predictions"][0]
    assert examples.CLASSIFY[200]["content"]["application/json"]["example"]["predictions"] == [shown]
    for path in re.findall(r"image=@(\S+)", examples.PHOTO["x-example"] + " " + examples.PHOTOS["x-example"]):
        assert (ROOT / path).is_file()


@pytest.mark.slow
def test_curl_shows_what_it_says(real_server):
    answer, shown = classified(real_server), json.loads(SHOWN)
    assert (answer["model"], answer["version"]) == (shown["model"], shown["version"])
    ours, theirs = (each["predictions"][0] for each in (answer, shown))
    assert ours["score"] == pytest.approx(theirs["score"], abs=TOLERANCE)
    assert ours | {"score": 0} == theirs | {"score": 0}


@pytest.mark.slow
def test_the_example_photo_is_right_in_every_view(real_server):
    for views in ("center", "ten", "dense"):
        url = f"{real_server.http_target}/classify?views={views}"
        answer = json.loads(run(["curl", "-sS", "-F", "image=@tests/data/cc0/coffee.jpg", url], real_server))
        assert answer["predictions"][0]["label"] == "espresso", views


def test_the_program_runs(server):
    out = run([sys.executable, "-c", PROGRAM.replace("localhost:8081", server.target)], server)
    assert len(out.splitlines()) == 3


def test_the_command_runs(server):
    (command,) = [line for line in COMMANDS if line.startswith(".venv/bin/alexnet ")]
    words = command.replace(".venv/bin/", f"{Path(sys.executable).parent}/").split()
    assert "class " in run(words, server)


def test_every_command_is_run_here():
    told = [line for line in COMMANDS if line.startswith(("make ", "curl ", ".venv/bin/alexnet "))]
    assert told == COMMANDS
