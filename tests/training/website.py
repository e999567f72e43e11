"""A web server with one file, for downloads: it resumes, cuts connections, and says no."""

import http.server
import threading
from contextlib import contextmanager


class Site(http.server.ThreadingHTTPServer):
    """One file; what goes wrong is set by the test."""

    def __init__(self, data, name):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.name, self.etag = data, name, '"one"'
        self.ranges = True
        self.cuts = []  # bytes after which each next answer breaks off
        self.status = 200
        self.asked = []
        self.pause = None
        self.missing = set()  # addresses that are 404

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/{self.name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site, first = self.server, 0
        asked = self.headers.get("Range")
        site.asked.append(asked)
        if self.path.rpartition("/")[2] in {url.rpartition("/")[2] for url in site.missing}:
            self.send_error(404)
            return
        if site.status != 200:
            self.send_error(site.status)
            return
        if asked and site.ranges and self.headers.get("If-Range") == site.etag:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
            if first >= len(site.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(site.data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(site.data) - 1}/{len(site.data)}")
        else:
            self.send_response(200)
        if site.etag:
            self.send_header("ETag", site.etag)
        self.send_header("Content-Length", str(len(site.data) - first))
        self.end_headers()
        end = first + site.cuts.pop(0) if site.cuts else None
        if site.pause is not None:  # half of it, and the rest when the test says so
            half = (first + len(site.data)) // 2
            self.wfile.write(site.data[first:half])
            self.wfile.flush()
            site.pause.wait(60)
            first = half
        self.wfile.write(site.data[first:end])

    def log_message(self, *args):
        pass


@contextmanager
def serving(data, name):
    """A `Site` with `data` under `name`, for as long as it is needed."""
    site = Site(data, name)
    thread = threading.Thread(target=site.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.shutdown()
        thread.join()
        site.server_close()
