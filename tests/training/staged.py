"""The CPU's two stages, small enough for a test."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from alexnet_train.config import RECIPES
from alexnet_train.run.loop import run
from alexnet_train.two_stage.classifier import ClassifierConfig, train
from alexnet_train.two_stage.features import extract

SMALL = ClassifierConfig(fc6_rank=8, fc7_rank=8, batch_size=16, epochs=2, warmup_steps=2, bfloat16=False)
RECIPE = dataclasses.replace(
    RECIPES["tiny-convolutions"],
    batch_size=16,
    hidden=16,
    steps=4,
    warmup_steps=1,
    decay_steps=2,
    held_out=32,
    log_steps=2,
    checkpoint_steps=2,
    bfloat16=False,
)


def run_stages(dataset: Path, out: Path) -> None:
    """Train both stages into ``convolutions``, ``features`` and ``classifier`` under ``out``."""
    run(RECIPE, dataset, out / "convolutions")
    extract(out / "convolutions/last.pt", dataset, out / "features", crops=1, windows=2)
    train(out / "features", dataset, out / "classifier", SMALL)
