"""The network that finetuning starts from: a model repository, or public weights imported once."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from alexnet_server.files import sha256_of
from alexnet_server.models.export.layers import Range
from alexnet_server.models.graphs import Forms, fill
from alexnet_server.models.public.cache import Wanted, ensure
from alexnet_server.models.public.sources import SOURCES, source_named
from alexnet_server.models.repository import ModelEntry, Repository, read_repository
from alexnet_server.models.unpack import default_repository
from alexnet_server.models.weights import parse_weights, stored_arrays
from alexnet_train.evaluate.repository import EngineInfer
from alexnet_train.finetune.errors import FinetuneError
from alexnet_train.finetune.graph import with_inputs_of
from alexnet_train.finetune.ranges import calibration_points, with_ranges


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

    def infer(self, ranges: Mapping[str, Range], *, inputs_of: str | None = None) -> EngineInfer:
        """Its centre view in the server's engine, in int8 with these ranges in place of its own.

        ``inputs_of`` is a layer whose inputs come before the features (``with_inputs_of``).
        """
        model = self.model(self.precision, ranges)
        if inputs_of is not None:
            model = with_inputs_of(model, inputs_of)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            file.write_bytes(model.SerializeToString())
            return EngineInfer(self.repository, self.centre, file)

    def model(
        self,
        precision: str,
        ranges: Mapping[str, Range] | None = None,
        tensors: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> onnx.ModelProto:
        """The complete graph of its centre view; ``ranges`` are for int8, ``tensors`` replace its own."""
        graph = with_ranges(read_graph(self.centre, precision), ranges or {})
        return fill(graph, Forms({**parse_weights(self._data), **tensors}) if tensors else self._forms)

    def calibration_points(self) -> dict[str, str]:
        """The tensors of its centre view's fp32 graph that int8 has ranges of, by the names of the ranges."""
        fp32, int8 = (read_graph(self.centre, precision).graph for precision in ("fp32", "int8"))
        return calibration_points(fp32, int8)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What its weight file stores, as it is stored."""
        return stored_arrays(self._data)

    def tensors(self, layer: str) -> dict[str, NDArray[np.float32]]:
        """A layer's weight, or the weight's two factors, and its bias, by the names of the weight file."""
        return parse_weights(self._data, f"{layer}.")

    @cached_property
    def _data(self) -> bytes:
        if sha256_of(self.weight_file) != self.centre.weights_sha256:
            raise FinetuneError(f"{self.weight_file} is damaged (its sha256 differs): fetch it again")
        return self.weight_file.read_bytes()

    @cached_property
    def _forms(self) -> Forms:
        return Forms(parse_weights(self._data))


def read_graph(entry: ModelEntry, precision: str) -> onnx.ModelProto:
    """A graph without weights, whose external tensors ``fill`` will fill."""
    return onnx.load_model_from_string(entry.graph(precision).read_bytes())


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
