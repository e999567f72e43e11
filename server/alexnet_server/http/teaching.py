"""What teaches: why a label (`/explain`), and what the network is made of (`/network`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from alexnet_server.engines import Model
from alexnet_server.errors import NotFound
from alexnet_server.http import examples
from alexnet_server.models.repository import RepositoryError, read_repository
from alexnet_server.models.weights import WeightFileError, read_weights
from alexnet_server.occlusion import SIZE, STEP, Explanation
from alexnet_server.service import Classifier


def explained(result: Explanation) -> dict[str, Any]:
    """An explanation as JSON."""
    return {
        "model": result.model,
        "version": result.version,
        "index": result.label.index,
        "label": result.label.words,
        "score": round(result.score, 6),
        "size": SIZE,
        "step": STEP,
        "grid": result.grid.astype(float).round(6).tolist(),
        "note": result.note,
        "seconds": round(result.seconds, 3),
    }


def add_network(app: FastAPI, classifier: Classifier) -> None:
    """Add `/network` and the picture of its first kernels."""
    known: dict[tuple[Callable[[Model], Any], str], Any] = {}
    one_at_a_time = asyncio.Lock()

    async def told(read: Callable[[Model], Any]) -> Any:
        """What `read` makes of the loaded model, once."""
        model = classifier.model()
        async with one_at_a_time:
            if (read, model.name) not in known:
                try:
                    known[read, model.name] = await asyncio.to_thread(read, model)
                except (RepositoryError, WeightFileError, OSError, KeyError, ValueError) as error:
                    raise NotFound(f"The model's files cannot be read: {error}.") from None
        return known[read, model.name]

    @app.get("/network", responses=examples.NETWORK)
    async def network() -> Response:
        """The layers of the loaded network: sizes, parameters, multiply-adds of a view, and seconds.

        `seconds` is what one photo takes here, with the norm, the pooling and the ReLU behind the layer:
        measured once, and null where the engine does not tell.
        """
        rows = await told(_layers)
        total = sum(row["parameters"] for row in rows)
        return JSONResponse({"model": classifier.model().name, "parameters": total, "layers": rows})

    @app.get("/network/kernels.png", response_class=Response, responses=examples.KERNELS)
    async def kernels() -> Response:
        """The kernels of conv1, as in Figure 3 of the paper: the first tower's above the second's."""
        return Response(await told(_kernels), media_type="image/png", headers={"cache-control": "no-cache"})


def _layers(model: Model) -> list[dict[str, Any]]:
    from alexnet_server.models.anatomy import (  # brings onnx, for which no start should wait
        layer_seconds,
        layers,
    )

    found = layers(_folder(model) / "graph.fp32.onnx")
    names = [layer.name for layer in found]
    seconds = layer_seconds(names, model.profile()) if model.profile else dict.fromkeys(names)
    return [vars(layer) | {"output": list(layer.output), "seconds": seconds[layer.name]} for layer in found]


def _kernels(model: Model) -> bytes:
    from alexnet_server.models.anatomy import kernels_picture

    repository = read_repository(_folder(model).parent)
    if repository.weight_file is None:
        raise ValueError("the repository has no weight file")
    return kernels_picture(read_weights(repository.weight_file, only="conv1.weight")["conv1.weight"])


def _folder(model: Model) -> Path:
    if model.folder is None:
        raise NotFound("This server does not have the files of its model.")
    return model.folder
