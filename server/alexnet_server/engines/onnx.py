"""ONNX Runtime in this process, on the CPU or through CUDA."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from alexnet_server.engines import (
    EngineFailed,
    Images,
    Model,
    Outputs,
    cuda,
    enough_views,
    few_rows,
    timed_batches,
)
from alexnet_server.engines.checks import cannot_load, check_metadata, check_shapes
from alexnet_server.engines.instruction_set import instruction_set
from alexnet_server.engines.operators import medians, single_images
from alexnet_server.errors import StartError

log = logging.getLogger(__name__)

_LOST_DEVICE = ("CUDA failure", "CUDNN failure", "cudaError", "CUBLAS failure", "device-side assert")


class OnnxEngine:
    """Models as ONNX Runtime sessions on one device.

    Args:
        models: What to load; `device` is filled in here.
        files: The ONNX file of each model's name.
        device: `auto` takes CUDA where it loads; `cpu`, `cuda`, or `cuda:N` for card N.
        threads: Intra-operator threads on the CPU.

    Raises:
        StartError: A file cannot be loaded or is not the model it says, or CUDA is asked for and missing.
    """

    def __init__(
        self, models: Iterable[Model], files: Mapping[str, Path], *, device: str = "auto", threads: int
    ) -> None:
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        loaded: dict[str, Model] = {}
        for model in models:
            session = _open(files[model.name], device, threads, precision=model.about.get("precision", ""))
            used = "cuda" if session.get_providers()[0] == cuda.PROVIDER else "cpu"
            if device.startswith("cuda") and used != "cuda":
                raise StartError(
                    f"--device {device}: ONNX Runtime could not load CUDA "
                    f"(it offers {', '.join(onnxruntime.get_available_providers())}); "
                    "install onnxruntime-gpu with its CUDA libraries, or use --device cpu"
                )
            _check(session, model, files[model.name])
            self._sessions[model.name] = session
            metadata = session.get_modelmeta().custom_metadata_map
            check_metadata(metadata, model, files[model.name])
            about = {
                **model.about,
                "precision": metadata.get("precision", "fp32"),
                "engine": "onnxruntime",
                "engine_version": onnxruntime.__version__,
                **({"instruction_set": instruction_set()} if used == "cpu" else {}),
            }
            # On a device it would be the time of asking, not of computing.
            profile = partial(_profile, files[model.name], threads) if used == "cpu" else None
            loaded[model.name] = replace(model, device=used, about=about, profile=profile)
        self.models: Mapping[str, Model] = loaded
        self.device = next((model.device for model in self.models.values()), "cpu")
        self.concurrency = 1
        self.shares_cores = self.device == "cpu"
        self.enough_views = enough_views(threads) if self.shares_cores else None

    def infer(
        self,
        model: str,
        images: Images,
        *,
        features: bool,
        alone: bool = True,  # noqa: ARG002
    ) -> Outputs:
        """See `Engine.infer`."""
        rows = len(images)
        if not self.shares_cores:
            images = _padded(images, self.models[model].max_batch_size)
        names = ["probabilities", "features"] if features else ["probabilities"]
        try:
            outputs = self._sessions[model].run(names, {"images": images})
        except Exception as error:
            if any(sign in str(error) for sign in _LOST_DEVICE):
                raise EngineFailed(f"the device is lost: {error}") from error
            raise
        arrays: list[NDArray[np.float32]] = [np.asarray(output)[:rows] for output in outputs]
        return Outputs(arrays[0], arrays[1] if features else None)

    def warm_up(self) -> dict[str, tuple[int, float]]:
        """See `Engine.warm_up`: every batch size that CUDA will see, or one and a few on a CPU."""
        if self.shares_cores:
            return timed_batches(self, lambda model: sorted({1, few_rows(model)}))
        return timed_batches(self, lambda model: [*_buckets(model.max_batch_size), few_rows(model)])

    def close(self) -> None:
        """See `Engine.close`."""
        self._sessions.clear()


def _profile(path: Path, threads: int) -> dict[str, float]:
    """See `Model.profile`."""
    with tempfile.TemporaryDirectory() as folder:
        session = _open(path, "cpu", threads, profile=Path(folder) / "profile")
        for image in single_images():
            session.run(["probabilities"], {"images": image})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs: list[list[tuple[str, float]]] = [[]]
    for event in events:
        if event["cat"] == "Node":
            runs[-1].append((event["name"].removesuffix("_kernel_time"), event["dur"] / 1e6))
        elif event["name"] == "model_run":  # ends one
            runs.append([])
    return medians(runs)


def _open(
    path: Path, device: str, threads: int, *, precision: str = "", profile: Path | None = None
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin between operators would take the cores from the decoders.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu" and cuda.offered():
        providers.insert(0, cuda.provider(device, precision))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise cannot_load(path, error) from error


def _check(session: onnxruntime.InferenceSession, model: Model, path: Path) -> None:
    types = {"tensor(uint8)": "uint8"}
    inputs = {
        node.name: (types.get(node.type, node.type), list(node.shape[1:])) for node in session.get_inputs()
    }
    check_shapes(inputs, {node.name: node.shape[-1] for node in session.get_outputs()}, model, path)


def _buckets(largest: int) -> list[int]:
    """Batch sizes that CUDA sees: 1, 2, 4, ... and the largest, so that no shape is new in traffic."""
    sizes = [1]
    while sizes[-1] < largest:
        sizes.append(min(2 * sizes[-1], largest))
    return sizes


def _padded(images: Images, largest: int) -> Images:
    size = next(size for size in _buckets(largest) if size >= len(images))
    if size == len(images):
        return images
    return np.concatenate([images, np.zeros((size - len(images), *images.shape[1:]), np.uint8)])
