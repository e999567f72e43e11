"""`preprocess` and `classify`, which take encoded photos in Triton, beside the models of training."""

from __future__ import annotations

import shutil
from pathlib import Path

from alexnet_server.models.unpack import default_repository, write_preprocess

_IGNORED = shutil.ignore_patterns("__pycache__", "preprocess.py")


def write_ensemble(folder: Path, labels: bytes) -> None:
    """Complete a repository for Triton.

    `preprocess` and `classify` are the shipped ones, copied only where they are missing: what an operator
    set in them stays. The labels are those of `alexnet`, whose probabilities `classify` passes on.

    Args:
        folder: A model repository with a model `alexnet`.
        labels: Its `labels.txt`.
    """
    for name in ("preprocess", "classify"):
        if not (folder / name / "config.pbtxt").exists():
            shutil.copytree(default_repository() / name, folder / name, dirs_exist_ok=True, ignore=_IGNORED)
    write_preprocess(folder)
    (folder / "classify" / "labels.txt").write_bytes(labels)
