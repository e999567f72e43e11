"""The client over HTTP, against a real door with a fake engine."""

import http.server
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from alexnet_client import Client, HttpClient, cli, errors
from tests.processes import server_process


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("http") / "log"
    with server_process(log, FAKE_VIEWS="1") as running:
        yield running


@pytest.fixture
def client(server):
    with HttpClient(f"http://{server.http_target}") as made:
        yield made


def flat(value):
    return np.full((256, 256, 3), value, np.uint8)


def test_the_same_answers_as_over_grpc(client, server):
    photos = [flat(3), Image.new("RGB", (300, 200), (7, 7, 7)), flat(5)[:, :200]]
    with Client(server.target) as grpc_client:
        for photo in photos:
            assert client.classify(photo, 3, "ten") == grpc_client.classify(photo, 3, "ten")
        assert client.features(photos[0], "dense") == grpc_client.features(photos[0], "dense")
        assert client.labels(model="alexnet_10crop") == grpc_client.labels(model="alexnet_10crop")
        assert client.models() == grpc_client.models()
        assert client.health() == grpc_client.health()


def test_many(client):
    photos = [flat(number) for number in range(100)]
    photos[40] = b"no photo"
    photos[50] = "/no/such.jpg"
    found = list(client.classify_many(photos, window=8))
    assert isinstance(found[40], errors.InvalidImage)
    assert found[40].code == "unsupported_format"
    assert found[40].request_id
    assert isinstance(found[50], errors.Unreadable)
    del found[40], found[49], photos[40], photos[49]
    assert [each.top.index for each in found] == [int(photo[0, 0, 0]) % 10 for photo in photos]


def test_leaving_many_half_way(client):
    outcomes = client.classify_many(flat(1) for _ in range(10**9))
    assert next(outcomes).top.index == 1
    outcomes.close()


def test_errors(client):
    with pytest.raises(errors.UnknownModel):
        client.classify(flat(1), model="vgg")
    with pytest.raises(errors.InvalidRequest):
        client.classify(flat(1), top_k=99)
    with pytest.raises(ValueError, match="not both"):
        client.classify(flat(1), views="ten", model="alexnet")


def test_nobody_there():
    with HttpClient("http://127.0.0.1:1", max_attempts=2) as client, pytest.raises(errors.Unavailable):
        client.health()


def test_a_closed_client(server):
    client = HttpClient(f"http://{server.http_target}")
    client.close()
    with pytest.raises(errors.Unavailable, match="closed"):
        client.classify(flat(1))


@pytest.mark.parametrize("address", ["localhost:8080", "ftp://localhost"])
def test_an_address_is_a_url(address):
    with pytest.raises(ValueError, match="is not a URL"):
        HttpClient(address)


def test_without_httpx_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[http\]'"):
        HttpClient()


def test_the_command_speaks_http(server, capsys, tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (256, 256), (7, 7, 7)).save(photo)
    assert cli.main(["classify", str(photo), "--address", f"http://{server.http_target}"]) == 0
    assert "class 7" in capsys.readouterr().out


@pytest.fixture
def gateway():
    """A proxy that answers 503 with a page of its own, then 429 without one."""
    statuses = [503, 429]

    class Gateway(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(statuses.pop(0) if statuses else 403)
            self.send_header("retry-after", "0.05")
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_a_proxy_says_is_understood(gateway):
    with HttpClient(gateway) as client, pytest.raises(errors.Unauthenticated, match="403 Forbidden"):
        client.labels()
