"""`alexnet.v1.Classifier`: translation between its messages and `service.Classifier`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from alexnet_client.pb import classifier_pb2 as pb
from alexnet_client.pb.classifier_pb2_grpc import ClassifierServicer
from alexnet_server.call import Calls, current
from alexnet_server.rpc import messages
from alexnet_server.rpc.guard import timeout_s
from alexnet_server.rpc.stream import PhotoStream
from alexnet_server.service import Classifier


class ClassifierRpc(ClassifierServicer):
    """The servicer.

    Args:
        classifier: What answers.
        calls: Accounts for the photos of streams.
        queue_size: Views that may wait; one stream takes no more than half of them.
        stream_age_s: A stream that is older is ended, for its client to open another.
        closing: Set when the door closes: streams finish what they have, and end.
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
        model = messages.model(self._classifier, request)
        call.model = model.name
        deadline = self._classifier.deadline(timeout_s(context))
        result = await messages.classify(self._classifier, request, model, deadline)
        call.stages = result.timing.stages
        return messages.response(result)

    async def ClassifyStream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.ClassifyStreamRequest], context: Any
    ) -> None:
        """Many photos."""
        stream = PhotoStream(
            self._classifier, self._calls, context, max_views=self._stream_views, closing=self._closing
        )
        await stream.run(request_iterator, self._stream_age_s)

    async def Features(self, request: pb.FeaturesRequest, context: Any) -> pb.FeaturesResponse:
        """One photo's features."""
        call = current.get()
        model = self._classifier.model(request.model or None)
        call.model = model.name
        deadline = self._classifier.deadline(timeout_s(context))
        result = await self._classifier.features(messages.photo(request.image), model, deadline=deadline)
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
