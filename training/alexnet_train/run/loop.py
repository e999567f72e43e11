"""The training loop: one readable pass from top to bottom, on one device or several.

alexnet-train run 2012-tiny --data data/tiny --out runs/2012
torchrun --nproc-per-node 2 -m alexnet_train run 2012 --data data/imagenet --out runs/2012 --parallel towers
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from alexnet_train import checkpoint
from alexnet_train.config import Config
from alexnet_train.data.dataset import DatasetError, Split, first_classes, open_split
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.draws import Draws
from alexnet_train.network.response_norm import response_norm
from alexnet_train.network.towers import canonical_rows, check_splits
from alexnet_train.network.variants import variant_named
from alexnet_train.run.average import Average
from alexnet_train.run.batches import Batches
from alexnet_train.run.building import (
    fresh_network,
    make_augmenter,
    mean_of,
    own_network,
    own_share,
    set_numerics,
)
from alexnet_train.run.held_out import held_out_error
from alexnet_train.run.log import Log
from alexnet_train.run.mix import mixes
from alexnet_train.run.parallel import Mode, StopVote, Workers, workers
from alexnet_train.run.schedule import Schedule
from alexnet_train.run.start import load_to_resume, start_from
from alexnet_train.run.step import Stepper, prepared
from alexnet_train.run.update import optimizer_for, set_velocities, velocities

STATISTICS_IMAGES = 2048
"""Training images that batch norm statistics are measured on, of averaged and of unfolded weights."""


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
    starts from another run's weights. Under torchrun every process calls this.

    Raises:
        DatasetError, CheckpointError, TowerError, ParallelError, LogError: each names the file or flag to
        mend.
    """
    if parallel == "towers":
        check_splits(variant_named(config.variant))
    split = first_classes(open_split(data / "train"), config.classes)
    out.mkdir(parents=True, exist_ok=True)
    again = f"the last checkpoint in {out} is whole, and the same command goes on from it"
    with workers(parallel, again) as group:
        training = Training(config, split, out, group, init)
        header = {"step": training.first, "config": asdict(config), "parallel": parallel}
        log = Log(out, group.leads, header, tensorboard)
        training.train(log)
        log.close()


