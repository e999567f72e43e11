"""A headless Chromium and a stand-in for the server that answers as design section 3 says."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import alexnet_server
from tests.browser.chromium import NoChromium, open_chromium

PAGE = Path(alexnet_server.__file__).parent / "page"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".jpg": "image/jpeg",
}
MODELS = [
    {"name": "alexnet", "views": "center", "precision": "int8"},
    {"name": "alexnet_10crop", "views": "ten", "precision": "int8"},
    {"name": "alexnet_dense", "views": "dense", "precision": "int8"},
]
LABELS = ("Egyptian cat", "tabby, tabby cat", "cougar, puma, catamount", "lynx, catamount", "sombrero")
SCORES = (0.8312, 0.104, 0.0387, 0.0121, 0.0004)


class StandIn(ThreadingHTTPServer):
    """Serves the page and made-up answers; tests set `problem`, `delay_s` and `models`."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        """Chromium has gone away from an answer it no longer wants."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reset()

    def reset(self):
        self.models, self.problem, self.delay_s, self.asked = MODELS, None, 0.0, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, kind, body, **headers):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/models":
            self.reply(200, "application/json", json.dumps({"models": self.server.models}).encode())
            return
        file = PAGE / (self.path.removeprefix("/page/") if self.path != "/" else "index.html")
        if file.is_file():
            kind = TYPES.get(file.suffix, "image/svg+xml")
            self.reply(200, kind, file.read_bytes(), Content_Security_Policy=CSP)
        else:
            self.reply(404, "application/problem+json", b'{"title": "Not found", "detail": "Nothing here."}')

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, body, self.headers))
        time.sleep(self.server.delay_s)
        problem = self.server.problem
        if problem is not None:
            status, document, headers = problem
            self.reply(status, "application/problem+json", json.dumps(document).encode(), **headers)
            return
        name = {model["views"]: model["name"] for model in MODELS}[self.path.split("views=")[1].split("&")[0]]
        predictions = [
            {"rank": rank, "index": rank, "wnid": f"n{rank:08}", "label": label, "score": score}
            for rank, (label, score) in enumerate(zip(LABELS, SCORES, strict=True), 1)
        ]
        answer = {"model": name, "version": "1", "predictions": predictions}
        timing = "decode;dur=4.21, queue;dur=0.08, engine;dur=21.66, total;dur=26.40"
        self.reply(200, "application/json", json.dumps(answer).encode(), Server_Timing=timing)


@pytest.fixture(scope="session")
def stand_in_server():
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(stand_in_server):
    stand_in_server.reset()
    return stand_in_server


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """One browser for the session, with an empty profile."""
    try:
        browser = open_chromium(tmp_path_factory.mktemp("chromium"))
    except NoChromium as missing:
        pytest.skip(str(missing))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium, server):
    """The page, freshly loaded on a desktop; afterwards nothing may have complained on the console."""
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chromium.set_window_size(1280, 900)
    chromium.get(server.url)
    chromium.get_log("browser")
    yield chromium
    complaints = [line["message"] for line in chromium.get_log("browser")]
    assert not [line for line in complaints if "status of 4" not in line and "status of 5" not in line]
