"""A gRPC server that answers as it is told to, so that the client meets every kind of trouble."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from alexnet_client.pb import classifier_pb2 as pb
from alexnet_client.pb.classifier_pb2_grpc import ClassifierServicer, add_ClassifierServicer_to_server

Reply = Callable[[pb.ClassifyRequest, grpc.ServicerContext], pb.ClassifyResponse]


def answer_of(image: pb.Image) -> pb.ClassifyResponse:
    """The photo's own bytes come back as its label, so that a test can tell which answer is whose."""
    label = (image.encoded or b"prepared").decode("latin1")[:100]
    best = pb.Prediction(rank=1, index=7, wnid="n02124075", label=label, score=0.75)
    return pb.ClassifyResponse(model="alexnet", version="1", predictions=[best])


class FakeServer(ClassifierServicer):
    """Set `fail` or `reply` to change its mind; `requests` and `metadata` keep what came."""

    def __init__(self) -> None:
        self.requests: list[pb.ClassifyRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.remaining_s: list[float | None] = []
        self.fail: Callable[[int], Failure | None] = lambda _attempt: None
        self.reply: Reply = lambda request, _context: answer_of(request.image)
        self.health = 1
        self.gate = threading.Event()
        self.gate.set()
        self._server: grpc.Server | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
        add_ClassifierServicer_to_server(self, self._server)
        check = grpc.unary_unary_rpc_method_handler(
            lambda _request, _context: Int32Value(value=self.health),
            request_deserializer=StringValue.FromString,
            response_serializer=Int32Value.SerializeToString,
        )
        handlers = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check})
        self._server.add_generic_rpc_handlers((handlers,))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self.gate.set()
            self._server.stop(None).wait()

    def Classify(self, request, context):
        self._note(request, context)
        self.gate.wait(10)
        return self.reply(request, context)

    def Features(self, request, context):
        self._note(request, context)
        return pb.FeaturesResponse(model="alexnet", version="1", features=[0.0, 1.5, 2.0])

    def ListLabels(
        self, request: pb.ListLabelsRequest, context: grpc.ServicerContext
    ) -> pb.ListLabelsResponse:
        self._note(request, context)
        return pb.ListLabelsResponse(labels=[pb.Label(index=0, wnid="n02124075", label="Egyptian cat")])

    def ListModels(self, request, context):
        self._note(request, context)
        model = pb.Model(
            name="alexnet", version="1", views="center", classes=200, max_batch_size=32, device="cpu"
        )
        model.about.update({"precision": "int8"})
        return pb.ListModelsResponse(models=[model])

    def _note(self, request, context):
        self.requests.append(request)
        self.metadata.append({str(each.key): str(each.value) for each in context.invocation_metadata()})
        self.remaining_s.append(context.time_remaining())
        failure = self.fail(len(self.requests))
        if failure is not None:
            failure.end(context)


class Failure:
    def __init__(self, status: grpc.StatusCode, message: str = "as told", **trailers: str) -> None:
        self.status = status
        self.message = message
        self.trailers = tuple((key.replace("_", "-"), value) for key, value in trailers.items())

    def end(self, context: grpc.ServicerContext) -> NoReturn:
        context.set_trailing_metadata(self.trailers)
        context.abort(self.status, self.message)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    server.start()
    yield server
    server.stop()
