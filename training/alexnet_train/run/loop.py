"""The training loop: one readable pass from top to bottom, on one device or several.

alexnet-train run 2012-tiny --data data/tiny --out runs/2012
alexnet-train run 2012 --data data/imagenet --out runs/2012 --processes 2 --parallel towers
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from alexnet_server.models.variants import variant_named
from alexnet_train import checkpoint
from alexnet_train.config import Config, ConfigError
from alexnet_train.data.dataset import DatasetError, Split, first_classes, open_split
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.draws import Draws
from alexnet_train.network.towers import check_splits
from alexnet_train.run.augment import Augmenter
from alexnet_train.run.average import Average
from alexnet_train.run.batches import Batches
from alexnet_train.run.held_out import held_out_error
from alexnet_train.run.log import Log
from alexnet_train.run.mix import mixes
from alexnet_train.run.parallel import Mode, StopVote, Workers, workers
from alexnet_train.run.schedule import Schedule
from alexnet_train.run.start import load_to_resume, start_from
from alexnet_train.run.step import Stepper, prepared, set_numerics
from alexnet_train.run.update import optimizer_for, set_velocities, velocities

STATISTICS_IMAGES = 2048
"""Training images that batch norm statistics are measured on, of averaged and of unfolded weights."""


class Stopped(RuntimeError):
    """A run that a signal ended before its last update; it has been saved."""

    def __init__(self, number: int, update: int) -> None:
        super().__init__(f"saved at update {update:,}; the same command continues from there")
        self.status = 128 + number


class DivergedError(RuntimeError):
    """A loss that is no number; the last good checkpoint stays."""

    def __init__(self, update: int, rate: float) -> None:
        super().__init__(
            f"the loss of update {update:,} is not a number, at rate {rate:g}: "
            "the last checkpoint is from before it; continue with a smaller --set rate"
        )


def run(
    config: Config,
    data: Path,
    out: Path,
    init: Path | None = None,
    parallel: Mode = "none",
    tensorboard: bool = False,
) -> None:
    """Train ``config`` on the prepared dataset ``data``; log to ``out/log.jsonl``, save to ``out/last.pt``.

    A run whose ``out`` holds a checkpoint goes on from it, whatever number of processes wrote it. ``init``
    starts from another run's weights, or a model repository's. Of several processes each calls this.

    Raises:
        DatasetError, CheckpointError, TowerError, ParallelError, LogError: each names the file or flag to
        mend.
        DivergedError: the loss is no number any more.
        Stopped: a signal ended the run, which is saved.
    """
    if parallel == "towers":
        check_splits(variant_named(config.variant))
    split = first_classes(open_split(data / "train"), config.classes)
    out.mkdir(parents=True, exist_ok=True)
    again = f"the last checkpoint in {out} is intact, and the same command continues from it"
    with workers(parallel, again) as group:
        training = Training(config, split, out, group, init)
        if training.done >= training.steps:
            training.tell(f"{out}: finished already, at update {training.done:,}")
            return
        header = {"step": training.done, "config": asdict(config), "parallel": parallel}
        with closing(Log(out, group.leads, header, tensorboard)) as log:
            training.train(log)


class Training:
    """One process of a run: what it works with, and the loop. ``done`` counts its updates."""

    def __init__(self, config: Config, split: Split, out: Path, group: Workers, init: Path | None) -> None:
        self.config, self.split, self.out, self.group = config, split, out, group
        count = len(split.labels) - config.held_out
        if count < config.batch_size:
            raise DatasetError(
                f"{max(0, count)} training images are left besides {config.held_out} held out, fewer than a "
                f"batch of {config.batch_size}: use --set held_out=N or --set batch_size=N"
            )
        self.steps, self.per_epoch = config.length(count), count / config.batch_size
        set_numerics(config, group.device)
        self.rows = group.rows(config.batch_size)
        if (config.cutmix or config.mixup) and len(self.rows) % 2:
            raise ConfigError(
                f"batch_size={config.batch_size}: {len(self.rows)} images a process, and mixing pairs them: "
                f"use --set batch_size={config.batch_size + group.world}"
            )
        self.augmenter = Augmenter.of(config, split, group.device)
        self.batches = Batches(split, config, self.rows, group.device, self.steps)
        last = out / "last.pt"
        saved = load_to_resume(last, config, split.classes) if last.exists() else {}
        self.network = group.network(self._first_network(None if saved else init), config)
        self.optimizer = optimizer_for(self.network, config)
        self.average = Average(self.network, config.average_decay) if config.average_decay else None
        if saved:
            self._restore(saved)
        self.done: int = saved.get("step", 0)
        self.schedule = Schedule(config, self.steps, self.per_epoch, saved.get("schedule"))

    def train(self, log: Log) -> None:
        """Every update of the run, with its log lines, evaluations and checkpoints."""
        config, group = self.config, self.group
        self.tell(
            f"{config.recipe}: windows of {config.window} pixels, {self.batches.count:,} images, "
            f"updates {self.done:,} to {self.steps:,} of {config.batch_size}, {group.device}, "
            f"{'bfloat16' if config.bfloat16 else 'float32'}"
        )
        stepper = Stepper.of(self.network, self.optimizer, self.augmenter, config, self.rows, group)
        vote, losses = StopVote(group), Losses(group)
        finished, stop, told = self.done >= self.steps, False, {}
        with self._bar() as bar, closing(self.batches), closing(Stopper()) as stopper:
            while not (finished or stop):
                rates = self.schedule.rates(self.done)
                images, labels = self.batches(self.done)
                mix = mixes(config, self.done, self.steps)
                losses.add(self.done, rates.weights, stepper(self.done, images, labels, rates, mix))
                if self.average:
                    self.average.update(self.network, self.done)
                self.done += 1
                bar.update(config.batch_size)
                finished = self.done == self.steps
                record: dict[str, object] = {}
                if self.done % config.log_steps == 0 or finished:
                    record = log.interval(self.done, losses.total(), rates, config.batch_size)
                    told["loss"] = record["loss"]
                    losses.reset()
                if config.held_out and (self.done % self._evaluation_steps() == 0 or finished):
                    error = self.held_out_error()
                    told["held_out_error"] = error["top1_error"]
                    record |= {"step": self.done, "epoch": round(self.done / self.per_epoch, 3), **error}
                    finished |= self.schedule.observe(self.done, error["top1_error"])
                bar.set_postfix(told, refresh=False)
                log.write(record | ({"finished": True} if finished else {}))
                stop = vote.agreed(bool(stopper.signal))
                if self.done % config.checkpoint_steps == 0 or finished or stop:
                    losses.total()
                    self.save()
            vote.result()
        if stop and not finished:
            raise Stopped(stopper.signal or signal.SIGTERM, self.done)

    def tell(self, line: str) -> None:
        """A line beside the bar, from one of the processes."""
        if self.group.leads:
            tqdm.write(line, file=sys.stderr)

    def _bar(self) -> tqdm[Any]:
        """Images trained on, a second, and the time left."""
        bar: tqdm[Any] = tqdm(
            total=self.steps * self.config.batch_size,
            initial=self.done * self.config.batch_size,
            unit="image",
            unit_scale=True,
            mininterval=1,
            disable=not self.group.leads,
        )
        return bar

    def _evaluation_steps(self) -> int:
        """Updates between two looks at the held-out images."""
        return round(self.config.evaluate_epochs * self.per_epoch) or self.config.checkpoint_steps

    def held_out_error(self) -> dict[str, float]:
        """The error rates of the held-out images by the weights that are to be served."""
        network = self.network
        if self.average:
            network = self.average.network
            self.average.recompute_statistics(self._statistics_batches())
        return held_out_error(network, self.split, self.augmenter, self.config, self.group)

    def _statistics_batches(self) -> Iterator[tuple[Tensor, Draws]]:
        """Augmented training images, the same whenever and by whomever they are asked for."""
        size, device = self.config.batch_size, self.group.device
        for number in range(min(-(-STATISTICS_IMAGES // size), int(self.per_epoch))):
            draws = Draws(self.config.seed, -1 - number, torch.arange(size, device=device))
            yield prepared(self.augmenter, self.batches.joined(number), draws, self.config), draws

    def save(self) -> None:
        """Write ``last.pt`` in one-process shapes, from rank 0; every process calls it."""
        group = self.group
        more: dict[str, Any] = {
            "schedule": self.schedule.state(),
            "mean": self.augmenter.whole_mean.detach().cpu().float(),
            "classes": self.split.classes,
            "size": self.split.size,
        }
        if self.average:
            self.average.recompute_statistics(self._statistics_batches())
            more["average"] = group.one_process(self.average.network.state_dict())
        model = group.one_process(self.network.state_dict())
        velocity = group.one_process(velocities(self.network, self.optimizer))
        if group.leads:
            checkpoint.save(self.out / "last.pt", self.config, self.done, model, velocity, **more)
        group.wait_for_rank_0()

    def _restore(self, saved: dict[str, Any]) -> None:
        """Put back what ``save`` wrote; a kept checkpoint has no velocities, and they start from zero."""
        own_share = self.group.own_share
        self.network.load_state_dict(own_share(saved["model"]))
        if saved["velocity"]:
            set_velocities(self.network, self.optimizer, own_share(saved["velocity"]))
        if self.average:
            self.average.network.load_state_dict(own_share(saved.get("average") or saved["model"]))

    def _first_network(self, init: Path | None) -> AlexNet:
        """The whole network as the run begins: fresh, or with the weights of ``init``."""
        network = AlexNet.of(self.config, len(self.split.classes))
        network.initialise(torch.Generator().manual_seed(self.config.seed))
        if init is not None:
            crops = (x for x, _ in self._statistics_batches())
            self.tell(start_from(init, network.to(self.group.device), self.config, crops))
        return network


class Losses:
    """The sum of an interval's losses, kept on the device, and the first that was no number."""

    def __init__(self, group: Workers) -> None:
        self.group = group
        self.sum = torch.zeros((), dtype=torch.float64, device=group.device)
        self.first_bad = torch.full((), -1, device=group.device)
        self.update, self.rate = 0, 0.0

    def add(self, update: int, rate: float, loss: Tensor) -> None:
        """Take in the loss of an update, without waiting for it."""
        self.sum += loss
        bad = ~torch.isfinite(loss) & (self.first_bad < 0)
        self.first_bad = torch.where(bad, update + 1, self.first_bad)
        self.update, self.rate = update + 1, rate

    def reset(self) -> None:
        """Begin another interval."""
        self.sum.zero_()

    def total(self) -> float:
        """The sum over the joined batches; every process calls it.

        Raises:
            DivergedError: a loss was no number.
        """
        total = self.group.summed(self.sum.cpu()).item()
        if not math.isfinite(total):
            first = int(self.first_bad)
            raise DivergedError(first if first > 0 else self.update, self.rate)
        return total / (self.group.world if self.group.mode == "data" else 1)


class Stopper:
    """Remembers SIGTERM and SIGINT, so that a stopped run saves between two updates."""

    def __init__(self) -> None:
        self.signal = 0
        self.before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in self.before:
            signal.signal(number, self._stop)

    def close(self) -> None:
        """Put back what the signals did before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
