"""Answers: frozen, typed, and plain Python all the way down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from html import escape
from typing import Any

from google.protobuf.json_format import MessageToDict

from alexnet_client.pb import classifier_pb2 as pb


class _Plain:
    """What all answers have."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """The answer as dicts, lists and plain values, as JSON has them."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, _Plain):
        return value.to_dict()
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class Prediction(_Plain):
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


@dataclass(frozen=True, slots=True, repr=False)
class Classification(_Plain):
    """The best labels of one photo, best first, and the model that gave them; iterates over them."""

    model: str
    version: str
    predictions: tuple[Prediction, ...]

    @property
    def top(self) -> Prediction:
        """The best label."""
        return self.predictions[0]

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.predictions)

    def __len__(self) -> int:
        return len(self.predictions)

    def __repr__(self) -> str:
        labels = ", ".join(f"{each.label} {each.score:.1%}" for each in self.predictions)
        return f"<{type(self).__name__} by {self.model} {self.version}: {labels}>"

    def __str__(self) -> str:
        return "\n".join(f"{each.score:>6.1%}  {each.label}" for each in self.predictions)

    def _repr_html_(self) -> str:
        """A table with bars, for notebooks."""
        rows = "".join(
            f'<tr><td style="text-align:left">{escape(each.label)}</td>'
            f'<td style="text-align:right">{each.score:.1%}</td>'
            '<td style="text-align:left;min-width:12em">'
            f'<div style="background:#4c78a8;height:0.8em;width:{each.score:.1%}"></div></td></tr>'
            for each in self.predictions
        )
        return f"<table><caption>{escape(self.model)} {escape(self.version)}</caption>{rows}</table>"


@dataclass(frozen=True, slots=True, repr=False)
class Features(_Plain):
    """The 4,096 activations of the last hidden layer (fc7 after its ReLU) of one photo's centre view."""

    model: str
    version: str
    values: tuple[float, ...]

    def __iter__(self) -> Iterator[float]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} by {self.model} {self.version}: {len(self.values)} numbers>"


@dataclass(frozen=True, slots=True)
class Label(_Plain):
    """One class a model can name: its output index, WordNet id and words."""

    index: int
    wnid: str
    label: str


@dataclass(frozen=True, slots=True)
class Model(_Plain):
    """A model that the server has loaded.

    Attributes:
        name: what `model` takes.
        version: of the model.
        views: `center`, `ten` or `dense`.
        classes: how many classes it knows.
        max_batch_size: photos it takes at once.
        device: where it runs.
        about: what else the server says about it: precision, accuracy, hashes.
    """

    name: str
    version: str
    views: str
    classes: int
    max_batch_size: int
    device: str
    about: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Health(_Plain):
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


def models(message: pb.ListModelsResponse) -> tuple[Model, ...]:
    """The typed form of the wire's answer."""
    return tuple(
        Model(
            each.name,
            each.version,
            each.views,
            each.classes,
            each.max_batch_size,
            each.device,
            MessageToDict(each.about),
        )
        for each in message.models
    )
