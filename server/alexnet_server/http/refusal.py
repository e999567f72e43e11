"""Photos that find no room, refused as soon as their headers are there.

The way of all requests takes a task and several times as long. While a server is offered many times what it
can do, refusals are most of its work, and those who wait for answers pay for them.
"""

from __future__ import annotations

import time

from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from alexnet_server.access.keys import ApiKeys
from alexnet_server.call import Calls
from alexnet_server.errors import Overloaded, ServingError
from alexnet_server.http.problems import problem_response
from alexnet_server.http.schemas import LabelQuery, ModelQuery, query_of
from alexnet_server.http.upload import asked
from alexnet_server.service import Classifier

_QUERIES: dict[str, type[ModelQuery]] = {"/classify": LabelQuery, "/features": ModelQuery}


class Refusal:
    """Finds the requests that the application would answer with `overloaded`, and answers them.

    Args:
        classifier: Knows whether there is room.
        calls: Accounts for the answers.
        keys: A request without one of them is told that first.
    """

    def __init__(self, classifier: Classifier, calls: Calls, keys: ApiKeys) -> None:
        self._classifier = classifier
        self._calls = calls
        self._keys = keys

    def __call__(self, scope: Scope) -> Response | None:
        """The answer to a request; None where the application has to say."""
        kind = _QUERIES.get(scope["path"]) if scope["method"] == "POST" else None
        if kind is None or not self._classifier.full:
            return None
        request = Request(scope)
        headers = request.headers
        if "expect" in headers or "origin" in headers:
            return None
        started_at = time.monotonic()
        try:
            self._keys.check(headers.get("authorization"), headers.get("x-api-key"))
            model, deadline = asked(request, query_of(request, kind), self._classifier)
            try:
                self._classifier.admit(model, deadline)
            except Overloaded as error:
                return self._answer(scope, request, error, model.name, started_at)
        except (ServingError, RequestValidationError):
            pass
        return None

    def _answer(
        self, scope: Scope, request: Request, error: Overloaded, model: str, started_at: float
    ) -> Response:
        method, path = scope["method"], scope["path"]
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "url.path": path,
            "http.route": path,
            "http.response.status_code": error.http_status,
        }
        named = f"{method} {path}"
        with self._calls.open(named, request.headers, named, attributes) as call:
            call.model, call.started_at, call.status = model, started_at, error.http_status
            response = problem_response(error)
            response.raw_headers += call.http_headers()
            return response
