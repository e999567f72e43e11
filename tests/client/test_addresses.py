"""Addresses, and what is said where nobody answers."""

import http.server
import threading

import pytest

from alexnet_client import AsyncClient, Client, addresses, errors
from tests.processes import server_process


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8081",
        "10.0.0.1:1",
        "[::1]:8081",
        "alexnet.default.svc:8081",
        "dns:///alexnet.default.svc:8081",
        "dns:alexnet:8081",
        "unix:/run/alexnet.sock",
        "ipv4:10.0.0.1:8081,10.0.0.2:8081",
    ],
)
def test_addresses(address):
    assert addresses.target(address) == address


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://localhost:8081", "is a URL, but an address is host:port; the gRPC port is usually 8081"),
        ("https://localhost", "is a URL"),
        ("grpc://localhost:8081", "is a URL"),
        ("localhost", "is not host:port, such as localhost:8081"),
        ("dns:///alexnet", "is not host:port"),
        ("localhost:", "is not host:port"),
        ("localhost:http", "is not host:port"),
        ("localhost:0", "is not host:port"),
        ("localhost:65536", "is not host:port"),
        ("localhost:8081/path", "is not host:port"),
        ("::1", "is not host:port"),
    ],
)
def test_what_is_no_address(address, says):
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match=says):
            kind(address)


def test_the_environment_says_where_and_who(fake, monkeypatch):
    monkeypatch.setenv("ALEXNET_CLIENT_ADDRESS", fake.address)
    monkeypatch.setenv("ALEXNET_API_KEY", "from-the-environment")
    with Client() as client:
        client.classify(b"a photo")
    with Client(api_key="given") as client:
        client.classify(b"a photo")
    monkeypatch.setenv("ALEXNET_API_KEY", "")
    with Client() as client:
        client.classify(b"a photo")
    assert [each.get("authorization") for each in fake.metadata] == [
        "Bearer from-the-environment",
        "Bearer given",
        None,
    ]
    monkeypatch.setenv("ALEXNET_CLIENT_ADDRESS", "")
    assert addresses.target(None) == "localhost:8081"


def complaint(address):
    with Client(address, max_attempts=1) as client, pytest.raises(errors.Unavailable) as caught:
        client.health(timeout_s=30)
    return str(caught.value)


def test_nobody_there(fake):
    fake.stop()
    assert complaint(fake.address) == f"no server at {fake.address}; start one with alexnet-server"


def test_the_http_port_by_mistake(tmp_path):
    with server_process(tmp_path / "log") as server:
        assert complaint(server.http_target) == (
            f"{server.http_target} speaks HTTP, not gRPC; the gRPC port is usually 8081"
        )


@pytest.fixture
def proxy(monkeypatch):
    """One that refuses everything."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "log_message", lambda *_: None)
    for name in ("grpc_proxy", "https_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


def test_a_proxy_in_the_way_is_named(proxy):
    assert "through $http_proxy=http://127.0.0.1" in complaint("alexnet.example:8081")


def test_no_proxy_leads_to_this_machine(fake, proxy):
    with Client(fake.address) as client:
        assert client.classify(b"a photo")


def test_tls_where_there_is_none(fake):
    client = Client(fake.address, tls=True, max_attempts=1)
    with client, pytest.raises(errors.Unavailable, match="TLS failed"):
        client.health(timeout_s=30)
