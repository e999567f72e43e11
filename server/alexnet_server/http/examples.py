"""What the OpenAPI document shows of requests and answers."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from alexnet_server.http import schemas

_MODEL = {"model": "alexnet", "version": "1"}
_COFFEE = "-F image=@tests/data/cc0/coffee.jpg"
_LABEL = {"index": 193, "wnid": "n07920052", "label": "espresso"}
_CLASSIFICATION = _MODEL | {"predictions": [{"rank": 1, **_LABEL, "score": 0.944675}]}
_SAYS = "The file ends before the photo does; send it again."
_PROBLEM = {"type": "/docs#undecodable", "title": "Undecodable photo", "status": 422, "code": "undecodable"}
_PROBLEM |= {"detail": _SAYS, "error": _SAYS, "request_id": "5f3c"}
_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
_TIMEOUT = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    "description": "Answer within this many milliseconds or not at all.",
}


_REFUSED = {
    "description": "A problem document (RFC 9457).",
    "content": {
        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}, "example": _PROBLEM}
    },
}

Answers = dict[int | str, dict[str, Any]]


def _answers(kind: type[BaseModel], example: dict[str, Any]) -> Answers:
    content = {"application/json": {"example": example}}
    return {200: {"model": kind, "description": "The answer.", "content": content}, "default": _REFUSED}


def _body(path: str, files: str = _COFFEE, schema: dict[str, Any] = _BINARY) -> dict[str, Any]:
    form = {"type": "object", "required": ["image"], "properties": {"image": schema}}
    raw = {"schema": _BINARY}
    content = {"multipart/form-data": {"schema": form}, "image/*": raw, "application/octet-stream": raw}
    return {
        "requestBody": {"required": True, "content": content},
        "parameters": [_TIMEOUT],
        "x-example": f"curl {files} localhost:8080{path}",
    }


PHOTO: Final = _body("/classify")
PHOTOS: Final = _body(
    "/classify/batch",
    f"{_COFFEE} -F image=@tests/data/cc0/cat.jpg",
    {"type": "array", "minItems": 1, "maxItems": 32, "items": _BINARY},
)
FEATURES_PHOTO: Final = _body("/features")
CLASSIFY: Final = _answers(schemas.Classification, _CLASSIFICATION)
BATCH: Final = _answers(schemas.Batch, {"results": [_CLASSIFICATION, _PROBLEM]})
FEATURES: Final = _answers(schemas.Features, _MODEL | {"features": [0.0, 1.25]})
LABELS: Final = _answers(schemas.Labels, _MODEL | {"labels": [_LABEL]})
_LOADED = {
    "name": "alexnet",
    "version": "1",
    "views": "center",
    "classes": 200,
    "max_batch_size": 32,
    "device": "cpu",
}
MODELS: Final = _answers(schemas.Models, {"models": [_LOADED]})
ALIVE: Final[Answers] = {200: {"model": schemas.Status, "description": "The event loop is running."}}
READY: Final[Answers] = {200: {"model": schemas.Status, "description": "Ready."}, 503: _REFUSED}
METRICS: Final[Answers] = {
    200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}},
    "default": _REFUSED,
}
KERNELS: Final[Answers] = {
    200: {"description": "The picture.", "content": {"image/png": {}}},
    "default": _REFUSED,
}
EXPLAIN_PHOTO: Final = _body("/explain")
EXPLAIN: Final = _answers(
    schemas.Explanation,
    _MODEL
    | _LABEL
    | {"score": 0.944675, "size": 48, "step": 24, "grid": [[0.001, 0.35]], "note": None, "seconds": 0.9},
)
_LAYER = {"name": "conv1", "kind": "11 x 11 convolution, stride 4", "output": [96, 55, 55]}
NETWORK: Final = _answers(
    schemas.Network,
    {
        "model": "alexnet",
        "parameters": 57687624,
        "layers": [_LAYER | {"parameters": 34944, "multiply_adds": 105415200, "seconds": 0.0016}],
    },
)
