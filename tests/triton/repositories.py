"""Model repositories for Triton: the tiny ones of all tests, unpacked."""

from __future__ import annotations

from pathlib import Path

from alexnet_server.models.repository import read_repository
from alexnet_server.models.unpack import unpack
from tests.repositories import write_repository

CHECKOUT = Path(__file__).parents[2]
CPU = "--model-config-name=cpu"
"""The configs that need no GPU."""


def unpacked(folder: Path, precision: str = "fp32", **changes: object) -> Path:
    """Write a tiny repository, complete; `changes` are those of `write_repository`."""
    write_repository(folder, golden=None, **changes)
    unpack(read_repository(folder), precision)
    return folder
