"""What the OpenAPI document shows of requests and answers."""

from __future__ import annotations

from typing import Any, Final

_PREDICTION = {"rank": 1, "index": 37, "wnid": "n02124075", "label": "Egyptian cat", "score": 0.812345}
_CLASSIFICATION = {"model": "alexnet", "version": "1", "predictions": [_PREDICTION]}
_PROBLEM = {
    "type": "/docs#undecodable",
    "title": "Undecodable photo",
    "status": 422,
    "detail": "The file ends before the photo does; send it again.",
    "code": "undecodable",
    "error": "The file ends before the photo does; send it again.",
    "request_id": "5f3c",
}


def _answers(example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"description": "The answer.", "content": {"application/json": {"example": example}}},
        "default": {
            "description": "A problem document (RFC 9457).",
            "content": {"application/problem+json": {"example": _PROBLEM}},
        },
    }


def _photo_body(schema: dict[str, Any], example: str) -> dict[str, Any]:
    form = {"type": "object", "required": ["image"], "properties": {"image": schema}}
    raw = {"schema": {"type": "string", "format": "binary"}}
    content = {"multipart/form-data": {"schema": form}, "image/*": raw, "application/octet-stream": raw}
    timeout = {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "required": False,
        "schema": {"type": "integer"},
        "description": "Answer within this many milliseconds or not at all.",
    }
    return {
        "requestBody": {"required": True, "content": content},
        "parameters": [timeout],
        "x-example": example,
    }


_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
PHOTO: Final = _photo_body(_BINARY, "curl -F image=@cat.jpg localhost:8080/classify")
PHOTOS: Final = _photo_body(
    {"type": "array", "maxItems": 32, "items": _BINARY},
    "curl -F image=@cat.jpg -F image=@dog.jpg localhost:8080/classify/batch",
)
CLASSIFY: Final = _answers(_CLASSIFICATION)
BATCH: Final = _answers({"results": [_CLASSIFICATION, _PROBLEM]})
FEATURES_PHOTO: Final = _photo_body(_BINARY, "curl -F image=@cat.jpg localhost:8080/features")
FEATURES: Final = _answers({"model": "alexnet", "version": "1", "features": [0.0, 1.25]})
LABELS: Final = _answers(
    {"model": "alexnet", "version": "1", "labels": [{"index": 0, "wnid": "n01443537", "label": "goldfish"}]}
)
MODELS: Final = _answers(
    {"models": [{"name": "alexnet", "version": "1", "views": "center", "device": "cpu"}]}
)
