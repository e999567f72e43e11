"""Commands whose packages may not be installed: each says which extra it needs."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from typing import Any


def run(command: str, module: str, *, extras: str) -> int:
    """Run `module.main()`, or say in a line what is missing.

    Args:
        command: its name, for the message.
        module: the module with its `main`.
        extras: what to install, such as `[train]`.

    Returns:
        The exit status: 1 where a package is missing.
    """
    try:
        status: int = _imported(module).main()
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0].startswith("alexnet_"):
            raise
        sys.stderr.write(
            f"{command}: the package {missing.name} is not installed; in a checkout: pip install {extras}\n"
        )
        return 1
    return status


def _imported(name: str) -> Any:
    """A module. What importing makes stays: looking for garbage in it is a fifth of a start."""
    gc.disable()
    try:
        module = import_module(name)
        gc.freeze()
        return module
    finally:
        gc.enable()
