"""Answers: frozen, typed, and plain Python all the way down."""

from __future__ import annotations

from dataclasses import dataclass

from alexnet_client.pb import classifier_pb2 as pb


@dataclass(frozen=True, slots=True)
class Prediction:
    """One label of an answer.

    Attributes:
        rank: from 1, best first.
        index: the model's output index.
        wnid: the WordNet id, such as `n02124075`.
        label: the class in words.
        score: the probability, 0 to 1.
    """

    rank: int
    index: int
    wnid: str
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The best labels of one photo, best first, and the model that gave them."""

    model: str
    version: str
    predictions: tuple[Prediction, ...]

    @property
    def top(self) -> Prediction:
        """The best label."""
        return self.predictions[0]


@dataclass(frozen=True, slots=True)
class Features:
    """The 4,096 activations of the last hidden layer (fc7 after its ReLU) of one photo's centre view."""

    model: str
    version: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Label:
    """One class a model can name: its output index, WordNet id and words."""

    index: int
    wnid: str
    label: str


@dataclass(frozen=True, slots=True)
class Health:
    """What the server says of itself: `status` as in grpc.health.v1, `ready` when that is SERVING."""

    status: str

    @property
    def ready(self) -> bool:
        """Whether the server takes requests now."""
        return self.status == "SERVING"


def classification(message: pb.ClassifyResponse) -> Classification:
    """The typed form of the wire's answer."""
    predictions = tuple(
        Prediction(each.rank, each.index, each.wnid, each.label, each.score) for each in message.predictions
    )
    return Classification(message.model, message.version, predictions)


def features(message: pb.FeaturesResponse) -> Features:
    """The typed form of the wire's answer."""
    return Features(message.model, message.version, tuple(message.features))


def labels(message: pb.ListLabelsResponse) -> tuple[Label, ...]:
    """The typed form of the wire's answer."""
    return tuple(Label(each.index, each.wnid, each.label) for each in message.labels)
