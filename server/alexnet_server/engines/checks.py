"""Whether a loaded file is the model that its folder says it is; the same for every engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexnet_server.engines import Model
from alexnet_server.errors import StartError

_ROW = [256, 256, 3]


def check_shapes(
    inputs: Mapping[str, tuple[str, list[Any]]], outputs: Mapping[str, Any], model: Model, path: Path
) -> None:
    """Compare what a file takes and gives with what is served.

    Args:
        inputs: Type and shape without the first axis, by name.
        outputs: Length of the last axis, by name.
        model: What the repository says.
        path: The file, for the error's message.

    Raises:
        StartError: They differ.
    """
    if inputs != {"images": ("uint8", _ROW)}:
        raise StartError(f"{path} must have one input, images uint8 [N,256,256,3]; it has {inputs}")
    if set(outputs) != {"probabilities", "features"}:
        raise StartError(f"{path} must give probabilities and features; it gives {', '.join(outputs)}")
    if outputs["probabilities"] != len(model.labels):
        raise StartError(
            f"{path} has {outputs['probabilities']} classes, but its labels.txt names "
            f"{len(model.labels)}; they belong to different models"
        )


def check_metadata(metadata: Mapping[str, str], model: Model, path: Path) -> None:
    """Refuse a file that was exported with other labels, weights or preprocessing than its config names.

    Raises:
        StartError: One differs.
    """
    told = {
        "preprocess_version": model.about.get("preprocess_version"),
        **{f"{what}_sha256": digest for what, digest in model.about.get("sha256", {}).items()},
    }
    for key, expected in told.items():
        if metadata.get(key, expected) != expected:
            raise StartError(
                f"{path} does not belong to its config.pbtxt: {key} is {metadata[key][:16]} in the file and "
                f"{str(expected)[:16]} in the config; unpack or export the model again"
            )


def cannot_load(path: Path, error: Exception) -> StartError:
    """What to say of a file that an engine refuses: the first line of its reason, and what to do."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    return StartError(
        f"cannot load {path}: {reason}; if the file is damaged, copy it or export the model again"
    )
