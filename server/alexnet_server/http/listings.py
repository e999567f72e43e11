"""What the server says of itself: its models, whether it is well, its metrics."""

from __future__ import annotations

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from alexnet_server.call import current
from alexnet_server.errors import Unavailable
from alexnet_server.http import examples
from alexnet_server.http.problems import problem_response
from alexnet_server.service import Classifier


def add_listings(app: FastAPI, classifier: Classifier) -> None:
    """Add `/models`, the probes and `/metrics`."""

    @app.get("/models", responses=examples.MODELS)
    async def models() -> Response:
        """What is loaded: view mode, device, file, precision, preprocess version, accuracy, sha256."""
        rows = [
            {
                "name": model.name,
                "version": model.version,
                "views": model.view_mode,
                "classes": len(model.labels),
                "max_batch_size": model.max_batch_size,
                "device": model.device,
                **model.about,
            }
            for model in classifier.models.values()
        ]
        return JSONResponse({"models": rows})

    @app.get("/healthz", include_in_schema=False)
    @app.get("/livez", responses=examples.ALIVE)
    async def livez() -> Response:
        """200 as long as the event loop turns: whether to restart this process."""
        return JSONResponse({"status": "alive"})

    @app.get("/ping", include_in_schema=False)
    @app.get("/readyz", responses=examples.READY)
    async def readyz() -> Response:
        """200 when requests should be sent here, else 503 and why not."""
        reason = classifier.problem()
        if reason is None:
            return JSONResponse({"status": "ready"})
        error = Unavailable(f"Not ready: {reason}.", retry_after_s=1.0)
        response = problem_response(error)
        current.get().code = "ok"  # a probe that was answered, not a request that failed
        return response

    @app.get("/metrics", response_class=Response, responses=examples.METRICS)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(classifier.metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})
