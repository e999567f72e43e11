"""ONNX Runtime's CUDA: what it must load first, and how it is set up."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from typing import Any

import onnxruntime

log = logging.getLogger(__name__)

PROVIDER = "CUDAExecutionProvider"


@functools.cache
def offered() -> bool:
    """Whether this ONNX Runtime was built for CUDA; loads CUDA's libraries if so.

    They come as packages of their own, where the provider's library does not look for them by itself.
    """
    if PROVIDER not in onnxruntime.get_available_providers():
        return False
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it cannot load
        onnxruntime.preload_dlls()
    for line in filter(None, map(str.strip, said.getvalue().splitlines())):
        log.warning("CUDA: %s", line)
    return True


def provider(device: str, precision: str) -> tuple[str, dict[str, Any]]:
    """The provider and its options.

    Args:
        device: `auto`, `cuda`, or `cuda:N` for card N; the first one by default.
        precision: Of the model: in `fp16` convolutions want channels last.
    """
    _, _, number = device.partition(":")
    options: dict[str, Any] = {
        "device_id": int(number or 0),
        # Exhaustive search would run again for each new batch size, in the middle of traffic.
        "cudnn_conv_algo_search": "HEURISTIC",
        # Powers of two would double the arena with every new size.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if precision == "fp16":
        options["prefer_nhwc"] = "1"
    return PROVIDER, options
