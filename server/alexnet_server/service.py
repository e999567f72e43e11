"""The service: photos to labels, the same for every door.

Limits, deadlines, model choice, readiness and metrics live here; doors only translate.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alexnet_server import preprocess, tracing
from alexnet_server.engines import Images, Model, Outputs
from alexnet_server.errors import (
    PHOTO_ERRORS,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    ServingError,
    Unavailable,
    UnknownModel,
)
from alexnet_server.metrics import Metrics
from alexnet_server.scheduling import Place, Row, Scheduler
from alexnet_server.settings import Settings

log = logging.getLogger(__name__)

Photo = bytes | NDArray[np.uint8]
"""An encoded photo, or a ready `[256, 256, 3]` RGB image as `preprocess.prepare` makes it."""
Views = Literal["center", "ten", "dense"]

IMAGE_SHAPE = (256, 256, 3)
GOLDEN_PHOTO = Path(__file__).parent / "page" / "cat.jpg"
GOLDEN_TOLERANCE = 0.05
_LOAD_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Prediction:
    """One of the labels of a photo."""

    rank: int
    """From 1."""
    index: int
    """In the model's output."""
    wnid: str
    label: str
    score: float
    """Probability."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a photo's time went, in seconds."""

    decode_s: float
    queue_s: float
    """Waiting for a decoder and for the engine."""
    engine_s: float


@dataclass(frozen=True, slots=True)
class Classification:
    """A photo's labels, best first."""

    model: str
    version: str
    predictions: tuple[Prediction, ...]
    timing: Timing


@dataclass(frozen=True, slots=True)
class FeatureVector:
    """A photo's features."""

    model: str
    version: str
    values: NDArray[np.float32]
    """`[4096]`, fc7 after ReLU of the centre view."""
    timing: Timing


