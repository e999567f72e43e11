"""Checkpoints: everything a run needs to go on bit for bit, written atomically."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file and the mend."""


def save(
    path: Path,
    config: DataclassInstance,
    step: int,
    model: dict[str, Tensor],
    velocity: dict[str, Any],
    **more: Any,
) -> None:
    """Write a checkpoint beside ``path`` and move it into place, so that a crash leaves the old one whole.

    ``velocity`` is the optimiser's state; ``more`` are tensors and plain values a run wants to keep besides:
    ``average`` (the averaged weights, which are then the ones to serve), ``mean``, ``schedule``,
    ``classes``. Random state needs no saving: every draw is a function of (seed, step).
    """
    temporary = path.with_suffix(".part")
    state = {"format": FORMAT, "config": asdict(config), "step": step, "model": model, "velocity": velocity}
    state |= more
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: could not be written ({error}); the last checkpoint is whole"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint: ``config`` (dict), ``step``, ``model`` and ``velocity`` (name to tensor).

    Raises:
        CheckpointError: unreadable, cut short, or of another format.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({error}); start from an older one"
        ) from error
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {state.get('format')}, this program reads {FORMAT}")
    return state


def serving_state(state: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a loaded checkpoint meant to be used: the running average where one was kept.

    Raises:
        CheckpointError: the average's batch norms have no statistics, as older versions left them between
            two evaluations.
    """
    weights: dict[str, Tensor] = state.get("average") or state["model"]
    if any(not seen.any() for name, seen in weights.items() if name.endswith("num_batches_tracked")):
        raise CheckpointError(
            "the checkpoint's batch norms have no statistics: resume its run for one update"
        )
    return weights
