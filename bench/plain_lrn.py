"""The same function as most people would export it: plain `LRN` operators, in fp32.

The towers are split, normalised and joined; the second norm of layer 2 is an average pooling. What the
serving graph is compared with.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import onnx

from alexnet_server.models.export import graph
from alexnet_server.models.export.layers import Float
from alexnet_server.models.graphs import fill
from alexnet_server.models.repository import CARD, read_repository
from alexnet_server.models.unpack import default_repository
from alexnet_server.models.variants import VARIANTS, ResponseNorm
from alexnet_server.models.weights import read_weights


class PlainNorms(Float):
    """Layers whose norms are the operators that ONNX has for them."""

    def lrn(self, x: str, norm: ResponseNorm, channels: int, towers: int) -> str:
        add, parts = self.nodes.add, [f"{x}.tower{i}" for i in range(towers)]
        self.nodes.nodes.append(onnx.helper.make_node("Split", [x], parts, axis=1, name=f"{x}.split"))
        own = {"size": norm.size, "alpha": norm.alpha * norm.size, "beta": norm.beta, "bias": norm.k}
        return add("Concat", [add("LRN", [part], f"{part}.lrn", **own) for part in parts], f"{x}.lrn", axis=1)

    def spatial_norm(self, x: str, norm: ResponseNorm, channels: int) -> str:
        add, name, half = self.nodes.add, f"{x}.norm", norm.size // 2
        scale = self.nodes.constant(f"{name}.scale", np.array(norm.alpha * norm.size**2, np.float32))
        k = self.nodes.constant(f"{name}.k", np.array(norm.k, np.float32))
        beta = self.nodes.constant(f"{name}.beta", np.array(norm.beta, np.float32))
        window = {"kernel_shape": [norm.size] * 2, "pads": [half] * 4, "count_include_pad": 1}
        mean = add("AveragePool", [add("Mul", [x, x], f"{name}.square")], f"{name}.mean", **window)
        base = add("Add", [add("Mul", [mean, scale], f"{name}.scaled"), k], f"{name}.base")
        return add("Div", [x, add("Pow", [base, beta], f"{name}.divisor")], name)


def plain_graph(
    architecture: graph.Architecture, view: graph.View, temperature: float = 1.0
) -> onnx.ModelProto:
    """The serving graph with plain norms, without weights."""
    with mock.patch.object(graph, "Float", PlainNorms):
        return graph.serving_graph(architecture, view, temperature=temperature)


@contextmanager
def plain_repository(path: Path | None = None) -> Iterator[Path]:
    """A model repository of the shipped weights with plain norms, centre view alone; gone afterwards."""
    repository = read_repository(path or default_repository())
    entry = repository.models["alexnet"]
    assert repository.weight_file is not None
    weights = read_weights(repository.weight_file)
    mean = "pixel" if weights["mean"].size == 3 else "image"
    variant = VARIANTS[repository.card["variant"]]
    architecture = graph.Architecture(variant, len(entry.labels), repository.card["source_size"], mean)
    model = fill(plain_graph(architecture, "center", entry.card["temperature"]), weights)
    with TemporaryDirectory() as folder:
        target = Path(folder) / "alexnet"
        (target / "1").mkdir(parents=True)
        for name in ("config.pbtxt", "labels.txt"):
            shutil.copy(entry.folder / name, target)
        shutil.copy(repository.path / CARD, folder)
        onnx.save(model, target / "1" / "model.onnx")
        yield Path(folder)
