"""`alexnet.v1`'s messages <-> what the service takes and gives."""

from __future__ import annotations

import numpy as np

from alexnet_client.pb import classifier_pb2 as pb
from alexnet_server.decoding import IMAGE_SHAPE, Photo
from alexnet_server.engines import Model
from alexnet_server.errors import InvalidRequest
from alexnet_server.results import Classification
from alexnet_server.service import Classifier, Views

_DEFAULT_TOP_K = 5
_PREPARED_BYTES = int(np.prod(IMAGE_SHAPE))
_VIEWS: dict[int, Views] = {pb.VIEWS_CENTER: "center", pb.VIEWS_TEN: "ten", pb.VIEWS_DENSE: "dense"}


def model(classifier: Classifier, request: pb.ClassifyRequest) -> Model:
    """The model that a request asks for, by its name or its views.

    Raises:
        InvalidRequest: views of another version of the protocol.
        ServingError: whatever `Classifier.model` raises.
    """
    if request.WhichOneof("selection") != "views" or request.views == pb.VIEWS_UNSPECIFIED:
        return classifier.model(request.model or None)
    if request.views not in _VIEWS:
        raise InvalidRequest(f"`views` must be 1 (center), 2 (ten) or 3 (dense), got {request.views}.")
    return classifier.model(views=_VIEWS[request.views])


async def classify(
    classifier: Classifier, request: pb.ClassifyRequest, model: Model, deadline: float
) -> Classification:
    """Run a request; raises what `Classifier.classify` raises, and InvalidRequest for one without a photo."""
    top_k = request.top_k if request.HasField("top_k") else _DEFAULT_TOP_K
    return await classifier.classify(photo(request.image), model, top_k=top_k, deadline=deadline)


def photo(image: pb.Image) -> Photo:
    """The photo in a message.

    Raises:
        InvalidRequest: there is none, or a prepared image of another size.
    """
    kind = image.WhichOneof("kind")
    if kind == "prepared":
        if len(image.prepared) != _PREPARED_BYTES:
            raise InvalidRequest(
                f"`image.prepared` must be {_PREPARED_BYTES} bytes, 256 x 256 x 3 uint8 RGB; "
                f"got {len(image.prepared)}."
            )
        return np.frombuffer(image.prepared, np.uint8).reshape(IMAGE_SHAPE)
    if kind is None or not image.encoded:
        raise InvalidRequest("The request has no photo; set `image.encoded` or `image.prepared`.")
    return image.encoded


def response(result: Classification) -> pb.ClassifyResponse:
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
