"""The commands of docs/lesson.md, run one after another on a few small images with a small network."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_train.cli import main

ROOT = Path(__file__).parents[2]
LESSON = (ROOT / "docs" / "lesson.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", LESSON, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
SMALL = {"epochs": 0, "steps": 4, "window": 99, "hidden": 64, "batch_size": 8, "held_out": 16, "log_steps": 1}
"""In place of the lesson's own numbers; everything else stays."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the lesson is followed: `tiny-imagenet` with eleven classes, one more than are trained."""
    draw = np.random.default_rng(1)
    for split, count in (("train", 8), ("validation", 3)):
        for label in range(11):
            images = tmp_path / "tiny-imagenet" / split / f"n{label:08d}"
            images.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 25, (64, 64, 3)) + 20 * label
                Image.fromarray(pixels.astype(np.uint8)).save(images / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_lesson_can_be_followed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        program, *words = shlex.split(command)
        assert program == ".venv/bin/alexnet-train"
        if words[0] == "run":
            words += [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
        assert main(words) in (None, 0), capsys.readouterr().err
    figures = {path.name for path in (folder / "runs/lesson/figures").iterdir()}
    assert figures == set(re.findall(r"^- `([\w-]+\.png)`", LESSON, re.MULTILINE))
    assert "runs/lesson/last.pt" in capsys.readouterr().out


def test_every_file_it_points_to_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)`\]\(\.\./([^)]+)\)", LESSON)
    assert len(named) == 7
    for name, path in named:
        assert (ROOT / path).is_file()
        assert Path(path).name == name
