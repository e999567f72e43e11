"""What teaches: why a label (`/explain`), and what the network is made of (`/network`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

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
        "seconds": round(result.seconds, 3),
    }


def add_network(app: FastAPI, classifier: Classifier) -> None:
    """Add `/network` and the picture of its first kernels."""
    known: dict[tuple[Callable[[Path], Any], Path], Any] = {}

    async def told(read: Callable[[Path], Any]) -> Any:
        """What `read` makes of the loaded model's folder, once."""
        folder = classifier.model().folder
        if folder is None:
            raise NotFound("This server does not hold the files of its model.")
        if (read, folder) not in known:
            try:
                known[read, folder] = await asyncio.to_thread(read, folder)
            except (RepositoryError, WeightFileError, OSError, KeyError, ValueError) as error:
                raise NotFound(f"The model's files do not tell: {error}.") from None
        return known[read, folder]

    @app.get("/network", responses=examples.NETWORK)
    async def network() -> Response:
        """The layers of the loaded network: output sizes, parameters, multiply-adds for one view."""
        rows = await told(_layers)
        total = sum(row["parameters"] for row in rows)
        return JSONResponse({"model": classifier.model().name, "parameters": total, "layers": rows})

    @app.get("/network/kernels.png", response_class=Response)
    async def kernels() -> Response:
        """The kernels of conv1, as in Figure 3 of the paper: the first tower's above the second's."""
        return Response(await told(_kernels), media_type="image/png", headers={"cache-control": "no-cache"})


def _layers(folder: Path) -> list[dict[str, Any]]:
    from alexnet_server.models.anatomy import layers  # brings onnx, for which no start should wait

    return [vars(layer) | {"output": list(layer.output)} for layer in layers(folder / "graph.fp32.onnx")]


def _kernels(folder: Path) -> bytes:
    from alexnet_server.models.anatomy import kernels_picture

    repository = read_repository(folder.parent)
    if repository.weight_file is None:
        raise ValueError("the repository holds no weight file")
    return kernels_picture(read_weights(repository.weight_file, only="conv1.weight")["conv1.weight"])
