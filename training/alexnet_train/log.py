"""The JSONL log of a run, one record a line, which curves are drawn from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def append(path: Path, record: Mapping[str, object]) -> None:
    """Add one record; a run that is killed loses at most the line it was writing."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
