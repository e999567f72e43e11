"""The routes that take photos and a query, without what FastAPI does for each request besides calling them.

Solving dependencies, exit stacks and context for errors take longer than everything that this server does
for a photo on the event loop. A `PhotoRoute` keeps FastAPI's declaration of an endpoint, and with it the
OpenAPI document, and calls the endpoint with the request and its validated query.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from alexnet_server.errors import InvalidRequest, did_you_mean
from alexnet_server.service import Views


class NameQuery(BaseModel):
    """Which model."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str | None = Field(None, description="A model by name; `/models` lists them.")


class ModelQuery(NameQuery):
    """Which model looks at the photo."""

    views: Views | None = Field(
        None, description="A model by how it looks at a photo; not with `model`. `center` when neither is."
    )


class LabelQuery(ModelQuery):
    """Which model, and how many labels."""

    top_k: int = Field(5, ge=1, description="How many labels, 1 to the number of classes.")


class PhotoRoute(APIRoute):
    """A route whose endpoint takes `(request, query)`, `query` a model of the parameters; nothing else."""

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        (query,) = (field.field_info.annotation for field in self.dependant.query_params)
        assert isinstance(query, type)
        assert issubclass(query, BaseModel)
        self._query = query
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        self._refuse_unknown(request)
        try:
            query = self._query.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
        response: Response = await self.endpoint(request, query)
        await response(scope, receive, send)

    def _refuse_unknown(self, request: Request) -> None:
        """Raise InvalidRequest for a parameter that means nothing here, or is given twice."""
        for name in request.query_params:
            if name not in self._query.model_fields:
                known = list(self._query.model_fields)
                near = did_you_mean(name, known)
                hint = f"; did you mean `{near}`?" if near else "."
                allowed = ", ".join(f"`{each}`" for each in known)
                message = f"There is no parameter `{name[:100]}`{hint} Allowed here: {allowed}."
                raise InvalidRequest(message, errors=[{"field": name[:100], "message": "unknown parameter"}])
            if len(request.query_params.getlist(name)) > 1:
                raise InvalidRequest(f"`{name}` is given more than once; give it once.")


ModelName = Annotated[NameQuery, Query()]
LabelsQuery = Annotated[LabelQuery, Query()]
WhichModel = Annotated[ModelQuery, Query()]
