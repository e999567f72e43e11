"""What a browser is shown: the page at `/` with its files below `/page`, and the documentation at `/docs`."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.requests import Request
from starlette.responses import Response

from alexnet_server.http.docs import docs_page

PAGE: Final = Path(__file__).parent / "page"
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
"""Of every page and file. `no-cache` asks again with the ETag: new versions are seen, old ones not resent."""


def add_pages(app: FastAPI) -> None:
    """Add the routes that people open."""
    files = _Files(directory=PAGE)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(docs_page(app.openapi()), media_type="text/html", headers=HEADERS)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon(request: Request) -> Response:
        return await files.get_response("icon.svg", request.scope)

    app.mount("/page", files)


class _Files(StaticFiles):
    def file_response(self, full_path: str | PathLike[str], *args: Any, **options: Any) -> Response:
        response = super().file_response(full_path, *args, **options)
        response.headers.update(HEADERS)
        return response
