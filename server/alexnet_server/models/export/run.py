"""Running a graph that is not served yet: to calibrate it, and to check what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Run = Callable[[Sequence[str], NDArray[np.uint8]], list[NDArray[np.float32]]]
"""From names of outputs and uint8 ``images`` (N, 256, 256, 3) to those outputs."""


class NoEngine(RuntimeError):
    """Neither ONNX Runtime nor OpenVINO is installed."""


def runner(model: onnx.ModelProto) -> Run:
    """A complete graph on the CPU, in fp32, in whichever engine is installed.

    Raises:
        NoEngine: none is.
    """
    data = model.SerializeToString()
    try:
        return _onnxruntime(data)
    except ModuleNotFoundError:
        pass
    try:
        return _openvino(data)
    except ModuleNotFoundError:
        raise NoEngine(
            "calibrating and checking a model needs to run it: pip install '.[cpu]' (or [gpu])"
        ) from None


def _onnxruntime(data: bytes) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda names, images: session.run(list(names), {"images": images})


def _openvino(data: bytes) -> Run:
    import openvino

    core = openvino.Core()
    # By itself it would compute in bfloat16 where the processor can.
    compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(names: Sequence[str], images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        results: Any = compiled({"images": images})
        return [results[name] for name in names]

    return run
