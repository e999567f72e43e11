"""A batch on the engine's thread: nobody pays for another's row."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import numpy as np

from alexnet_server.batching.scheduler import Place, Row
from alexnet_server.engines import Engine, EngineFailed, Model, Outputs
from alexnet_server.errors import Internal

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Batch:
    """Places whose images are handed to the engine together."""

    model: Model
    places: list[Place]
    alone: bool = True
    """Nothing else is computed, waits or is being decoded."""
    started_at: float = 0.0
    """0 until it runs."""
    ended_at: float = 0.0
    results: list[Outputs | Exception] = field(default_factory=list)

    def run(self, engine: Engine) -> None:
        """Fill `results`; when the batch fails as a whole, its rows are run one by one.

        Raises:
            EngineFailed: The engine cannot run again.
        """
        self.places = [place for place in self.places if not place.answer.done()]  # callers may have left
        self.started_at = time.monotonic()
        if self.places:
            self.results = self._try(engine, self.places)
        self.ended_at = time.monotonic()

    def answer(self) -> None:
        """Give the callers their rows; to be called on the event loop."""
        for place, result in zip(self.places, self.results, strict=True):
            if place.answer.done():
                continue
            if isinstance(result, Exception):
                place.answer.set_exception(Internal())
            else:
                waited_s, engine_s = self.started_at - place.ready_at, self.ended_at - self.started_at
                place.answer.set_result(Row(*result, waited_s, engine_s))

    def _try(self, engine: Engine, places: list[Place]) -> list[Outputs | Exception]:
        try:
            return [*self._infer(engine, places)]
        except EngineFailed:
            raise
        except Exception as error:
            if len(places) == len(self.places):
                log.exception("a batch of %d rows of %s failed", len(places), self.model.name)
            if len(places) == 1:
                return [error]
            return [result for place in places for result in self._try(engine, [place])]

    def _infer(self, engine: Engine, places: list[Place]) -> list[Outputs]:
        features = any(place.features for place in places)
        images = np.stack([place.image for place in places if place.image is not None])
        probabilities, hidden = engine.infer(self.model.name, images, features=features, alone=self.alone)
        if len(probabilities) != len(places) or (features and (hidden is None or len(hidden) != len(places))):
            raise RuntimeError(f"{self.model.name} answered {len(probabilities)} rows to {len(places)}")
        return [
            Outputs(probabilities[i], hidden[i] if hidden is not None and place.features else None)
            for i, place in enumerate(places)
        ]
