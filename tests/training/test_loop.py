"""Whole runs: alone, as two towers, data-parallel; stopped, resumed, and with a rank that dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from full_disk import file_size_limit
from terminated import terminated_in

from alexnet_train import checkpoint
from alexnet_train.checkpoint import CheckpointError
from alexnet_train.cli import main
from alexnet_train.config import RECIPES, Config, ConfigError, recipe_named
from alexnet_train.data.dataset import DatasetError
from alexnet_train.run.log import read
from alexnet_train.run.loop import DivergedError, Stopped, run
from tests.numerics import rounding, terms

SMALL = {
    "window": 99,
    "hidden": 64,
    "batch_size": 8,
    "epochs": 0,
    "steps": 4,
    "held_out": 16,
    "log_steps": 2,
    "checkpoint_steps": 2,
    "evaluate_epochs": 0,
}


def small(recipe: str, **changes: object) -> Config:
    return replace(RECIPES[recipe], **{**SMALL, **changes})


@contextmanager
def ranks(
    mode: str, recipe: str, data: Path, out: Path, terminate_in: int | None = None, **changes: object
) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes of the command, as torchrun starts them; killed at the end.

    With ``terminate_in`` rank 1 gets SIGTERM in that update.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    whole, cut = ["-m", "alexnet_train"], [str(Path(__file__).with_name("terminated.py")), str(terminate_in)]
    command = ["run", recipe, "--data", str(data), "--out", str(out), "--parallel", mode]
    command += [f"--set={name}={value}" for name, value in {**SMALL, **changes}.items()]
    started = []
    for rank in "01":
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(
                [sys.executable, *(cut if rank == "1" and terminate_in is not None else whole), *command],
                env=os.environ | environment,
                stderr=pipe,
                stdout=pipe,
                text=True,
            )
        )
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def finished(processes: list[subprocess.Popen[str]], timeout_s: float = 280) -> list[tuple[int, str]]:
    """(exit status, stderr) of each."""
    ends = []
    for process in processes:
        _, errors = process.communicate(timeout=timeout_s)
        ends.append((process.returncode, errors))
    return ends


def furthest(one: Path, other: Path) -> float:
    """The largest difference of two checkpoints, relative to each tensor's maximum."""
    first, second = checkpoint.load(one), checkpoint.load(other)
    assert first["step"] == second["step"]
    return max(
        ((second[kind][name] - tensor).abs().max() / tensor.abs().max().clamp(min=1e-12)).item()
        for kind in ("model", "velocity")
        for name, tensor in first[kind].items()
    )


