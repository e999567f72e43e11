"""From settings to a scheduler with an engine behind it."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from alexnet_server.batching.admission import Admission
from alexnet_server.batching.batcher import Batcher
from alexnet_server.batching.gateway import Gateway
from alexnet_server.batching.scheduler import Scheduler
from alexnet_server.engines import Engine, Model, RemoteEngine
from alexnet_server.engines.labels import Label
from alexnet_server.errors import StartError
from alexnet_server.machine import has_card, usable_cores
from alexnet_server.models.repository import ModelEntry, Repository, RepositoryError, read_repository
from alexnet_server.photos import PHOTO as GOLDEN_PHOTO
from alexnet_server.settings import Settings
from alexnet_server.telemetry.metrics import Metrics
from alexnet_server.threads import DaemonThreads

log = logging.getLogger(__name__)

OpenScheduler = Callable[[Settings, Metrics], Awaitable[Scheduler]]

VERSION = "1"
"""The version folder that is served."""
_VIEWS = {"center": 1, "ten": 10, "dense": 10}


async def open_scheduler(settings: Settings, metrics: Metrics) -> Scheduler:
    """Load the models that `settings` name.

    Raises:
        StartError: One cannot be loaded.
    """
    if settings.engine == "triton":
        return Gateway(open_triton(settings), Admission(settings.queue_size))
    engine = await asyncio.to_thread(open_engine, settings)
    if settings.device == "auto" and engine.device == "cpu" and has_card():
        log.warning(
            "there is a GPU, but the models run on the CPU: pip install '.[gpu]' installs what it needs; "
            "--device cuda says what is missing, --device cpu silences this line"
        )
    return await batch(engine, settings, metrics)


async def fetched(settings: Settings, told: Callable[[str], None]) -> Settings:
    """The settings, with the repository of `--weights` where that is given; it is written first if need be.

    Args:
        settings: What to serve.
        told: Gets the progress, from another thread.

    Raises:
        StartError: The weights cannot be had, converted or kept.
    """
    if settings.weights is None:
        return settings
    from alexnet_server.models.export.graph import VIEWS, View
    from alexnet_server.models.export.run import NoEngine
    from alexnet_server.models.export.write import ExportError
    from alexnet_server.models.public.cache import Wanted, ensure
    from alexnet_server.models.public.errors import WeightsError

    views: tuple[View, ...] = VIEWS if settings.weights_views == "all" else ("center",)
    wanted = Wanted(settings.weights, settings.calibrate, views, settings.weights_cache)
    # A daemon: a server that does not answer cannot delay the exit.
    threads, stop = DaemonThreads(1, "weights"), threading.Event()
    fetch = partial(ensure, wanted, say=log.info, told=told, stop=stop)
    try:
        repository = await asyncio.get_running_loop().run_in_executor(threads, fetch)
    except (WeightsError, ExportError, RepositoryError, NoEngine) as error:
        raise StartError(f"--weights {settings.weights}: {error}") from error
    finally:
        stop.set()
        threads.shutdown()
    return settings.model_copy(update={"model_repository": repository})


async def batch(engine: Engine, settings: Settings, metrics: Metrics) -> Batcher:
    """A batcher before an engine of this process, which is warmed up first."""
    admission = Admission(settings.queue_size)
    for name, (rows, seconds) in (await asyncio.to_thread(engine.warm_up)).items():
        admission.finish(name, rows * engine.models[name].views, seconds, idle=True)
    return Batcher(engine, admission, engine_timeout_s=settings.engine_timeout_s, on_batch=metrics.batch)


def open_engine(settings: Settings) -> Engine:
    """The repository's models in an engine of this process, unpacked first where they are not.

    Raises:
        StartError: The repository is wrong, a model cannot be loaded, or the engine or device is not there.
    """
    if settings.engine == "openvino":
        return open_openvino(settings)
    cuda = settings.device != "cpu" and _cuda_offered()
    if settings.engine == "onnx" or settings.device.startswith("cuda") or not _installed("openvino"):
        return open_onnx(settings, cuda=cuda)
    if cuda:
        engine = open_onnx(settings, cuda=True)
        if engine.device == "cuda":
            return engine
        engine.close()  # built for CUDA, on a machine without it
    return open_openvino(settings)


def open_onnx(settings: Settings, *, cuda: bool = False) -> Engine:
    """As `open_engine`, in ONNX Runtime; `cuda` where it offers to compute on a GPU."""
    if not _installed("onnxruntime"):
        raise StartError("--engine onnx needs ONNX Runtime: pip install '.[cpu]', or '.[gpu]'")
    from alexnet_server.engines.onnx import OnnxEngine  # slow to import, and not needed by every engine

    models, files = _unpacked(settings, cuda=cuda)
    threads = settings.engine_threads or usable_cores()
    return OnnxEngine(models, files, device=settings.device, threads=threads)


def open_openvino(settings: Settings) -> Engine:
    """As `open_engine`, in OpenVINO on the CPU."""
    if not _installed("openvino"):
        raise StartError("--engine openvino needs OpenVINO: pip install '.[cpu]'")
    from alexnet_server.engines.openvino import OpenvinoEngine  # slow to import

    models, files = _unpacked(settings, cuda=False)
    return OpenvinoEngine(models, files, threads=settings.engine_threads or usable_cores())


def _unpacked(settings: Settings, *, cuda: bool) -> tuple[list[Model], dict[str, Path]]:
    from alexnet_server.models.unpack import default_repository, ensure_unpacked, precision_of

    try:
        repository = read_repository(settings.model_repository or default_repository())
        files = ensure_unpacked(repository, _precisions(settings.precision, cuda=cuda))
    except RepositoryError as error:
        raise StartError(str(error)) from error
    models = []
    for name, entry in repository.models.items():
        model = describe(repository, entry, files[name])
        models.append(replace(model, about={**model.about, "precision": precision_of(files[name])}))
    return models, files


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _cuda_offered() -> bool:
    """True when the installed ONNX Runtime is built for CUDA, told without importing it."""
    spec = importlib.util.find_spec("onnxruntime")
    places = spec.submodule_search_locations if spec else None
    return any(list(Path(place, "capi").glob("*onnxruntime_providers_cuda*")) for place in places or ())


def open_triton(settings: Settings) -> RemoteEngine:
    """The repository's models in a Triton server, which need not be there yet; nothing is unpacked here.

    To be called on the event loop that will ask it.

    Raises:
        StartError: The repository is wrong.
    """
    # Brings protobuf classes that other engines do without.
    from alexnet_server.engines.triton import TritonEngine
    from alexnet_server.models.unpack import default_repository

    try:
        repository = read_repository(settings.model_repository or default_repository())
    except RepositoryError as error:
        raise StartError(str(error)) from error
    return TritonEngine(
        settings.triton_url,
        [describe(repository, entry, entry.onnx) for entry in repository.models.values()],
        {name: entry.labels_sha256 for name, entry in repository.models.items()},
        probe_timeout_s=settings.engine_timeout_s,
    )


def _precisions(chosen: str, *, cuda: bool) -> tuple[str, ...]:
    """Precisions that will do, best first: int8 is for CPUs, CUDA has no int8 convolution."""
    if chosen != "auto":
        return (chosen,)
    return ("fp16", "fp32") if cuda else ("int8", "fp32")


def describe(repository: Repository, entry: ModelEntry, file: Path) -> Model:
    """An entry of the repository as `http`, `rpc` and engines see it."""
    golden = entry.golden
    if golden and golden[0] != GOLDEN_PHOTO.name:
        log.warning("%s: its golden photo %s is not this server's and is not compared", entry.name, golden[0])
        golden = None
    about: dict[str, Any] = {
        "file": str(file.relative_to(repository.path)) if file.is_relative_to(repository.path) else file.name,
        "weights": entry.weights,
        "preprocess_version": entry.preprocess_version,
        "sha256": {"weights": entry.weights_sha256, "labels": entry.labels_sha256},
        **{key: repository.card[key] for key in ("licence",) if key in repository.card},
        **{key: entry.card[key] for key in ("accuracy", "temperature") if key in entry.card},
    }
    return Model(
        name=entry.name,
        version=VERSION,
        labels=tuple(Label(index, wnid, words) for index, (wnid, words) in enumerate(entry.labels)),
        views=_VIEWS[entry.view],
        view_mode=entry.view,
        max_batch_size=entry.max_batch_size,
        features=entry.features,
        platform="onnxruntime_onnx",
        device="",
        golden=(golden[1], golden[2]) if golden else None,
        folder=entry.folder,
        about=about,
    )
