"""OpenVINO in this process, on the CPU."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import openvino

from alexnet_server.engines import (
    Images,
    Model,
    Outputs,
    enough_views,
    few_rows,
    openvino_graph,
    timed_batches,
)
from alexnet_server.engines.checks import cannot_load, check_metadata, check_shapes
from alexnet_server.engines.compiled import CompiledModels
from alexnet_server.engines.instruction_set import instruction_set
from alexnet_server.engines.operators import medians, single_images
from alexnet_server.errors import StartError

log = logging.getLogger(__name__)

_DEVICE = "CPU"
_MAX_STREAMS = 4
"""More would take more memory and a longer wait for a batch; from here on each has several threads."""
_FP32 = {"INFERENCE_PRECISION_HINT": "f32"}
"""What says float32 is computed in it; by itself OpenVINO takes bfloat16 where the processor has it."""


class OpenvinoEngine:
    """Models compiled by OpenVINO for this machine's processor.

    Args:
        models: What to load; `device` is filled in here.
        files: The ONNX file of each model's name.
        threads: Threads that compute one batch.
        cache: Where compiled models are kept; the user's cache by default.

    Raises:
        StartError: This processor cannot run it, or a file cannot be loaded or is not the model it says.
    """

    def __init__(
        self, models: Iterable[Model], files: Mapping[str, Path], *, threads: int, cache: Path | None = None
    ) -> None:
        self._core = _core()
        self.concurrency = min(threads, _MAX_STREAMS)
        self.enough_views: int | None = enough_views(threads // self.concurrency)
        version = openvino.get_version()
        instructions = instruction_set()
        made_by = [version, instructions, inspect.getsource(openvino_graph), str(_FP32)]
        wide_settings, narrow_settings = (_settings(threads, streams) for streams in (1, self.concurrency))
        wide_cache, narrow_cache = (
            CompiledModels("openvino", [*made_by, *map(str, settings.items())], cache)
            for settings in (wide_settings, narrow_settings)
        )
        self._requests: dict[str, _Requests] = {}
        self._busy = 0
        self._lock = Lock()
        self._mapped: list[memoryview] = []  # weights are read where the cache's files are mapped
        loaded: dict[str, Model] = {}
        for model in models:
            wide, metadata = self._open(files[model.name], wide_settings, wide_cache)
            _check(wide, model, files[model.name])
            check_metadata(metadata, model, files[model.name])
            narrow = wide
            if self.concurrency > 1:
                narrow, _ = self._open(files[model.name], narrow_settings, narrow_cache)
            self._requests[model.name] = _Requests(wide, narrow, self.concurrency)
            about = {
                **model.about,
                "precision": _precision(metadata),
                "engine": "openvino",
                "engine_version": version.split("-")[0],
                "instruction_set": instructions,
            }
            # No method: a circle through the engine would be collected in any order, the mapped weights
            # perhaps before the request that reads them.
            profile = partial(_profile, self._core, files[model.name], wide_settings)
            loaded[model.name] = replace(
                model, device="cpu", platform="openvino", about=about, profile=profile
            )
        self.models: Mapping[str, Model] = loaded
        self.device = "cpu"
        self.shares_cores = True

    def infer(self, model: str, images: Images, *, features: bool, alone: bool = True) -> Outputs:
        """See `Engine.infer`."""
        with self._request(model, alone=alone) as request:
            request.infer([np.ascontiguousarray(images)], share_inputs=True, share_outputs=True)
            # Copied: the next batch overwrites the request's own.
            probabilities = request.get_tensor("probabilities").data.copy()
            return Outputs(probabilities, request.get_tensor("features").data.copy() if features else None)

    def warm_up(self) -> dict[str, tuple[int, float]]:
        """See `Engine.warm_up`: one image, and a few."""
        return timed_batches(self, lambda model: sorted({1, few_rows(model)}))

    def close(self) -> None:
        """See `Engine.close`."""
        self._requests.clear()
        self._mapped.clear()

    @contextmanager
    def _request(self, model: str, *, alone: bool) -> Iterator[Any]:
        """What computes a batch: all threads together, if nothing else is computed or about to be."""
        requests = self._requests[model]
        with self._lock:
            wide = alone and not self._busy
            self._busy += 1
        request = requests.wide if wide else requests.streams.get()
        try:
            yield request
        finally:
            if not wide:
                requests.streams.put(request)
            with self._lock:
                self._busy -= 1

    def _open(
        self, file: Path, settings: Mapping[str, Any], cache: CompiledModels
    ) -> tuple[Any, Mapping[str, str]]:
        """A file's compiled model, from the cache where it is there, and the file's metadata."""
        try:
            path = cache.path(file)
            if (kept := cache.load(path)) is not None:
                try:
                    tensor = openvino.Tensor(np.frombuffer(kept.content, np.uint8), shared_memory=True)
                    compiled = self._core.import_model(tensor, _DEVICE, {**settings, **_hints(kept.metadata)})
                    self._mapped.append(kept.content)
                    return compiled, kept.metadata
                except RuntimeError as error:
                    log.warning("the compiled model %s is refused; compiling it again (%s)", path, error)
            model, metadata = _read(self._core, file)
            compiled = self._core.compile_model(model, _DEVICE, {**settings, **_hints(metadata)})
        except Exception as error:
            raise cannot_load(file, error) from error
        cache.save(path, compiled.export_model().getvalue(), metadata)
        return compiled, metadata


class _Requests:
    """What computes batches of one model; each request computes one at a time.

    Args:
        wide: The model compiled for all threads together: the least time for a batch on its own.
        narrow: Compiled for streams of batches, in which no thread waits for another: the most batches.
        streams: How many.
    """

    def __init__(self, wide: Any, narrow: Any, streams: int) -> None:
        self.wide = wide.create_infer_request()
        self.streams: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self.streams.put(narrow.create_infer_request())


def _precision(metadata: Mapping[str, str]) -> str:
    return metadata.get("precision", "fp32")


def _hints(metadata: Mapping[str, str]) -> dict[str, Any]:
    return _FP32 if _precision(metadata) == "fp32" else {}


def _read(core: Any, file: Path) -> tuple[Any, Mapping[str, str]]:
    model = core.read_model(file)
    metadata = _metadata(model)
    if _precision(metadata) == "int8":
        openvino_graph.rewrite(model)
    return model, metadata


def _profile(core: Any, file: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    """See `Model.profile`."""
    model, metadata = _read(core, file)
    settings = {**settings, **_hints(metadata), "PERF_COUNT": True}
    request = core.compile_model(model, _DEVICE, settings).create_infer_request()

    def run(image: Images) -> list[tuple[str, float]]:
        request.infer([image])
        return [(node.node_name, node.real_time.total_seconds()) for node in request.get_profiling_info()]

    return medians(map(run, single_images()))


def _settings(threads: int, streams: int) -> dict[str, Any]:
    return {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        # Decoders run on the same cores, and other processes of ours: nobody owns one.
        "ENABLE_CPU_PINNING": False,
    }


def _core() -> Any:
    """OpenVINO's entry, on a processor that it can use.

    Raises:
        StartError: It can use none here.
    """
    core = openvino.Core()
    try:
        core.get_property(_DEVICE, "FULL_DEVICE_NAME")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise StartError(
            f"OpenVINO cannot compute on this CPU ({instruction_set()}): {reason}; use --engine onnx"
        ) from error
    return core


def _metadata(model: Any) -> dict[str, str]:
    """The ONNX file's `metadata_props`, as OpenVINO keeps them."""
    found = model.get_rt_info()
    return (
        {key: str(value.value) for key, value in dict(found["framework"]).items()}
        if "framework" in found
        else {}
    )


def _check(compiled: Any, model: Model, path: Path) -> None:
    inputs = {
        node.any_name: (
            "uint8" if node.element_type == openvino.Type.u8 else str(node.element_type),
            [size.get_length() if size.is_static else None for size in list(node.partial_shape)[1:]],
        )
        for node in compiled.inputs
    }
    # An output also keeps the name of the node behind which it was an identity.
    outputs = {
        min(node.names & {"probabilities", "features"}, default=node.any_name): (
            node.partial_shape[-1].get_length() if node.partial_shape[-1].is_static else None
        )
        for node in compiled.outputs
    }
    check_shapes(inputs, outputs, model, path)