class Classifier:
    """Photos to labels.

    Made at once and without a model; `attach` gives it one. Its methods may be called at any time from the
    event loop it was made on.

    Args:
        settings: Limits and timeouts.
        metrics: Where stages and batches are counted.
        decode_threads: Photos decoded at a time.
    """

    def __init__(self, settings: Settings, metrics: Metrics, *, decode_threads: int) -> None:
        self.metrics = metrics
        self.models: Mapping[str, Model] = {}
        self._settings = settings
        self._scheduler: Scheduler | None = None
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="alexnet-decode")
        self._golden_problem: str | None = "the golden photo has not been classified yet"
        self._draining = False
        self._closed = False
        metrics.watch(
            self._queue_views,
            lambda: float(self.problem() is None),
            queue_limit_views=settings.queue_size,
        )

    # -- state -------------------------------------------------------------------------------------------

    async def load(self, open_scheduler: Callable[[], Awaitable[Scheduler]]) -> asyncio.Future[None]:
        """Take an engine and its models, and try them on the golden photo.

        A golden photo that is not recognised leaves the server up and not ready; `problem` says why.

        Args:
            open_scheduler: Loads the models.

        Returns:
            Done once the engine has gone for good.

        Raises:
            StartError: The models cannot be loaded.
        """
        self._scheduler = await open_scheduler()
        self.models = self._scheduler.models
        while (problem := self._scheduler.problem()) is not None and not self._scheduler.failed.done():
            self._golden_problem = problem
            await asyncio.sleep(_LOAD_POLL_S)
        self._golden_problem = await self._golden()
        return self._scheduler.failed

    def problem(self) -> str | None:
        """Why requests should not be sent here, in words for an operator; None when this server is ready."""
        if self._closed or self._draining:
            return "closing"
        if self._scheduler is None:
            return "the model is loading"
        return self._scheduler.problem() or self._golden_problem

    @property
    def draining(self) -> bool:
        """True once the server has been told to stop."""
        return self._draining

    def begin_drain(self) -> None:
        """Stop being ready, and serve on."""
        self._draining = True

    async def close(self) -> None:
        """Answer what still waits with `Unavailable` and free the engine and the threads."""
        self._closed = True
        if self._scheduler is not None:
            await self._scheduler.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _queue_views(self) -> float:
        return float(self._scheduler.admission.waiting_views) if self._scheduler else 0.0

    # -- what doors call ---------------------------------------------------------------------------------

    def deadline(self, timeout_s: float | None = None) -> float:
        """`time.monotonic` seconds when a request that came now must be answered.

        Args:
            timeout_s: What the caller allows; the server's own limit when None or longer.
        """
        limit_s = self._settings.request_timeout_s
        return time.monotonic() + (limit_s if timeout_s is None else min(limit_s, timeout_s))

    def model(self, name: str | None = None, views: str | None = None) -> Model:
        """The model of this name, or that looks at a photo through these views; the centre one by default.

        Raises:
            InvalidRequest: Both are given.
            UnknownModel: There is none.
            Unavailable: None is loaded yet.
        """
        if name is not None and views is not None:
            raise InvalidRequest("Give either `model` or `views`, not both: each view mode is a model.")
        if not self.models:
            raise Unavailable("The model is still loading.", retry_after_s=1.0)
        if name is not None:
            if name in self.models:
                return self.models[name]
            raise UnknownModel(
                f"There is no model {name[:100]!r}; there are: {', '.join(sorted(self.models))}."
            )
        for model in self.models.values():
            if model.view_mode == (views or "center"):
                return model
        modes = ", ".join(sorted({model.view_mode for model in self.models.values()}))
        raise UnknownModel(f"No loaded model has {views or 'center'!r} views; there are: {modes}.")

    def check(self, name: str | None, views: str | None, deadline: float | None = None) -> Model:
        """Refuse at once, before its photo has arrived, a request that would be refused afterwards.

        Args:
            name: As for `model`.
            views: As for `model`.
            deadline: Whether the queue has room, and ends before this, is asked too when it is given.

        Returns:
            The model it asks for; errors as `model` and `Scheduler.reserve`.
        """
        model = self.model(name, views)
        scheduler = self._ready_scheduler()
        if deadline is not None:
            scheduler.admission.check(model.name, model.views, deadline)
        return model

    async def classify(
        self,
        photo: Photo,
        *,
        top_k: int = 5,
        model: str | None = None,
        views: str | None = None,
        deadline: float | None = None,
    ) -> Classification:
        """The `top_k` likeliest labels of a photo.

        Args:
            photo: An encoded photo or a ready image.
            top_k: 1 to the number of classes.
            model: A model's name; or
            views: `center`, `ten` or `dense`.
            deadline: From `deadline()`; the server's own limit when None.

        Raises:
            ServingError: Any of the table's, as their names say.
        """
        chosen = self.check(model, views)
        _check_top_k(top_k, chosen)
        row, timing = await self._row(photo, chosen, deadline or self.deadline(), features=False)
        return _classification(chosen, row, timing, top_k)

    async def classify_batch(
        self,
        photos: Sequence[Photo | ServingError],
        *,
        top_k: int = 5,
        model: str | None = None,
        views: str | None = None,
        deadline: float | None = None,
    ) -> list[Classification | ServingError]:
        """Several photos, in order: each its labels or its own error; none fails its neighbours.

        An error among `photos` (a part that was too large) stands for itself in the answer.

        Raises:
            ServingError: What is wrong with all of them, such as `top_k` or the model's name.
        """
        chosen = self.check(model, views)
        _check_top_k(top_k, chosen)
        until = deadline or self.deadline()

        async def one(photo: Photo | ServingError) -> Classification | ServingError:
            if isinstance(photo, ServingError):
                return photo
            try:
                row, timing = await self._row(photo, chosen, until, features=False)
                return _classification(chosen, row, timing, top_k)
            except ServingError as error:
                return error

        return await asyncio.gather(*(one(photo) for photo in photos))

    async def features(
        self,
        photo: Photo,
        *,
        model: str | None = None,
        views: str | None = None,
        deadline: float | None = None,
    ) -> FeatureVector:
        """The last hidden layer's answer to a photo; arguments and errors as `classify`."""
        chosen = self.check(model, views)
        row, timing = await self._row(photo, chosen, deadline or self.deadline(), features=True)
        if row.features is None:
            raise Internal()
        return FeatureVector(chosen.name, chosen.version, row.features, timing)

    async def infer_rows(
        self, model: str, images: Images, *, features: bool = True, deadline: float | None = None
    ) -> Outputs:
        """Ready images, all or nothing, as the Open Inference Protocol asks.

        Args:
            model: A model's name.
            images: `[N, 256, 256, 3]` uint8, N from 1 to the model's `max_batch_size`.
            features: Whether `features` is wanted.
            deadline: From `deadline()`.

        Returns:
            `probabilities` `[N, classes]` and `features` `[N, 4096]` or None.

        Raises:
            InvalidRequest: Shape, dtype or batch size is wrong.
            ServingError: As `classify`; the rows that are left are given up with the first that fails.
        """
        chosen = self.model(model)
        if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE:
            raise InvalidRequest(
                f"images must be uint8 [N,256,256,3], got {images.dtype} {list(images.shape)}"
            )
        rows = await self._rows(list(images), chosen, deadline, features=features)
        return _stack(rows, features=features)

    async def infer_photos(
        self, model: str, photos: Sequence[bytes], *, features: bool = False, deadline: float | None = None
    ) -> Outputs:
        """Encoded photos, all or nothing: `infer_rows` with decoding before it, and the photo's errors."""
        rows = await self._rows(list(photos), self.model(model), deadline, features=features)
        return _stack(rows, features=features)

    # -- inside ------------------------------------------------------------------------------------------

    async def _golden(self) -> str | None:
        """What is wrong with the answers to the golden photo; None when they are as the model card says."""
        # Without this server's own limits: an operator may set them lower than this photo is.
        photo = await asyncio.to_thread(lambda: preprocess.prepare(GOLDEN_PHOTO.read_bytes()))
        for model in self.models.values():
            try:
                row, _ = await self._row(photo, model, self.deadline(), features=True)
            except ServingError as error:
                return f"{model.name} cannot classify the golden photo: {error.message}"
            if model.golden is None:
                continue
            index, score = model.golden
            best = int(np.argmax(row.probabilities))
            found = float(row.probabilities[best])
            if best != index or abs(found - score) > GOLDEN_TOLERANCE:
                return (
                    f"{model.name} calls the golden photo {model.labels[best].words!r} ({found:.3f}), "
                    f"its card {model.labels[index].words!r} ({score:.3f}): the model file, its labels or "
                    "this machine's arithmetic are wrong"
                )
        return None

    async def _rows(
        self, photos: Sequence[Photo], model: Model, deadline: float | None, *, features: bool
    ) -> list[Row]:
        if not 1 <= len(photos) <= model.max_batch_size:
            raise InvalidRequest(
                f"{model.name} takes 1 to {model.max_batch_size} rows a request, got {len(photos)}"
            )
        until = deadline or self.deadline()
        scheduler = self._ready_scheduler()
        with ExitStack() as stack:
            # No await between them: either all find room, or none keeps any.
            places = [stack.enter_context(scheduler.reserve(model, until)) for _ in photos]
            admitted_at = time.monotonic()

            try:
                async with asyncio.timeout(until - time.monotonic()), asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._pass(photo, place, model, admitted_at, features=features))
                        for place, photo in zip(places, photos, strict=True)
                    ]
            except TimeoutError:
                raise _timed_out() from None
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            return [task.result()[0] for task in tasks]

    async def _row(
        self, photo: Photo, model: Model, deadline: float, *, features: bool
    ) -> tuple[Row, Timing]:
        """One photo through decoder and engine, given up at the deadline or when the caller is cancelled."""
        scheduler = self._open_scheduler()
        try:
            with scheduler.reserve(model, deadline) as place:
                admitted_at = time.monotonic()
                async with asyncio.timeout(deadline - admitted_at):
                    return await self._pass(photo, place, model, admitted_at, features=features)
        except TimeoutError:
            raise _timed_out() from None

    async def _pass(
        self, photo: Photo, place: Place, model: Model, admitted_at: float, *, features: bool
    ) -> tuple[Row, Timing]:
        """A photo that has its place, through decoder and engine; its times are counted and traced."""
        image, decode_start, decode_end = await self._image(photo)
        row = await place.infer(image, features=features)
        timing = Timing(decode_end - decode_start, decode_start - admitted_at + row.waited_s, row.engine_s)
        self.metrics.stage(model.name, "decode", timing.decode_s)
        self.metrics.stage(model.name, "queue", timing.queue_s)
        self.metrics.stage(model.name, "engine", timing.engine_s)
        engine_start = decode_end + row.waited_s
        tracing.stages(
            model.name,
            (
                ("queue", admitted_at, decode_start),
                ("decode", decode_start, decode_end),
                ("queue", decode_end, engine_start),
                ("engine", engine_start, engine_start + row.engine_s),
            ),
        )
        return row, timing

    async def _image(self, photo: Photo) -> tuple[NDArray[np.uint8], float, float]:
        """Decoded image, and when decoding began and ended."""
        if not isinstance(photo, bytes):
            now = time.monotonic()
            return _check_image(photo), now, now
        loop = asyncio.get_running_loop()
        try:
            # A cancelled caller's photo is dropped by the executor if its decoding has not begun.
            return await loop.run_in_executor(self._decoders, self._prepare, photo)
        except preprocess.PhotoError as error:
            raise PHOTO_ERRORS[error.code](str(error)) from None
        except (RuntimeError, MemoryError) as error:
            if self._closed:
                raise Unavailable("The server is closing.", retry_after_s=1.0) from None
            log.exception("decoding failed")
            raise Internal() from error

    def _prepare(self, photo: bytes) -> tuple[NDArray[np.uint8], float, float]:
        start = time.monotonic()
        image = preprocess.prepare(
            photo, max_bytes=self._settings.max_photo_bytes, max_pixels=self._settings.max_pixels
        )
        return image, start, time.monotonic()

    def _ready_scheduler(self) -> Scheduler:
        if self._golden_problem is not None:
            raise Unavailable("The server is not ready.", retry_after_s=1.0)
        return self._open_scheduler()

    def _open_scheduler(self) -> Scheduler:
        if self._closed or self._scheduler is None:
            raise Unavailable("The server is closing.", retry_after_s=1.0)
        return self._scheduler


def _timed_out() -> DeadlineExceeded:
    return DeadlineExceeded("The request's time ran out before its answer was ready.")


def _check_top_k(top_k: int, model: Model) -> None:
    if not 1 <= top_k <= len(model.labels):
        raise InvalidRequest(f"`top_k` must be from 1 to {len(model.labels)}, got {top_k}.")


def _check_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.shape != IMAGE_SHAPE:
        raise InvalidRequest(
            f"a ready image must be uint8 [256,256,3], got {image.dtype} {list(image.shape)}"
        )
    return image


def _stack(rows: Sequence[Row], *, features: bool) -> Outputs:
    hidden = [row.features for row in rows if row.features is not None]
    return Outputs(np.stack([row.probabilities for row in rows]), np.stack(hidden) if features else None)


def _classification(model: Model, row: Row, timing: Timing, top_k: int) -> Classification:
    order = np.argsort(-row.probabilities, kind="stable")[:top_k]
    predictions = tuple(
        Prediction(rank, label.index, label.wnid, label.words, float(row.probabilities[label.index]))
        for rank, label in enumerate((model.labels[i] for i in order), 1)
    )
    return Classification(model.name, model.version, predictions, timing)
