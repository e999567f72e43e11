"""A photo by its URL."""

import http.server
import threading

import pytest

from alexnet_client import AsyncClient, Client, errors, web


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("location", "file:///etc/hostname")
            self.end_headers()
        elif self.path == "/moved.jpg":
            self.send_response(302)
            self.send_header("location", "/cat.jpg")
            self.end_headers()
        elif self.path == "/large.jpg":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 20))
            except OSError:
                self.server.hung_up.set()
        elif self.path == "/cat.jpg":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"a cat")
        else:
            self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.hung_up = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


def test_a_url_is_fetched_here(fake, site):
    with Client(fake.address) as client:
        assert client.classify(f"{site.url}/cat.jpg").top.label == "a cat"
        first, second = client.classify_many([f"{site.url}/moved.jpg", f"{site.url}/none.jpg"])
    assert first.top.label == "a cat"
    assert isinstance(second, errors.Unreadable)
    assert "404" in str(second)


async def test_a_url_is_fetched_by_the_asynchronous_client_too(fake, site):
    async with AsyncClient(fake.address) as client:
        assert (await client.classify(f"{site.url}/cat.jpg")).top.label == "a cat"


def test_no_more_is_read_than_a_server_takes(site):
    with pytest.raises(errors.TooLarge, match="10 MiB"):
        web.fetch(f"{site.url}/large.jpg")
    assert site.hung_up.wait(10)


def test_a_redirect_leads_to_no_file(site):
    with pytest.raises(OSError, match=r"file|302"):
        web.fetch(f"{site.url}/elsewhere")
