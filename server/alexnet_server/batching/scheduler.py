"""What stands between the service and an engine: places in a bounded queue."""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from alexnet_server.batching.admission import Admission
from alexnet_server.engines import Model
from alexnet_server.errors import Unavailable

T = TypeVar("T")


class Row(NamedTuple):
    """What the engine says of one photo, and what that took."""

    probabilities: NDArray[np.float32]
    """`[classes]`"""
    features: NDArray[np.float32] | None
    """`[4096]`, when asked for."""
    waited_s: float
    """From the image being ready to the engine's start."""
    engine_s: float


@dataclass(slots=True, eq=False)
class Place:
    """A reserved place in the queue, given back when the context ends, however it ends."""

    scheduler: Scheduler
    model: Model
    deadline: float
    arrival: int
    answer: asyncio.Future[Row]
    image: NDArray[np.uint8] | None = field(default=None, init=False)
    """None while the photo is decoded."""
    features: bool = field(default=False, init=False)
    ready_at: float = field(default=0.0, init=False)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *exc: object) -> None:
        self.scheduler.leave(self)

    async def infer(self, image: NDArray[np.uint8], *, features: bool = False) -> Row:
        """Queue the decoded `[256, 256, 3]` image and wait for the engine; once a place.

        Raises:
            Unavailable: Closing, or the engine has gone.
            Internal: The engine failed on this row.
        """
        return await self.scheduler.infer(self, image, features=features)


async def all_of(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Every result, in order; with the first error the others are given up, and it is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


@dataclass(slots=True)
class Hold:
    """Room in the queue for rows that are handed in a part at a time, so that others go between."""

    scheduler: Scheduler
    model: Model
    rows: int
    deadline: float

    async def infer(self, images: NDArray[np.uint8]) -> list[Row]:
        """Hand in ready images `[N, 256, 256, 3]` and wait for all of them; errors as `Place.infer`."""
        with ExitStack() as exits:
            places = [exits.enter_context(self._place()) for _ in images]
            return await all_of(place.infer(image) for place, image in zip(places, images, strict=True))

    def _place(self) -> Place:
        """A place for one of the held rows: it has been admitted already and is not asked again."""
        admission = self.scheduler.admission
        admission.leave(self.model.name, 1)
        self.rows -= 1
        return self.scheduler.reserve(self.model, self.deadline, admitted=True)


class Scheduler(ABC):
    """Puts photos before an engine: the batcher, or the gateway to a server that batches by itself.

    Args:
        models: The engine's.
        admission: The bound, shared by all models.
    """

    def __init__(self, models: Mapping[str, Model], admission: Admission) -> None:
        self.models = models
        self.admission = admission
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the engine has gone for good: the process must end."""
        self.closed = False
        self._arrivals = itertools.count()

    def check(self, model: Model, deadline: float, views: int | None = None) -> None:
        """Raise what `reserve`, or a `hold` of this many views, would, but take no place."""
        if self.closed:
            raise closing()
        self.admission.check(model.name, views or model.views, deadline)

    def reserve(self, model: Model, deadline: float, *, admitted: bool = False) -> Place:
        """Take a place before decoding; `deadline` in `time.monotonic` seconds.

        Args:
            model: What will look at the photo.
            deadline: When its answer is no use any more.
            admitted: There is room, whatever the queue's length: a `Hold` gave up its own for it.

        Raises:
            Overloaded: The queue is full.
            DeadlineExceeded: The queue is longer than the deadline.
            Unavailable: Closing, or the engine has gone.
        """
        if self.closed:
            raise closing()
        self.admission.enter(model.name, model.views, deadline, admitted=admitted)
        answer = asyncio.get_running_loop().create_future()
        return Place(self, model, deadline, next(self._arrivals), answer)

    @contextmanager
    def hold(self, model: Model, rows: int, deadline: float) -> Iterator[Hold]:
        """Take room for many rows of one request at once, one view a row; errors as `reserve`."""
        if self.closed:
            raise closing()
        self.admission.enter(model.name, rows, deadline)
        room = Hold(self, model, rows, deadline)
        try:
            yield room
        finally:
            self.admission.leave(model.name, room.rows)

    @abstractmethod
    async def infer(self, place: Place, image: NDArray[np.uint8], *, features: bool) -> Row:
        """See `Place.infer`."""

    def leave(self, place: Place) -> None:
        """Take a place back."""
        self.admission.leave(place.model.name, place.model.views)

    @abstractmethod
    def problem(self) -> str | None:
        """Why requests should not be sent here now; None when they may be."""

    @abstractmethod
    async def close(self) -> None:
        """Answer what still waits with `Unavailable`, and free the engine."""


def closing() -> Unavailable:
    """What callers get once nothing more is accepted."""
    return Unavailable("The server is shutting down; send the request to another server.", retry_after_s=1.0)
