"""`alexnet-train run --processes`: several ranks of one run, which end as one command does."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from alexnet_train import checkpoint
from alexnet_train.cli import main
from alexnet_train.run.launch import launch
from alexnet_train.run.log import read
from alexnet_train.run.parallel import workers

RUN = {"window": 99, "hidden": 16, "batch_size": 8, "epochs": 0, "held_out": 8, "checkpoint_steps": 2}


def command(dataset: Path, out: Path, steps: int, *more: str) -> list[str]:
    words = ["run", "2012-tiny", "--data", str(dataset), "--out", str(out), f"--set=steps={steps}", *more]
    return words + [f"--set={name}={value}" for name, value in RUN.items()]


@pytest.mark.parallel
def test_sigterm_to_a_run_of_two_processes_is_one_line_and_143(dataset: Path, tmp_path: Path) -> None:
    words = command(dataset, tmp_path, 100_000, "--processes", "2", "--parallel", "towers")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [sys.executable, "-m", "alexnet_train", *words]
    with subprocess.Popen(started, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 200
        while not (tmp_path / "last.pt").exists():
            assert time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.1)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    last = checkpoint.load(tmp_path / "last.pt")["step"]
    *told, line = [one for one in errors.splitlines() if "image/s" not in one and one]
    assert line == f"alexnet-train: saved at update {last:,}; the same command continues from there"
    assert len(told) == 1, "what runs"
    assert told[0].startswith("2012-tiny: ")
    assert read(tmp_path / "log.jsonl")[0]["parallel"] == "towers"


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("starter", "wrong", "mend"),
    [
        ([], ["--processes=2", "--data=nothing/here"], "nothing/here"),
        ([], ["--processes=2", "--init=no.pt"], "no.pt"),
        (TORCHRUN, ["--init=no.pt"], "no.pt"),
        (TORCHRUN, ["--set=compile=nonsense"], "compile=nonsense"),
    ],
)
def test_a_wrong_input_is_told_by_one_rank(
    starter: list[str], wrong: list[str], mend: str, dataset: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", *starter, "alexnet_train"]
    words += [*command(dataset, tmp_path, 1, "--parallel", "towers"), *wrong]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200)
    (told,) = (line for line in ended.stderr.splitlines() if line.startswith("alexnet-train: "))
    assert mend in told
    assert ended.returncode == 1


def _left_by(how: str, folder: Path) -> int:
    """A rank's work: meet the other, then end in some way."""
    with workers("data", "run it again") as group:
        rank = group.rank
        (folder / str(rank)).write_text(f"{dist.get_world_size()} {torch.get_num_threads()}")
        dist.barrier()
    if how == "status":
        return 3 * rank
    if how == "signal" and rank:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stop" and rank:
        os.kill(os.getppid(), signal.SIGTERM)
    if how == "stop":
        time.sleep(100)
    return 0


@pytest.mark.parallel
@pytest.mark.parametrize(("how", "status"), [("finished", 0), ("status", 3), ("signal", 137), ("stop", 143)])
def test_the_status_is_that_of_the_first_that_failed(
    how: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before: Callable[..., object] | int | None = signal.getsignal(signal.SIGTERM)
    assert launch(2, "data", partial(_left_by, how, tmp_path)) == status
    assert signal.getsignal(signal.SIGTERM) is before
    share = max(1, torch.get_num_threads() // 2)
    assert [(tmp_path / name).read_text() for name in "01"] == [f"2 {share}"] * 2


@pytest.mark.parametrize(
    ("words", "environment", "mend"),
    [
        (["--processes", "2"], {}, "2 processes, each training alone: add --parallel"),
        (["--processes", "3", "--parallel", "towers"], {}, "here are 3: add --processes 2"),
        (["--parallel", "towers"], {}, "here are 1: add --processes 2"),
        (["--processes", "2", "--parallel", "data"], {"RANK": "0"}, "leave --processes out"),
    ],
)
def test_processes_that_do_not_fit_are_told_before_any_is_started(
    words: list[str],
    environment: dict[str, str],
    mend: str,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(command(dataset, tmp_path, 1, *words)) == 1
    told = capsys.readouterr().err
    assert mend in told
    assert told.count("\n") == 1
