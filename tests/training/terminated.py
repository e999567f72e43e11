"""Runs that are stopped in a chosen update: ``python terminated.py UPDATE run 2012-tiny ...``."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch import Tensor

from alexnet_train.cli import main
from alexnet_train.run import loop


@contextmanager
def terminated_in(update: int) -> Iterator[None]:
    """Send this process SIGTERM at the beginning of ``update`` (from 0), which is still made."""
    make = loop.Stepper.__call__

    def step(self: loop.Stepper, number: int, *rest: object) -> Tensor:
        if number == update:
            os.kill(os.getpid(), signal.SIGTERM)
        return make(self, number, *rest)  # type: ignore[arg-type]

    with patch.object(loop.Stepper, "__call__", step):
        yield


if __name__ == "__main__":
    with terminated_in(int(sys.argv[1])):
        sys.exit(main(sys.argv[2:]))
