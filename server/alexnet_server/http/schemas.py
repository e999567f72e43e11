"""What the HTTP API takes in its query strings, and what it answers, as types for its OpenAPI document.

The answers themselves are made elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import Request

from alexnet_server.errors import InvalidRequest, did_you_mean
from alexnet_server.service import Views


class NameQuery(BaseModel):
    """Which model."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str | None = Field(None, description="A model by name; `/models` lists them.")

    @model_validator(mode="before")
    @classmethod
    def _name_unknown(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Raise InvalidRequest for a parameter that means nothing here, in our words."""
        for name in given.keys() - cls.model_fields.keys():
            near = did_you_mean(name, cls.model_fields)
            hint = f"; did you mean `{near}`?" if near else "."
            allowed = ", ".join(f"`{each}`" for each in cls.model_fields)
            message = f"There is no parameter `{name[:100]}`{hint} Allowed here: {allowed}."
            raise InvalidRequest(message, errors=[{"field": name[:100], "message": "unknown parameter"}])
        return given


class ModelQuery(NameQuery):
    """Which model looks at the photo."""

    views: Views | None = Field(
        None, description="A model by its views of a photo; not together with `model`. `center` by default."
    )


class LabelQuery(ModelQuery):
    """Which model, and how many labels."""

    top_k: int = Field(5, ge=1, description="How many labels, 1 to the number of classes.")


class ExplainQuery(ModelQuery):
    """Which model, and which of its labels."""

    index: int | None = Field(None, ge=0, description="The label to explain; the likeliest one by default.")


Q = TypeVar("Q", bound=NameQuery)


def query_of(request: Request, kind: type[Q]) -> Q:
    """What a request asks for in its query.

    Raises:
        RequestValidationError: A value is none of those allowed.
        InvalidRequest: A parameter means nothing here, or is given twice (FastAPI would take the last).
    """
    given = request.query_params
    try:
        query = kind.model_validate(dict(given))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    names = [name for name, _ in given.multi_items()]
    for name in given:
        if names.count(name) > 1:
            raise InvalidRequest(f"`{name[:100]}` is given more than once; give it once.")
    return query


class Prediction(BaseModel):
    """A label and how likely it is."""

    rank: int
    index: int
    wnid: str
    label: str
    score: float


class Classification(BaseModel):
    """Labels of a photo, best first."""

    model: str
    version: str
    predictions: list[Prediction]


class FieldProblem(BaseModel):
    """What is wrong with one parameter."""

    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457's problem document."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    error: str
    request_id: str | None = None
    retry_after_s: float | None = None
    errors: list[FieldProblem] | None = None


class Batch(BaseModel):
    """For each photo its labels or its own problem, in order."""

    results: list[Classification | Problem]


class Features(BaseModel):
    """The last hidden layer."""

    model: str
    version: str
    features: list[float]


class Explanation(BaseModel):
    """Where a photo spoke for a label: `grid[row][col]`, positive where it did."""

    model: str
    version: str
    index: int
    label: str
    score: float
    size: int
    step: int
    grid: list[list[float]]
    note: str | None
    seconds: float


class Label(BaseModel):
    """A class."""

    index: int
    wnid: str
    label: str


class Labels(BaseModel):
    """A model's classes, in output order."""

    model: str
    version: str
    labels: list[Label]


class LoadedModel(BaseModel):
    """A model, and what its card says of it besides."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: str
    views: str
    classes: int
    max_batch_size: int
    device: str


class Models(BaseModel):
    """All that is loaded."""

    models: list[LoadedModel]


class Layer(BaseModel):
    """A layer of the network."""

    name: str
    kind: str
    output: list[int]
    parameters: int
    multiply_adds: int
    seconds: float | None


class Network(BaseModel):
    """The loaded network."""

    model: str
    parameters: int
    layers: list[Layer]


class Status(BaseModel):
    """How a probe is answered."""

    status: str


def operation_id(route: APIRoute) -> str:
    """What generators call an operation: the endpoint's own name."""
    return route.name


class DocumentedApp(FastAPI):
    """An application whose document says how to authenticate.

    Args:
        keyed: Whether a key is required; otherwise one may be sent all the same.
        more: As FastAPI takes it.
    """

    def __init__(self, *, keyed: bool, **more: Any) -> None:
        super().__init__(generate_unique_id_function=operation_id, **more)
        self._keyed = keyed

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        document = super().openapi()
        document.setdefault("components", {})["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["security"] = [*([] if self._keyed else [{}]), {"bearer": []}, {"key": []}]
        return document
