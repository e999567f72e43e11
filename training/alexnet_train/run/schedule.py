"""Learning rates: the stages of 2012 (by epoch or on a plateau), warm-up with linear or cosine decay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from alexnet_train.config import Config


@dataclass(frozen=True)
class Rates:
    """The learning rates of one update, by parameter group, and whether colour noise is on."""

    weights: float
    biases: float
    conv1_weights: float
    conv1_biases: float
    colour: bool = True

    def of(self, name: str) -> float:
        """The rate of the parameter ``name``; batch norm's gains and shifts go with the biases."""
        is_weight = name.endswith("weight") and not name.startswith("norm")
        if name.split(".")[0] in ("conv1", "norm_conv1"):
            return self.conv1_weights if is_weight else self.conv1_biases
        return self.weights if is_weight else self.biases


class Schedule:
    """What the rates are at an update of a run of ``steps`` updates, ``per_epoch`` of them an epoch.

    Args:
        config: the recipe; ``stages`` or the continuous schedule.
        steps: length of the run in updates.
        per_epoch: updates an epoch, not rounded.
        state: what ``state()`` gave when the run was saved.
    """

    def __init__(
        self, config: Config, steps: int, per_epoch: float, state: dict[str, Any] | None = None
    ) -> None:
        self.config, self.steps, self.per_epoch = config, steps, per_epoch
        self.index, self.best, self.best_epoch = 0, math.inf, 0.0
        if state and config.plateau_epochs:
            self.index, self.best, self.best_epoch = state["index"], state["best"], state["best_epoch"]

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"index": self.index, "best": self.best, "best_epoch": self.best_epoch}

    def rates(self, step: int) -> Rates:
        """The rates of update ``step`` (from 0)."""
        if not self.config.stages:
            rate = self._continuous(step)
            return Rates(rate, rate * self.config.bias_factor, rate, rate * self.config.bias_factor)
        if not self.config.plateau_epochs:
            while self.index + 1 < len(self.config.stages) and step >= self._end(self.index):
                self.index += 1
        stage = self.config.stages[self.index]
        conv1 = stage.weights if stage.conv1 is None else stage.conv1
        return Rates(stage.weights, stage.biases, conv1, stage.biases if conv1 else 0.0, stage.colour)

    def observe(self, step: int, error: float) -> bool:
        """Tell a plateau schedule the held-out error after ``step`` updates.

        Returns:
            True when the run is over: the last stage, too, has stopped improving.
        """
        epoch = step / self.per_epoch
        if error < self.best:
            self.best, self.best_epoch = error, epoch
        if not self.config.plateau_epochs or epoch - self.best_epoch < self.config.plateau_epochs - 1e-9:
            return False
        if self.index + 1 == len(self.config.stages):
            return True
        self.index, self.best, self.best_epoch = self.index + 1, math.inf, epoch
        return False

    def _end(self, index: int) -> int:
        """The first update after stage ``index``; the last stage ends with the run."""
        stages = self.config.stages
        return math.ceil(stages[index].until_epoch / stages[-1].until_epoch * self.steps - 1e-9)

    def _continuous(self, step: int) -> float:
        """Warm-up, plateau, linear decay; or warm-up and cosine."""
        config = self.config
        warmup = config.warmup_steps or round(config.warmup_epochs * self.per_epoch)
        warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
        if config.cosine:
            done = max(0, step - warmup) / max(1, self.steps - warmup)
            return config.rate * warm * (0.5 + 0.5 * math.cos(math.pi * done))
        left = min(1.0, (self.steps - step) / config.decay_steps) if config.decay_steps else 1.0
        return config.rate * min(warm, left)
