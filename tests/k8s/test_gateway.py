"""The shipped HTTPRoute against the server: all that it offers is routed, or kept inside on purpose."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from alexnet_server.access.keys import load_keys
from alexnet_server.http.app import create_app
from alexnet_server.service import Classifier
from alexnet_server.settings import Settings
from alexnet_server.telemetry.metrics import Metrics
from tests.k8s.conftest import Render
from tests.k8s.manifests import Objects, of_kind
from tests.k8s.wiring import routed
from tests.server.fakes import FakeEngine, fake_model, photo, running

INSIDE = {
    "/livez",
    "/healthz",
    "/ping",
    "/readyz",
    "/metrics",
    "/v2/repository/models/{name}/load",
    "/v2/repository/models/{name}/unload",
}
"""Probes, metrics, and what the server refuses anyhow."""


@pytest.fixture(scope="module")
def matches(render: Render) -> Objects:
    (route,) = of_kind(render("overlays/cpu", "gateway-api"), "HTTPRoute")
    return [match["path"] for rule in route["spec"]["rules"] for match in rule["matches"]]


def application() -> FastAPI:
    """The server's own, without the middleware around it."""
    settings = Settings()
    app: Any = create_app(Classifier(settings, Metrics(), decode_threads=1), settings, load_keys(settings))
    while not isinstance(app, FastAPI):
        app = getattr(app, "_app", None) or app.app
    return app


def offered() -> set[str]:
    """Every path that the server answers, as its routes write them."""
    return {route.path for route in iter_route_contexts(application().routes)}


def test_every_path_is_routed_or_kept_inside_on_purpose(matches: Objects) -> None:
    paths = offered()
    assert {"/", "/classify", "/page", "/v2/models/{name}/infer"} <= paths
    assert paths >= INSIDE
    concrete = {path: re.sub(r"\{version[^}]*\}", "1", path).replace("{name}", "alexnet") for path in paths}
    assert {path for path in paths if not routed(matches, concrete[path])} == INSIDE


@pytest.fixture
async def gateway(matches: Objects) -> AsyncIterator[httpx.AsyncClient]:
    """A client that the server answers on the manifest's routes alone."""

    async def only_routed(request: httpx.Request) -> None:
        assert routed(matches, request.url.path), f"{request.url.path} is not routed"

    async with running(FakeEngine(fake_model())) as server:
        hooks = {"request": [only_routed]}
        async with httpx.AsyncClient(base_url=server.url, event_hooks=hooks, timeout=30) as client:
            yield client


NO_FILES = "does not have the files of its model"
LINKS = {
    "text/html": re.compile(r"""(?:src|href)=["']([^"'#]+)["']"""),
    "text/css": re.compile(r"""\burl\(["']?([^"')]+)["']?\)"""),
    "text/javascript": re.compile(r"""\bfrom ["']([^"']+)["']"""),
}
ASKED = re.compile(r"""\bfetch\(\s*["'`]([^"'`$]+)["'`]""")
"""By a script: relative to the page, not to the script."""


def linked(path: str, answer: httpx.Response) -> set[str]:
    """Paths of this server that a page, a style sheet or a script loads."""
    kind = answer.headers["content-type"].partition(";")[0]
    found = [urljoin(path, link) for link in LINKS[kind].findall(answer.text)] if kind in LINKS else []
    found += [urljoin("/", link) for link in ASKED.findall(answer.text)]
    return {urlsplit(link).path for link in found if not urlsplit(link).scheme and not urlsplit(link).netloc}


async def test_the_pages_work_through_it(gateway: httpx.AsyncClient) -> None:
    """Pages, and whatever they load or link to, as far as that goes."""
    seen: set[str] = set()
    waiting = ["/", "/docs"]
    while waiting:
        path = waiting.pop()
        seen.add(path)
        answer = await gateway.get(path)
        # 405: what the page posts to. The fake engine has no model files to draw kernels of.
        assert answer.status_code in (200, 405) or NO_FILES in answer.text, path
        waiting += linked(path, answer) - {*seen, *waiting}
    assert len({path for path in seen if path.startswith("/page/")}) >= 6


async def test_documented_paths_work_through_it(gateway: httpx.AsyncClient) -> None:
    documented = (await gateway.get("/openapi.json")).json()["paths"]
    assert "/classify" in documented
    for path, operations in documented.items():
        if path in INSIDE:
            continue
        for method in operations:
            answer = await gateway.request(method, path, content=photo() if method == "post" else None)
            assert answer.status_code not in (404, 405) or NO_FILES in answer.text, (method, path)