class Training:
    """One process of a run: what it works with, and the loop."""

    def __init__(self, config: Config, split: Split, out: Path, group: Workers, init: Path | None) -> None:
        self.config, self.split, self.out, self.group = config, split, out, group
        count = len(split.labels) - config.held_out
        if count < config.batch_size:
            raise DatasetError(
                f"{count} training images are left beside {config.held_out} held out, fewer than a batch of "
                f"{config.batch_size}: use --set held_out=N or --set batch_size=N"
            )
        self.steps, self.per_epoch = config.length(count), count / config.batch_size
        set_numerics(config, group.device)
        self.rows = group.rows(config.batch_size)
        self.augmenter = make_augmenter(config, split, group.device)
        self.batches = Batches(split, config, self.rows, group.device, self.steps)
        saved = self._saved()
        self.network = own_network(self._started(None if saved else init), config, group)
        self.optimizer = optimizer_for(self.network, config)
        if saved:
            self.network.load_state_dict(own_share(saved["model"], group))
            set_velocities(self.network, self.optimizer, own_share(saved["velocity"], group))
        self.first: int = saved.get("step", 0)
        self.schedule = Schedule(config, self.steps, self.per_epoch, saved.get("schedule"))
        self.average: Average | None = None
        if config.average_decay:
            self.average = Average(self.network, config.average_decay)
            if "average" in saved:
                self.average.network.load_state_dict(own_share(saved["average"], group))

    def train(self, log: Log) -> None:
        """Every update of the run, with its log lines, evaluations and checkpoints."""
        config, group = self.config, self.group
        stepper, stopper, vote = self._stepper(), Stopper(), StopVote(group)
        losses = torch.zeros((), dtype=torch.float64, device=group.device)
        log.since = done = self.first
        with self._bar() as bar, closing(self.batches), closing(stopper):
            over = done >= self.steps
            while not over:
                rates = self.schedule.rates(done)
                images, labels = self.batches(done)
                losses += stepper(done, images, labels, rates, mixes(config, done, self.steps))
                if self.average:
                    self.average.update(self.network, done)
                done += 1
                bar.update(config.batch_size)
                record: dict[str, object] = {}
                if done % config.log_steps == 0 or done == self.steps:
                    record = log.interval(done, self._joined(losses), rates, config.batch_size)
                    losses.zero_()
                record |= self._evaluated(done)
                over = bool(record.get("finished")) or vote.agreed(stopper.stopped)
                log.write(record)
                if done % config.checkpoint_steps == 0 or over:
                    self.save(done)
            vote.result()

    def _evaluated(self, done: int) -> dict[str, object]:
        """The held-out error where it is due, and ``finished`` where the run has come to its end."""
        record: dict[str, object] = {}
        last = plateau = done == self.steps
        if self.config.held_out and (done % self._evaluation_steps() == 0 or last):
            error = self.held_out_error()
            record = {"step": done, "epoch": round(done / self.per_epoch, 3), **error}
            plateau = self.schedule.observe(done, error["top1_error"])
        return record | {"finished": True} if last or plateau else record

    def _bar(self) -> tqdm[Any]:
        """Images trained on, a second, and the time left."""
        bar: tqdm[Any] = tqdm(
            total=self.steps * self.config.batch_size,
            initial=self.first * self.config.batch_size,
            unit="image",
            unit_scale=True,
            mininterval=1,
            disable=not self.group.leads,
        )
        return bar

    def _stepper(self) -> Stepper:
        """The update, compiled and replayed from CUDA graphs where that is asked for and possible."""
        network: nn.Module = self.network
        on_gpu = self.group.device.type == "cuda"
        if self.group.mode == "data":
            ids = [self.group.device.index] if on_gpu else None
            network = nn.parallel.DistributedDataParallel(
                _synchronised(network) if on_gpu else network, device_ids=ids
            )
        alone = self.group.mode == "none"
        if self.config.compile and on_gpu and not alone:
            self.network.response_norm = torch.compile(response_norm)
        if self.config.compile and on_gpu and alone:
            network = torch.compile(network)  # type: ignore[assignment]
        return Stepper(
            network,
            self.optimizer,
            self.augmenter,
            self.config,
            self.rows,
            self.config.compile and on_gpu and alone,
        )

    def _evaluation_steps(self) -> int:
        """Updates between two looks at the held-out images."""
        return round(self.config.evaluate_epochs * self.per_epoch) or self.config.checkpoint_steps

    def _joined(self, losses: Tensor) -> float:
        """The sum of an interval's losses over the joined batches."""
        total = self.group.summed(losses.cpu()).item()
        return total / (self.group.world if self.group.mode == "data" else 1)

    def held_out_error(self) -> dict[str, float]:
        """Top-1 and top-5 error of the held-out images by the weights that are to be served."""
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

    def save(self, done: int) -> None:
        """Write ``last.pt`` in one-process shapes, from rank 0; every process calls it."""
        model, velocity = self.network.state_dict(), velocities(self.network, self.optimizer)
        more: dict[str, Any] = {"schedule": self.schedule.state(), "mean": mean_of(self.augmenter)}
        more |= {"classes": self.split.classes, "size": self.split.size}
        if self.average:
            self.average.recompute_statistics(self._statistics_batches())
            more["average"] = self._canonical(self.average.network.state_dict())
        model, velocity = self._canonical(model), self._canonical(velocity)
        if self.group.leads:
            checkpoint.save(self.out / "last.pt", self.config, done, model, velocity, **more)

    def _canonical(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state in one-process shapes, on rank 0 at least."""
        return canonical_rows(own, self.group.rank) if self.group.mode == "towers" else own

    def _saved(self) -> dict[str, Any]:
        """The checkpoint to go on from; empty where there is none."""
        last = self.out / "last.pt"
        return load_to_resume(last, self.config, len(self.split.classes)) if last.exists() else {}

    def _started(self, init: Path | None) -> AlexNet:
        """The whole network as the run begins: fresh, or with the weights of ``init``."""
        network = fresh_network(self.config, len(self.split.classes))
        if init is not None:
            start_from(
                init, network.to(self.group.device), self.config, (x for x, _ in self._statistics_batches())
            )
        return network


def _synchronised(network: nn.Module) -> nn.Module:
    """The network with its batch norms taking statistics over all ranks, which only GPUs can."""
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return converted


class Stopper:
    """Turns SIGTERM and SIGINT into a flag, so that a stopped run saves between two updates."""

    def __init__(self) -> None:
        self.stopped = False
        self.before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in self.before:
            signal.signal(number, self._stop)

    def close(self) -> None:
        """Put back what the signals did before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopped = True
