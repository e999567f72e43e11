"""The stock clients of both doors, for this protocol's suites; each starts a ``server`` of its own."""

import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http


@pytest.fixture(params=["http", "grpc"])
def triton(request, server):
    """The module of one door and a client of it."""
    if request.param == "http":
        client = triton_http.InferenceServerClient(server.http_target, network_timeout=60)
        yield triton_http, client
    else:
        client = triton_grpc.InferenceServerClient(server.target)
        yield triton_grpc, client
    client.close()
