"""Compiled models kept in the user's cache, so that the next start does not compile them again.

A file is a page of JSON and then the compiled model. What a damaged one would do to the process that imports
it is anybody's guess, so its sha256 is checked first, and it is made anew where it is not whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from alexnet_server.files import user_cache, write_atomically

log = logging.getLogger(__name__)

_PAGE = 4096
"""The compiled model begins on a page of memory when its file is mapped."""


class Compiled(NamedTuple):
    """A compiled model, and the metadata of the file it was compiled from."""

    content: memoryview
    metadata: Mapping[str, str]


class CompiledModels:
    """The cache of one engine.

    Args:
        engine: Names the folder within the user's cache.
        made_by: What a compiled model depends on besides its file: versions, processor, settings.
        folder: Elsewhere than in the user's cache.
    """

    def __init__(self, engine: str, made_by: Iterable[str], folder: Path | None = None) -> None:
        self._folder = (folder or user_cache()) / engine
        self._made_by = "\n".join(made_by).encode()

    def path(self, model: Path) -> Path:
        """Where the compiled form of a file is, or would be: another file, another place.

        Raises:
            OSError: `model` cannot be read.
        """
        with model.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(self._made_by)
        return self._folder / f"{digest.hexdigest()[:32]}.compiled"

    def load(self, path: Path) -> Compiled | None:
        """What was kept, in memory mapped from its file; None where there is none or it is damaged."""
        try:
            with path.open("rb") as file:
                # Private, for engines that want memory they could write to; nothing reaches the file.
                content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        except (OSError, ValueError):  # absent, not ours to read, or empty
            return None
        try:
            head = json.loads(bytes(content[:_PAGE]))
            if head["sha256"] == hashlib.sha256(content[_PAGE:]).hexdigest():
                return Compiled(content[_PAGE:], head["metadata"])
        except (ValueError, KeyError, TypeError):
            pass  # as damaged as with another sum
        log.warning("the compiled model %s is damaged; compiling it again", path)
        return None

    def save(self, path: Path, compiled: bytes, metadata: Mapping[str, str]) -> None:
        """Keep a compiled model; where that is impossible the next start compiles again, no more."""
        head = {"sha256": hashlib.sha256(compiled).hexdigest(), "metadata": dict(metadata)}
        try:
            write_atomically(path, json.dumps(head).encode().ljust(_PAGE) + compiled)
        except OSError as error:
            log.info("compiled models are not kept: cannot write %s: %s", path, error.strerror)
