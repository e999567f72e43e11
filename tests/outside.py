"""Data too large for the repository: TEST_DATA names a folder that holds `photos` and `tiny-imagenet-200`."""

import os
from pathlib import Path

import pytest


def outside(name: str) -> Path:
    """The folder of that name; the test is skipped where there is none."""
    folder = Path(os.environ.get("TEST_DATA", "/nonexistent")) / name
    if not folder.is_dir():
        pytest.skip(f"set TEST_DATA to a folder that holds {name}/")
    return folder
