"""One inference request, over either protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alexnet_server.call import current
from alexnet_server.errors import InvalidRequest
from alexnet_server.oip import tensors
from alexnet_server.oip.models import Served
from alexnet_server.oip.tensors import Rows, Spec, Values
from alexnet_server.service import Classifier


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that a request names."""

    name: str
    classes: int = 0
    """Above 0: that many classification strings instead of the tensor."""
    binary: bool = False
    """REST: as bytes behind the JSON."""


@dataclass(frozen=True, slots=True)
class Output:
    """An output of an answer."""

    name: str
    datatype: str
    values: Values
    binary: bool


async def infer(
    classifier: Classifier, served: Served, rows: Rows, wanted: Sequence[Wanted], deadline: float
) -> list[Output]:
    """Run the rows through the model.

    Args:
        classifier: The service.
        served: The model.
        rows: Its input.
        wanted: Outputs in the order of the answer.
        deadline: From `Classifier.deadline`.

    Raises:
        InvalidRequest: an unknown output, or one named twice.
        ServingError: whatever the service raises; a request of several rows fails as a whole.
    """
    specs = {spec.name: spec for spec in served.outputs}
    for each in wanted:
        if each.name not in specs:
            raise InvalidRequest(f"unknown output {each.name[:100]!r}; {served.name} has: {', '.join(specs)}")
    if len(wanted) > len(specs):
        raise InvalidRequest("an output is named more than once; name each only once")
    if len(rows) > 1:
        current.get().kind = "batch"
    features = any(each.name == "features" for each in wanted)
    found = await classifier.infer(list(rows), served.model, features=features, deadline=deadline)
    values = {"probabilities": found.probabilities, "features": found.features}
    return [_output(specs[each.name], values[each.name], each, served) for each in wanted]


def all_outputs(served: Served, *, binary: bool = False) -> list[Wanted]:
    """What a request that names no outputs gets."""
    return [Wanted(spec.name, binary=binary) for spec in served.outputs]


def check_inputs(served: Served, names: Sequence[str]) -> None:
    """See that a request brings the model's one input.

    Raises:
        InvalidRequest: it is missing, or there are others.
    """
    if list(names) != [served.input.name]:
        got = ", ".join(repr(name[:100]) for name in names[:8]) or "none"
        raise InvalidRequest(f"{served.name} takes one input, {served.input.name!r}; got {got}")


def class_count(name: str, value: object) -> int:
    """The classification parameter of an output, checked.

    Raises:
        InvalidRequest: not a whole number from 0.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidRequest(f"output {name[:100]!r}: `classification` must be a whole number from 0")
    return value


def _output(spec: Spec, values: Values | None, wanted: Wanted, served: Served) -> Output:
    assert values is not None
    if not wanted.classes:
        return Output(spec.name, spec.datatype, values, wanted.binary)
    labels = served.labels if spec.name == "probabilities" else ()
    strings = tensors.classes(values, wanted.classes, labels)
    return Output(spec.name, "BYTES", strings, wanted.binary)
