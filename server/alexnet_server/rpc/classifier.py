"""`alexnet.v1.Classifier`: translation between its messages and `service.Classifier`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from alexnet_client.pb import classifier_pb2 as pb
from alexnet_client.pb.classifier_pb2_grpc import ClassifierServicer
from alexnet_server.call import Calls, current
from alexnet_server.decoding import IMAGE_SHAPE, Photo
from alexnet_server.engines import Model
from alexnet_server.errors import InvalidRequest
from alexnet_server.results import Classification
from alexnet_server.rpc.guard import timeout_s
from alexnet_server.rpc.stream import PhotoStream
from alexnet_server.service import Classifier, Views

_DEFAULT_TOP_K = 5
_PREPARED_BYTES = int(np.prod(IMAGE_SHAPE))
_VIEWS: dict[int, Views] = {pb.VIEWS_CENTER: "center", pb.VIEWS_TEN: "ten", pb.VIEWS_DENSE: "dense"}


class ClassifierRpc(ClassifierServicer):
    """The servicer.

    Args:
        classifier: What answers.
        calls: Accounts for the photos of streams.
        queue_size: Views that may wait; one stream takes no more than half of them.
        stream_age_s: A stream that is older is ended, for its client to open another.
        closing: Set when the port closes: streams finish what they have, and end.
    """

    def __init__(
        self,
        classifier: Classifier,
        calls: Calls,
        *,
        queue_size: int,
        stream_age_s: float,
        closing: asyncio.Event,
    ) -> None:
        self._classifier = classifier
        self._calls = calls
        self._stream_views = max(1, queue_size // 2)
        self._stream_age_s = stream_age_s
        self._closing = closing

    async def Classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:
        """One photo."""
        call = current.get()
        model = self._model(request)
        call.model = model.name
        deadline = self._classifier.deadline(timeout_s(context))
        result = await self._classify(request, model, deadline)
        call.stages = result.timing.stages
        return _response(result)

    async def ClassifyStream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.ClassifyStreamRequest], context: Any
    ) -> None:
        """Many photos."""
        stream = PhotoStream(
            self._model,
            self._answer,
            self._calls,
            context,
            max_views=self._stream_views,
            bodies=self._classifier.bodies,
            closing=self._closing,
        )
        await stream.run(request_iterator, self._stream_age_s)

    async def Features(self, request: pb.FeaturesRequest, context: Any) -> pb.FeaturesResponse:
        """One photo's features."""
        call = current.get()
        model = self._model(request)
        call.model = model.name
        deadline = self._classifier.deadline(timeout_s(context))
        result = await self._classifier.features(_photo(request.image), model, deadline=deadline)
        call.stages = result.timing.stages
        return pb.FeaturesResponse(
            model=result.model, version=result.version, features=result.values.tolist()
        )

    async def ListLabels(self, request: pb.ListLabelsRequest, context: Any) -> pb.ListLabelsResponse:
        """The model's labels."""
        del context
        chosen = self._classifier.model(request.model or None)
        labels = [pb.Label(index=each.index, wnid=each.wnid, label=each.words) for each in chosen.labels]
        return pb.ListLabelsResponse(model=chosen.name, version=chosen.version, labels=labels)

    async def ListModels(self, _request: pb.ListModelsRequest, _context: Any) -> pb.ListModelsResponse:
        """What is loaded, as in `GET /models`."""
        answer = pb.ListModelsResponse()
        for model in self._classifier.models.values():
            listed = answer.models.add(
                name=model.name,
                version=model.version,
                views=model.view_mode,
                classes=len(model.labels),
                max_batch_size=model.max_batch_size,
                device=model.device,
            )
            listed.about.update(model.about)
        return answer

    def _model(self, request: pb.ClassifyRequest | pb.FeaturesRequest) -> Model:
        """The model that a request asks for, by its name or its views.

        Raises:
            InvalidRequest: views of another version of the protocol.
            ServingError: whatever `Classifier.model` raises.
        """
        if request.WhichOneof("selection") != "views" or request.views == pb.VIEWS_UNSPECIFIED:
            return self._classifier.model(request.model or None)
        if request.views not in _VIEWS:
            raise InvalidRequest(f"`views` must be 1 (center), 2 (ten) or 3 (dense), got {request.views}.")
        return self._classifier.model(views=_VIEWS[request.views])

    async def _classify(self, request: pb.ClassifyRequest, model: Model, deadline: float) -> Classification:
        """Raises what `Classifier.classify` raises, and InvalidRequest for a request without a photo."""
        top_k = request.top_k if request.HasField("top_k") else _DEFAULT_TOP_K
        photo = _photo(request.image)
        return await self._classifier.classify(photo, model, top_k=top_k, deadline=deadline)

    async def _answer(
        self, request: pb.ClassifyRequest, model: Model, timeout_s: float | None
    ) -> pb.ClassifyResponse:
        """One photo of a stream."""
        return _response(await self._classify(request, model, self._classifier.deadline(timeout_s)))


def _photo(image: pb.Image) -> Photo:
    """The photo in a message.

    Raises:
        InvalidRequest: there is none, or a prepared image of another size.
    """
    kind = image.WhichOneof("kind")
    if kind == "prepared":
        prepared = image.prepared
        if len(prepared) != _PREPARED_BYTES:
            raise InvalidRequest(
                f"`image.prepared` must be {_PREPARED_BYTES} bytes, 256 x 256 x 3 uint8 RGB; "
                f"got {len(prepared)}."
            )
        return np.frombuffer(prepared, np.uint8).reshape(IMAGE_SHAPE)
    photo: bytes = image.encoded if kind == "encoded" else b""  # asked for once: each time is a copy
    if not photo:
        raise InvalidRequest("The request has no photo; set `image.encoded` or `image.prepared`.")
    return photo


def _response(result: Classification) -> pb.ClassifyResponse:
    """The message for an answer."""
    return pb.ClassifyResponse(
        model=result.model,
        version=result.version,
        predictions=[
            pb.Prediction(
                rank=each.rank, index=each.index, wnid=each.wnid, label=each.label, score=each.score
            )
            for each in result.predictions
        ],
    )
