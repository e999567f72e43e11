"""What the OpenAPI document shows of requests and answers."""

from __future__ import annotations

from typing import Any, Final

_MODEL = {"model": "alexnet", "version": "1"}
_COFFEE = "-F image=@tests/data/cc0/coffee.jpg"
_LABEL = {"index": 193, "wnid": "n07920052", "label": "espresso"}
_CLASSIFICATION = _MODEL | {"predictions": [{"rank": 1, **_LABEL, "score": 0.957889}]}
_SAYS = "The file ends before the photo does; send it again."
_PROBLEM = {"type": "/docs#undecodable", "title": "Undecodable photo", "status": 422, "code": "undecodable"}
_PROBLEM |= {"detail": _SAYS, "error": _SAYS, "request_id": "5f3c"}
_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
_TIMEOUT = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "schema": {"type": "integer"},
    "description": "Answer within this many milliseconds or not at all.",
}


def _answers(example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    problem = {"application/problem+json": {"example": _PROBLEM}}
    return {
        200: {"description": "The answer.", "content": {"application/json": {"example": example}}},
        "default": {"description": "A problem document (RFC 9457).", "content": problem},
    }


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
    {"type": "array", "maxItems": 32, "items": _BINARY},
)
FEATURES_PHOTO: Final = _body("/features")
CLASSIFY: Final = _answers(_CLASSIFICATION)
BATCH: Final = _answers({"results": [_CLASSIFICATION, _PROBLEM]})
FEATURES: Final = _answers(_MODEL | {"features": [0.0, 1.25]})
LABELS: Final = _answers(_MODEL | {"labels": [_LABEL]})
MODELS: Final = _answers({"models": [{"name": "alexnet", "version": "1", "views": "center"}]})
EXPLAIN_PHOTO: Final = _body("/explain")
EXPLAIN: Final = _answers(
    _MODEL
    | _LABEL
    | {"score": 0.957889, "size": 48, "step": 24, "grid": [[0.001, 0.35]], "note": None, "seconds": 0.9}
)
_LAYER = {"name": "conv1", "kind": "11 x 11 convolution, stride 4", "output": [96, 55, 55]}
NETWORK: Final = _answers(
    {
        "model": "alexnet",
        "parameters": 57687624,
        "layers": [_LAYER | {"parameters": 34944, "multiply_adds": 105415200, "seconds": 0.0016}],
    }
)