def float32_updates(path: Path) -> float:
    """How far two runs' tensors may lie apart, relative to each one's maximum.

    An update sums over each layer's inputs forward and backward, and over conv1's places for its gradient.
    """
    places = SMALL["batch_size"] * ((SMALL["window"] - 11) // 4 + 1) ** 2
    return rounding(SMALL["steps"] * (2 * terms(checkpoint.load(path)["model"]) + places), 1.0)


@pytest.fixture(scope="module")
def alone(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four updates by one process."""
    out = tmp_path_factory.mktemp("alone")
    run(small("2012-tiny"), dataset, out)
    return out


@pytest.mark.numerics
@pytest.mark.parallel
def test_towers_and_one_process_write_the_same_checkpoint_and_resume_each_others(
    dataset: Path, alone: Path, tmp_path: Path
) -> None:
    with ranks("towers", "2012-tiny", dataset, tmp_path, terminate_in=0) as processes:
        ends = finished(processes)
    assert [status for status, _ in ends] == [143, 143]
    assert "saved at update 2; the same command continues from there" in ends[0][1]
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2, "the ranks agree during the next update"
    with terminated_in(2), pytest.raises(Stopped):
        run(small("2012-tiny"), dataset, tmp_path)
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 3
    with ranks("towers", "2012-tiny", dataset, tmp_path) as processes:
        assert [status for status, _ in finished(processes)] == [0, 0]
    assert furthest(alone / "last.pt", tmp_path / "last.pt") < float32_updates(alone / "last.pt")
    records = read(tmp_path / "log.jsonl")
    assert [r["parallel"] for r in records if "parallel" in r] == ["towers", "none", "towers"]
    one_image = 1.01 / SMALL["held_out"]  # whose two best logits may lie closer than their rounding
    expected = read(alone / "log.jsonl")[-1]["top1_error"]
    assert records[-1]["top1_error"] == pytest.approx(expected, abs=one_image)


@pytest.mark.numerics
@pytest.mark.parallel
def test_data_parallel_writes_the_checkpoint_of_one_process(
    dataset: Path, alone: Path, tmp_path: Path
) -> None:
    with ranks("data", "2012-tiny", dataset, tmp_path) as processes:
        assert [status for status, _ in finished(processes)] == [0, 0]
    assert furthest(alone / "last.pt", tmp_path / "last.pt") < float32_updates(alone / "last.pt")
    found, expected = (read(folder / "log.jsonl")[-1]["loss"] for folder in (tmp_path, alone))
    assert found == pytest.approx(expected, rel=float32_updates(alone / "last.pt"))


def _wait_for_updates(out: Path) -> None:
    deadline = time.monotonic() + 200
    while not (out / "last.pt").exists():
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.2)


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("how", "limit_s", "lost"),
    [
        (signal.SIGKILL, 20, 1),
        pytest.param(signal.SIGKILL, 20, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 60, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 60, 1, marks=pytest.mark.slow),
    ],
)
def test_a_lost_rank_stops_the_other_with_a_message(
    how: signal.Signals, limit_s: float, lost: int, dataset: Path, tmp_path: Path
) -> None:
    with ranks("towers", "2012-tiny", dataset, tmp_path, steps=100_000) as processes:
        _wait_for_updates(tmp_path)
        processes[lost].send_signal(how)
        began = time.monotonic()
        status, errors = finished([processes[1 - lost]], limit_s)[0]
        assert time.monotonic() - began < limit_s
    assert status != 0
    message = [line for line in errors.splitlines() if line.startswith("alexnet-train:")]
    assert len(message) == 1
    assert "so this one stops too" in message[0]
    assert str(tmp_path) in message[0]
    assert "Traceback" not in errors
    assert checkpoint.load(tmp_path / "last.pt")["step"] >= 2


@pytest.mark.parallel
def test_sigterm_to_one_rank_saves_and_stops_both(dataset: Path, tmp_path: Path) -> None:
    with ranks("towers", "2012-tiny", dataset, tmp_path, steps=100_000, checkpoint_steps=2) as processes:
        _wait_for_updates(tmp_path)
        processes[1].send_signal(signal.SIGTERM)
        assert [status for status, _ in finished(processes, 60)] == [143, 143]
    assert checkpoint.load(tmp_path / "last.pt")["step"] < 100_000


@pytest.mark.parametrize("recipe", ["2012-tiny", "modern-tiny"])
def test_a_stopped_run_resumes_to_the_same_weights_bit_for_bit(
    recipe: str, dataset: Path, tmp_path: Path
) -> None:
    config = small(recipe, bfloat16=False, checkpoint_steps=100)
    run(config, dataset, tmp_path / "whole")
    with terminated_in(1), pytest.raises(Stopped):
        run(config, dataset, tmp_path / "stopped")
    assert checkpoint.load(tmp_path / "stopped/last.pt")["step"] == 2
    run(config, dataset, tmp_path / "stopped")
    whole, resumed = (checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "stopped"))
    assert resumed["step"] == whole["step"] == 4
    kinds = ["model", "velocity"] + (["average"] if "average" in whole else [])
    for kind in kinds:
        for name, tensor in whole[kind].items():
            assert torch.equal(resumed[kind][name], tensor), f"{kind} {name}"


def test_the_paper_recipe_runs_a_step_and_tells_what_it_does(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(small("paper-tiny", steps=1), dataset, tmp_path)
    first, *bars = capsys.readouterr().err.splitlines()
    assert first == "paper-tiny: windows of 99 pixels, 80 images, updates 0 to 1 of 8, cpu, float32"
    assert "loss=" in bars[-1]
    assert "held_out_error=" in bars[-1]
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert records[0]["config"]["variant"] == "paper"
    assert records[-1]["step"] == 1


@pytest.mark.parametrize(
    ("recipe", "changes", "mend"),
    [
        ("paper-tiny", {}, "variant '2012' there, 'paper' here"),
        ("2012-tiny", {"hidden": 32}, "hidden 64 there, 32 here"),
        ("2012-tiny", {"activation": "tanh"}, "activation 'relu' there, 'tanh' here"),
        ("2012-tiny", {"constant_lrn": True}, "constant_lrn False there, True here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(
    recipe: str, changes: dict[str, object], mend: str, dataset: Path, alone: Path
) -> None:
    with pytest.raises(CheckpointError, match=mend) as caught:
        run(small(recipe, **changes), dataset, alone)
    assert str(alone / "last.pt") in str(caught.value)


def test_a_checkpoint_of_other_classes_is_refused_by_name(dataset: Path, alone: Path, tmp_path: Path) -> None:
    state = checkpoint.load(alone / "last.pt")
    state["model"]["fc8.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="7 classes there, 4 here"):
        run(small("2012-tiny"), dataset, tmp_path)


def test_starting_from_another_variants_weights_is_refused(
    dataset: Path, alone: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="do not fit variant owt"):
        run(small("2012-tiny", variant="owt"), dataset, tmp_path, init=alone / "last.pt")


@pytest.mark.parametrize(("held_out", "left"), [(90, 6), (4000, 0)])
def test_too_few_images_for_a_batch_are_named(
    held_out: int, left: int, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=f"^{left} training images are left besides {held_out} held out"):
        run(small("2012-tiny", held_out=held_out), dataset, tmp_path)


def test_a_full_disk_keeps_the_last_checkpoint(
    dataset: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (alone / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(before)
    (tmp_path / "log.jsonl").write_text("\n" * 4)
    command = ["run", "2012-tiny", "--data", str(dataset), "--out", str(tmp_path)]
    command += [f"--set={name}={value}" for name, value in {**SMALL, "steps": 6}.items()]
    for limit, mend in (
        (len(before) // 2, ("last.pt: could not be written (", "); the last checkpoint is intact")),
        (3, ("log.jsonl: cannot be written (File too large); ", "run it again, and it resumes")),
    ):
        with file_size_limit(limit):
            assert main(command) == 1
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith(f"alexnet-train: {tmp_path}/{mend[0]}")
        assert message.endswith(mend[1])
        assert (tmp_path / "last.pt").read_bytes() == before
        assert not (tmp_path / "last.part").exists()


def test_a_folder_that_cannot_be_made_is_named(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    assert main(["run", "2012-tiny", "--data", str(dataset), "--out", str(out)]) == 1
    assert capsys.readouterr().err == f"alexnet-train: {out}: Not a directory\n"


def test_sigterm_says_where_it_was_saved_and_exits_143(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "2012-tiny", "--data", str(dataset), "--out", str(tmp_path)]
    command += [f"--set={name}={value}" for name, value in SMALL.items()]
    with terminated_in(1):
        assert main(command) == 143
    assert capsys.readouterr().err.splitlines()[-1] == (
        "alexnet-train: saved at update 2; the same command continues from there"
    )


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(dataset: Path, tmp_path: Path) -> None:
    run(small("modern-tiny", steps=1, bfloat16=False), dataset, tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    state = checkpoint.load(tmp_path / "last.pt")
    state["model"]["fc8.bias"][0] = float("nan")
    torch.save(state, tmp_path / "last.pt")
    poisoned = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(DivergedError, match=r"the loss of update 2 is not a number, at rate 0\.0"):
        run(
            small("modern-tiny", steps=8, bfloat16=False, checkpoint_steps=3, log_steps=50), dataset, tmp_path
        )
    assert (tmp_path / "last.pt").read_bytes() == poisoned != before


def test_updates_are_not_set_where_epochs_count() -> None:
    with pytest.raises(ConfigError, match="--set epochs=N"):
        recipe_named("2012", ["steps=2"])
    assert recipe_named("2012", ["epochs=0", "steps=2"]).length(10_000) == 2


@pytest.mark.parametrize("text", ["bfloat16=maybe", "compile=nonsense"])
def test_switches_take_true_or_false_alone(text: str) -> None:
    with pytest.raises(ConfigError, match="takes true or false"):
        recipe_named("2012", [text])
    assert recipe_named("2012", ["bfloat16=on"]).bfloat16
    assert not recipe_named("2012", ["compile=off"]).compile


def test_a_data_set_of_other_classes_is_refused_by_name(dataset: Path, alone: Path, tmp_path: Path) -> None:
    state = checkpoint.load(alone / "last.pt")
    state["classes"][1] = ("n09999999", "something else")
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="class 1 is n09999999 there, n00000001 here"):
        run(small("2012-tiny"), dataset, tmp_path)
