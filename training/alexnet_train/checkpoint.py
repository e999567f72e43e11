"""Checkpoints: everything a run needs to go on bit for bit, written atomically."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alexnet_server.files import replacing

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
    state = {"format": FORMAT, "config": asdict(config), "step": step, "model": model, "velocity": velocity}
    state |= more
    try:
        with replacing(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: could not be written ({error}); the last checkpoint is intact"
        ) from error


def keep(path: Path, out: Path) -> None:
    """Write what a run goes on from in a quarter of the bytes: no velocities, eight bits a weight.

    Of a run with an average that is what is kept, for it is the better start; a run whose ``last.pt`` it
    becomes goes on at the same update, its velocities and its average beginning anew.

    Args:
        path: a checkpoint of ``run``.
        out: where to; a matrix is kept as int8 with a scale a row, everything else as it is.
    """
    state = load(path)
    model = {
        name: _rounded(tensor) if tensor.dim() > 1 else tensor
        for name, tensor in serving_state(state).items()
    }
    kept = {name: state[name] for name in ("format", "config", "step", "schedule", "mean", "classes", "size")}
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(kept | {"model": model, "velocity": {}}, out)


def _rounded(tensor: Tensor) -> dict[str, Tensor]:
    """A tensor as int8 ``codes`` of its shape and float32 ``scales`` (rows,)."""
    rows = tensor.float().flatten(1)
    scales = rows.abs().amax(1).clamp(min=1e-12) / 127
    codes = (rows / scales[:, None]).round().to(torch.int8).view(tensor.shape)
    return {"codes": codes, "scales": scales}


def _restored(kept: Tensor | dict[str, Tensor]) -> Tensor:
    """The float32 tensor that ``_rounded`` was given, to half a step."""
    if isinstance(kept, Tensor):
        return kept
    codes, scales = kept["codes"], kept["scales"]
    return codes.float() * scales.view(-1, *[1] * (codes.dim() - 1))


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
    if not isinstance(state, dict) or not {"format", "config", "step", "model"} <= set(state):
        raise CheckpointError(f"{path}: a file of tensors, but not a checkpoint of `alexnet-train run`")
    if state["format"] != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {state['format']}, but this program reads {FORMAT}")
    state["model"] = {name: _restored(tensor) for name, tensor in state["model"].items()}
    return state


def serving_state(state: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a loaded checkpoint meant to be used: the running average where one was kept.

    Raises:
        CheckpointError: the average's batch norms have no statistics, as older versions left them between
            two evaluations.
    """
    average: dict[str, Tensor] = state.get("average") or {}
    if any(not seen.any() for name, seen in average.items() if name.endswith("num_batches_tracked")):
        raise CheckpointError("the average's batch norms have no statistics: resume its run for one update")
    return average or dict[str, Tensor](state["model"])
