"""Swagger UI, on a site of its own, tries out what the server's OpenAPI document describes."""

import functools
import http.server
import shutil
import threading

import pytest
from selenium.webdriver.common.by import By

from tests.browser.chromium import until
from tests.interop.conftest import ENVIRONMENT
from tests.processes import ROOT, server_process

pytestmark = [pytest.mark.browser, pytest.mark.interop]

SWAGGER = ENVIRONMENT / "node" / "node_modules" / "swagger-ui-dist"
PAGE = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="swagger-ui.css">
<link rel="icon" href="data:,"><main id="ui"></main><script src="swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({dom_id: "#ui", url: new URLSearchParams(location.search).get("url")});</script>"""
COFFEE = ROOT / "tests" / "data" / "cc0" / "coffee.jpg"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_arguments):
        pass


@pytest.fixture
def swagger(tmp_path):
    """The address of a Swagger UI that shows the document at `?url=`."""
    if not SWAGGER.exists():
        pytest.skip("swagger-ui-dist is not installed: make test-interop installs it where there is npm")
    folder = tmp_path / "site"
    folder.mkdir()
    for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
        shutil.copy(SWAGGER / name, folder)
    (folder / "index.html").write_text(PAGE)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{site.server_port}"
        site.shutdown()


def test_a_photo_is_tried_out(chromium, swagger, tmp_path):
    """Of the real server, at an address that the document gives only relative to its own."""

    def shown(selector):
        inside = f"#operations-default-classify {selector}"
        return until(chromium, lambda b: next(iter(b.find_elements(By.CSS_SELECTOR, inside)), None))

    with server_process(tmp_path / "log", f"--cors-origins={swagger}", module="alexnet_server") as server:
        chromium.get(f"{swagger}/?url=http://{server.http_target}/openapi.json")
        shown(".opblock-summary-control").click()
        shown(".try-out__btn").click()
        shown("input[type=file]").send_keys(str(COFFEE))
        shown(".execute").click()
        answer = shown(".live-responses-table .response").text
    assert '"label": "espresso"' in answer
    assert chromium.get_log("browser") == []
