"""What small weights cost: the served graphs against an unquantised network of two stages, image by image.

alexnet-train compare --repository model_repository --convolutions runs/convolutions/last.pt
--classifier runs/classifier/last.pt --data data/tiny/validation
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from alexnet_server.models.export.graph import View
from alexnet_server.models.export.weights import ServingWeights, serving_model
from alexnet_server.models.repository import Repository, RepositoryError, read_repository
from alexnet_server.models.unpack import ensure_unpacked
from alexnet_server.models.variants import VARIANTS
from alexnet_server.models.weights import read_weights
from alexnet_train.data.dataset import DatasetError, Split
from alexnet_train.evaluate.accuracy import Infer, evaluate
from alexnet_train.evaluate.calibration import bootstrap
from alexnet_train.evaluate.repository import EngineInfer, chosen
from alexnet_train.two_stage.assemble import join


def compare(
    path: Path,
    convolutions: Path,
    classifier: Path,
    split: Split,
    *,
    models: Sequence[str] | None = None,
    precision: str = "int8",
) -> Iterator[dict[str, Any]]:
    """Top-1 of each model of a repository, and of the float32 network of two checkpoints in the same views.

    Args:
        path: the model repository that is served.
        convolutions: stage one's checkpoint.
        classifier: stage two's, with factored layers or with full ones.
        split: labelled images; both see every one, so that the difference is a paired one.
        models: their names; all by default.
        precision: of the served graphs.

    Yields:
        ``paired``'s figures for each model, with its views and the number of images.

    Raises:
        DatasetError: the network was trained for another number of classes.
        RepositoryError: the repository has no weight file, so that the mean is not known, or no such model.
    """
    repository = read_repository(path)
    files = ensure_unpacked(repository, (precision,))
    weights = _network(repository, convolutions, classifier)
    for entry in chosen(repository, models):
        served = evaluate(EngineInfer(repository, entry, files[entry.name]), split).hits(1)
        network = evaluate(_session(weights, cast(View, entry.view)), split).hits(1)
        yield {"views": entry.view, "images": len(split.labels), **paired(served, network)}


def paired(served: NDArray[np.bool_], network: NDArray[np.bool_]) -> dict[str, Any]:
    """Both accuracies, the first less the second, and that difference's 95 % bootstrap interval over images.

    Args:
        served: (N,), was the served graph right?
        network: (N,), was the network, on the same images?
    """
    gain = served.astype(float) - network
    low, high = bootstrap(lambda index: float(gain[index].mean()), len(gain), draws=2000)
    return {
        "served_top1": round(float(served.mean()), 4),
        "network_top1": round(float(network.mean()), 4),
        "difference": round(float(gain.mean()), 4),
        "difference_interval": [round(low, 4), round(high, 4)],
    }


def _network(repository: Repository, convolutions: Path, classifier: Path) -> ServingWeights:
    if repository.weight_file is None:
        raise RepositoryError(f"{repository.path}: no weight file; compare with the repository as released")
    tensors, _ = join(convolutions, classifier)
    entry = next(iter(repository.models.values()))
    if len(tensors["fc8.bias"]) != len(entry.labels):
        raise DatasetError(
            f"{classifier}: {len(tensors['fc8.bias'])} classes, {repository.path} has {len(entry.labels)}"
        )
    mean = read_weights(repository.weight_file)["mean"].reshape(3)
    models = repository.models.values()
    temperature = {cast(View, m.view): float(m.card.get("temperature", 1.0)) for m in models}
    return ServingWeights(
        "unquantised",
        VARIANTS["2012"],
        tensors,
        mean,
        entry.labels,
        source_size=repository.card.get("source_size"),
        temperature=temperature,
    )


def _session(weights: ServingWeights, view: View) -> Infer:
    session = onnxruntime.InferenceSession(
        serving_model(weights, view).SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        probabilities: NDArray[np.float32] = session.run(["probabilities"], {"images": images})[0]
        return probabilities

    return infer
