"""The service: photos to labels, the same for HTTP and gRPC.

Limits, deadlines, model choice, readiness and metrics live here; `http` and `rpc` only translate.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Literal

from alexnet_server.batching.scheduler import Place, Row, Scheduler, all_of
from alexnet_server.bodies import BodyBudget
from alexnet_server.decoding import Decoders, Photo
from alexnet_server.engines import Model, Outputs
from alexnet_server.errors import (
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    ServingError,
    Unavailable,
    UnknownModel,
)
from alexnet_server.golden import mismatch
from alexnet_server.occlusion import ROWS, Explanation, check_explainable, explain
from alexnet_server.photos import golden_image
from alexnet_server.results import Classification, FeatureVector, Timing, classification, stack
from alexnet_server.settings import Settings
from alexnet_server.telemetry import tracing
from alexnet_server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

Views = Literal["center", "ten", "dense"]

_LOAD_POLL_S = 0.2
_BODIES = 8
"""Full bodies that may be in memory at a time."""


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
        self.bodies = BodyBudget(_BODIES * settings.max_body_bytes)
        """What requests hold in memory, over both protocols."""
        self._settings = settings
        self._scheduler: Scheduler | None = None
        self._decoders = Decoders(
            decode_threads,
            max_bytes=settings.max_photo_bytes,
            max_pixels=settings.max_pixels,
            memory_bytes=settings.decode_memory_bytes,
            stuck_s=settings.request_timeout_s,
        )
        self._golden_problem: str | None = "the golden photo has not been classified yet"
        self._loading = "the model is loading"
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
        scheduler = self._scheduler = await open_scheduler()
        self.models = scheduler.models
        self.metrics.know({name: model.view_mode for name, model in self.models.items()})
        while not scheduler.failed.done():
            self._golden_problem = scheduler.problem()
            if self._golden_problem is None:
                try:
                    self._golden_problem = await self._golden()
                    break
                except ServingError as error:
                    self._golden_problem = f"the golden photo cannot be classified: {error.message}"
                    if not error.retryable:
                        break
            await asyncio.sleep(_LOAD_POLL_S)
        return scheduler.failed

    def tell_loading(self, state: str) -> None:
        """What `problem` says while the model is loading; may be called from any thread."""
        self._loading = state

    def problem(self) -> str | None:
        """Why requests should not be sent here, in words for an operator; None when this server is ready."""
        if self._closed or self._draining:
            return "closing"
        if self._scheduler is None:
            return self._loading
        return self._scheduler.problem() or self._decoders.problem() or self._golden_problem

    @property
    def draining(self) -> bool:
        """True once the server is to stop."""
        return self._draining

    @property
    def full(self) -> bool:
        """True when not one more view may wait."""
        return self._scheduler is not None and self._scheduler.admission.full

    def begin_drain(self) -> None:
        """Stop being ready, but keep serving."""
        self._draining = True

    async def close(self) -> None:
        """Answer what still waits with `Unavailable` and free the engine and the threads."""
        self._closed = True
        if self._scheduler is not None:
            await self._scheduler.close()
        self._decoders.close()

    def _queue_views(self) -> float:
        return float(self._scheduler.admission.waiting_views) if self._scheduler else 0.0

    # -- what `http` and `rpc` call -----------------------------------------------------------------------

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

    def admit(self, model: Model, deadline: float, views: int | None = None) -> None:
        """Refuse, before a photo is read, what would be refused after it; no place is taken yet.

        Args:
            model: From `model()`.
            deadline: From `deadline()`.
            views: That will be held at once, where these are not the model's own.

        Raises:
            Overloaded, DeadlineExceeded, Unavailable: As `classify`.
        """
        self.check_ready()
        self._open_scheduler().check(model, deadline, views)

    def check_ready(self) -> None:
        """Raise Unavailable as long as the models have not proved themselves."""
        if self._golden_problem is not None:
            raise Unavailable("The server is not ready.", retry_after_s=1.0)

    async def classify(
        self,
        photo: Photo,
        model: Model,
        *,
        top_k: int = 5,
        deadline: float | None = None,
    ) -> Classification:
        """The `top_k` likeliest labels of a photo.

        Args:
            photo: An encoded photo or a ready image.
            model: From `model()`.
            top_k: 1 to the number of classes.
            deadline: From `deadline()`; the server's own limit when None.

        Raises:
            ServingError: Any of the table's, as their names say.
        """
        self.check_ready()
        _check_top_k(top_k, model)
        row, timing = await self._row(photo, model, deadline or self.deadline(), features=False)
        return classification(model, row, timing, top_k)

    async def classify_batch(
        self,
        photos: Sequence[Photo | ServingError],
        model: Model,
        *,
        top_k: int = 5,
        deadline: float | None = None,
    ) -> list[Classification | ServingError]:
        """Several photos, in order: each its labels or its own error; none fails its neighbours.

        An error among `photos` (a part that was too large) stands for itself in the answer.

        Raises:
            ServingError: What is wrong with all of them, such as `top_k`.
        """
        self.check_ready()
        _check_top_k(top_k, model)
        until = deadline or self.deadline()

        async def one(photo: Photo | ServingError) -> Classification | ServingError:
            if isinstance(photo, ServingError):
                return photo
            try:
                row, timing = await self._row(photo, model, until, features=False)
                return classification(model, row, timing, top_k)
            except ServingError as error:
                return error

        return await asyncio.gather(*(one(photo) for photo in photos))

    async def features(self, photo: Photo, model: Model, *, deadline: float | None = None) -> FeatureVector:
        """The last hidden layer's answer to a photo; arguments and errors as `classify`."""
        self.check_ready()
        row, timing = await self._row(photo, model, deadline or self.deadline(), features=True)
        if row.features is None:
            raise Internal()
        return FeatureVector(model.name, model.version, row.features, timing)

    async def explain(
        self, photo: Photo, model: Model, *, index: int | None = None, deadline: float | None = None
    ) -> Explanation:
        """Which parts of a photo made a label: 82 rows, of which one batch at a time is handed in.

        Args:
            photo: An encoded photo or a ready image.
            model: From `model()`, not of ten views.
            index: The label's, the likeliest one by default.
            deadline: As for `classify`.

        Raises:
            InvalidRequest: The model looks at ten crops, or has no such label.
            ServingError: As `classify`.
        """
        self.check_ready()
        check_explainable(model, index)
        until = deadline or self.deadline()
        try:
            with self._open_scheduler().hold(model, ROWS, until) as room:
                async with asyncio.timeout(until - time.monotonic()):
                    return await explain((await self._decoders.decode(photo)).image, room, index)
        except TimeoutError:
            raise _timed_out() from None

    async def infer(
        self,
        photos: Sequence[Photo],
        model: Model,
        *,
        features: bool = False,
        deadline: float | None = None,
    ) -> Outputs:
        """Several photos or ready images, all or nothing, as the Open Inference Protocol asks.

        Args:
            photos: 1 to the model's `max_batch_size`.
            model: From `model()`.
            features: Whether `features` is wanted.
            deadline: From `deadline()`.

        Returns:
            `probabilities` `[N, classes]` and `features` `[N, 4096]` or None.

        Raises:
            InvalidRequest: There are none or too many, or an image has another shape or dtype.
            ServingError: As `classify`; the rows that are left are given up with the first that fails.
        """
        rows = await self._rows(photos, model, deadline, features=features)
        return stack(rows, features=features)

    # -- inside ------------------------------------------------------------------------------------------

    async def _golden(self) -> str | None:
        """What is wrong with the models' answers to the golden photo; None when nothing is."""
        image = await asyncio.to_thread(golden_image)
        for model in self.models.values():
            row, _ = await self._row(image, model, self.deadline(), features=True)
            if (problem := mismatch(model, row)) is not None:
                return problem
        return None

    async def _rows(
        self, photos: Sequence[Photo], model: Model, deadline: float | None, *, features: bool
    ) -> list[Row]:
        if not 1 <= len(photos) <= model.max_batch_size:
            raise InvalidRequest(
                f"{model.name} takes 1 to {model.max_batch_size} rows per request, got {len(photos)}"
            )
        self.check_ready()
        until = deadline or self.deadline()
        scheduler = self._open_scheduler()
        if len(photos) == 1:  # the usual request; what follows would take a task more
            row, _ = await self._row(photos[0], model, until, features=features)
            return [row]
        with ExitStack() as exits:
            # No await between them: either all find room, or none keeps any.
            places = [exits.enter_context(scheduler.reserve(model, until)) for _ in photos]
            admitted_at = time.monotonic()
            try:
                async with asyncio.timeout(until - admitted_at):
                    passed = await all_of(
                        self._pass(photo, place, model, admitted_at, features=features)
                        for place, photo in zip(places, photos, strict=True)
                    )
            except TimeoutError:
                raise _timed_out() from None
            return [row for row, _ in passed]

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
        image, decode_start, decode_end = await self._decoders.decode(photo)
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

    def _open_scheduler(self) -> Scheduler:
        if self._closed or self._scheduler is None:
            raise Unavailable("The server is shutting down.", retry_after_s=1.0)
        return self._scheduler


def _timed_out() -> DeadlineExceeded:
    return DeadlineExceeded("The request's time ran out before its answer was ready.")


def _check_top_k(top_k: int, model: Model) -> None:
    if not 1 <= top_k <= len(model.labels):
        raise InvalidRequest(f"`top_k` must be from 1 to {len(model.labels)}, got {top_k}.")
