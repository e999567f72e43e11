"""What is served, in the protocol's words: each model of the engine, and `classify`, which takes photos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alexnet_server.decoding import IMAGE_SHAPE
from alexnet_server.engines import Model
from alexnet_server.errors import Unavailable, UnknownModel
from alexnet_server.oip.tensors import Spec
from alexnet_server.service import Classifier

CLASSIFY = "classify"
"""The model whose input is encoded photos; the same name stands for the same thing on Triton."""

SERVER_NAME = "alexnet"
EXTENSIONS = ("classification", "model_configuration", "model_repository", "schedule_policy", "statistics")
"""Triton's names for what both protocols have beyond the standard itself."""

NO_CONTROL = "Models are loaded when the server starts; nothing is loaded or unloaded over the network."

_PHOTO_PLATFORM = "alexnet_photo"
"""Of `classify`, which is no ensemble here: a client that reads `ensemble` looks for the steps of one."""

_CONFIG_TYPES = {"UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32", "BYTES": "TYPE_STRING"}


@dataclass(frozen=True, slots=True)
class Served:
    """A model that the protocol can name."""

    name: str
    model: Model
    """The engine's model behind it."""
    platform: str
    input: Spec
    outputs: tuple[Spec, ...]

    @property
    def labels(self) -> list[str]:
        """Lines of labels.txt, which is what Triton puts into classification strings."""
        return [f"{label.wnid}\t{label.words}" for label in self.model.labels]

    def metadata(self) -> dict[str, Any]:
        """The answer to `GET /v2/models/NAME`."""
        return {
            "name": self.name,
            "versions": [self.model.version],
            "platform": self.platform,
            "inputs": [_described(self.input)],
            "outputs": [_described(spec) for spec in self.outputs],
        }

    def config(self) -> dict[str, Any]:
        """Triton's model configuration, as far as it concerns callers."""
        parameters = {"views": self.model.view_mode, **self.model.about}
        return {
            "name": self.name,
            "platform": self.platform,
            "max_batch_size": self.model.max_batch_size,
            "input": [_configured(self.input)],
            "output": [{**_configured(spec), **_label_file(spec)} for spec in self.outputs],
            "parameters": {
                key: {"string_value": str(value)}
                for key, value in parameters.items()
                if isinstance(value, str | int | float)
            },
        }


def find(classifier: Classifier, name: str, version: str = "") -> Served:
    """The model of that name.

    Raises:
        UnknownModel: there is none, or none of that version.
        Unavailable: none is loaded yet.
    """
    if not classifier.models:
        raise Unavailable("The model is still loading.", retry_after_s=1.0)
    served = _named(classifier, name)
    if served is None:
        names = ", ".join(sorted(every(classifier)))
        raise UnknownModel(f"There is no model {name[:100]!r}; there are: {names}.")
    if version not in ("", served.model.version):
        raise UnknownModel(f"Model {name!r} has only version {served.model.version}, not {version[:40]!r}.")
    return served


def every(classifier: Classifier) -> dict[str, Served]:
    """All models by name; none before they are loaded."""
    names = [*classifier.models, CLASSIFY] if classifier.models else []
    return {name: served for name in names if (served := _named(classifier, name)) is not None}


def index(classifier: Classifier) -> list[dict[str, str]]:
    """The model repository's index."""
    reason = classifier.problem()
    state = "READY" if reason is None else "UNAVAILABLE"
    return [
        {"name": served.name, "version": served.model.version, "state": state, "reason": reason or ""}
        for served in every(classifier).values()
    ]


def _named(classifier: Classifier, name: str) -> Served | None:
    if (model := classifier.models.get(name)) is not None:
        return _of_engine(model)
    if name != CLASSIFY:
        return None
    model = classifier.model()
    probabilities = Spec("probabilities", "FP32", (len(model.labels),))
    return Served(CLASSIFY, model, _PHOTO_PLATFORM, Spec("image", "BYTES", (1,)), (probabilities,))


def _of_engine(model: Model) -> Served:
    outputs = (
        Spec("probabilities", "FP32", (len(model.labels),)),
        Spec("features", "FP32", (model.features,)),
    )
    return Served(model.name, model, model.platform, Spec("images", "UINT8", IMAGE_SHAPE), outputs)


def _described(spec: Spec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _configured(spec: Spec) -> dict[str, Any]:
    image = {"format": "FORMAT_NHWC"} if spec.dims == IMAGE_SHAPE else {}
    return {
        "name": spec.name,
        "data_type": _CONFIG_TYPES[spec.datatype],
        **image,
        "dims": list(spec.dims),
    }


def _label_file(spec: Spec) -> dict[str, str]:
    return {"label_filename": "labels.txt"} if spec.name == "probabilities" else {}
