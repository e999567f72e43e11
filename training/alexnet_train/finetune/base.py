"""The network that finetuning starts from: a model repository, or public weights imported once."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet_server.files import sha256_of
from alexnet_server.models.public.cache import Wanted, ensure
from alexnet_server.models.public.sources import SOURCES, source_named
from alexnet_server.models.repository import ModelEntry, Repository, read_repository
from alexnet_server.models.unpack import default_repository, ensure_unpacked
from alexnet_server.models.weights import stored_arrays
from alexnet_train.evaluate.repository import EngineInfer
from alexnet_train.finetune.errors import FinetuneError


class Base:
    """A model repository with the parts that a new head is put on.

    Args:
        start: a repository's path, or a name that ``import`` knows; the shipped repository by default.

    Raises:
        FinetuneError: there is none, or it lacks the centre view or the parts its graphs are made of.
        RepositoryError: it is damaged.
    """

    def __init__(self, start: str | None) -> None:
        self.repository: Repository = read_repository(_located(start))
        views = {entry.view: entry for entry in self.repository.models.values()}
        if "center" not in views:
            raise FinetuneError(
                f"{self.repository.path} has no model of the centre view: export or import one"
            )
        self.centre: ModelEntry = views["center"]
        self.precisions: tuple[str, ...] = tuple(
            precision
            for precision in ("int8", "fp32", "fp16")
            if all(entry.graph(precision).exists() for entry in views.values())
        )
        if self.repository.weight_file is None or "fp32" not in self.precisions:
            raise FinetuneError(
                f"{self.repository.path} holds only complete graphs (an average of networks?): "
                "start from a repository with a weight file"
            )
        self.weight_file: Path = self.repository.weight_file

    @property
    def precision(self) -> str:
        """Of the features: int8, as CPUs serve them, where the network has it."""
        return self.precisions[0]

    def infer(self) -> EngineInfer:
        """Its centre view in the server's engine, unpacked first where it is not."""
        name = self.centre.name
        alone = replace(self.repository, models={name: self.centre})
        file = ensure_unpacked(alone, (self.precision,))[name]
        return EngineInfer(self.repository, self.centre, file)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What its weight file stores, as it is stored.

        Raises:
            FinetuneError: the file is not the one that its models were exported with.
        """
        if sha256_of(self.weight_file) != self.centre.weights_sha256:
            raise FinetuneError(f"{self.weight_file} is damaged (its sha256 differs): fetch it again")
        return stored_arrays(self.weight_file.read_bytes())


def _located(start: str | None) -> Path:
    if start is None:
        return default_repository()
    if Path(start).is_dir():
        return Path(start)
    if source_named(start) is None:
        raise FinetuneError(f"--from {start}: neither a model repository nor one of {', '.join(SOURCES)}")
    # The same copy that `alexnet-server --weights` keeps and serves.
    return ensure(Wanted(start), say=_say, told=_told, stop=threading.Event())


def _told(state: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{state}\033[K", end="", file=sys.stderr, flush=True)  # noqa: T201 - how far it is


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - licence and terms, before they are fetched
