"""The training loop: one readable pass from top to bottom, one device.

alexnet-train run tiny-convolutions --data data/tiny --out runs/convolutions
"""

from __future__ import annotations

import signal
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from alexnet_train import checkpoint, log
from alexnet_train.augment import Augmenter, Colour
from alexnet_train.config import Config
from alexnet_train.dataset import DatasetError, Split, open_split
from alexnet_train.network import AlexNet
from alexnet_train.variants import VARIANTS


def generator_at(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of update ``step``: draws depend on (seed, step) alone, so a resumed run repeats them."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + step)


def batch_indices(config: Config, count: int, step: int) -> Tensor:
    """Indices of update ``step``: consecutive slices of a permutation drawn anew each epoch."""
    per_epoch = count // config.batch_size
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed * 7919 + epoch))
    return order[position * config.batch_size : (position + 1) * config.batch_size]


def build(config: Config, classes: int, device: torch.device) -> AlexNet:
    """The network of a recipe, freshly initialised, channels last on ``device``."""
    network = AlexNet(
        VARIANTS[config.variant],
        classes,
        batch_norm=config.batch_norm,
        dropout=config.dropout,
        window=config.window,
        hidden=config.hidden,
        constant_lrn=config.constant_lrn,
    )
    network.initialise(torch.Generator().manual_seed(config.seed))
    nn.Module.to(network, device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def decayed(network: nn.Module) -> list[dict[str, object]]:
    """Parameter groups: weight decay on weights alone, as layer.cu:565 of the 2012 code has it."""
    weights = [p for n, p in network.named_parameters() if n.endswith("weight") and not n.startswith("norm")]
    others = [
        p for n, p in network.named_parameters() if not (n.endswith("weight") and not n.startswith("norm"))
    ]
    return [{"params": weights}, {"params": others, "weight_decay": 0.0}]


def train_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, config: Config
) -> Tensor:
    """One update on crops (N, 3, window, window) and labels (N,); returns the loss."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.bfloat16):
        logits = network(x)
    loss = F.cross_entropy(logits.float(), y, label_smoothing=config.label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def held_out_error(
    network: nn.Module, split: Split, augmenter: Augmenter, config: Config
) -> dict[str, float]:
    """Top-1 and top-5 error (fractions) of the centre window on the held-out training images."""
    network.eval()
    right = torch.zeros(2)
    count = len(split.labels)
    for start in range(count - config.held_out, count, config.batch_size):
        stop = min(count, start + config.batch_size)
        x = augmenter.centre(torch.from_numpy(split.images[start:stop].copy())) / config.input_scale
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.bfloat16):
            logits = network(x.contiguous(memory_format=torch.channels_last))
            best = logits.topk(min(5, logits.shape[1])).indices
        hit = best == torch.from_numpy(split.labels[start:stop])[:, None]
        right += torch.stack([hit[:, :1].any(1).sum(), hit.any(1).sum()]).float()
    network.train()
    top1, top5 = (1 - right / config.held_out).tolist()
    return {"top1_error": round(top1, 4), "top5_error": round(top5, 4)}


class Stopper:
    """Turns SIGTERM and SIGINT into a flag, so that a stopped run saves between two updates."""

    def __init__(self) -> None:
        self.stopped = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopped = True


def run(config: Config, data: Path, out: Path, init: Path | None = None) -> None:
    """Train ``config`` on the prepared dataset ``data``; log to ``out/log.jsonl``, save to ``out/last.pt``.

    A run whose ``out`` holds a checkpoint goes on from it. ``init`` starts from another run's weights.
    """
    split = open_split(data / "train")
    if split.statistics is None:
        raise DatasetError(f"{data}/train: no statistics; prepare it again")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build(config, len(split.classes), device)
    optimizer = torch.optim.SGD(
        decayed(network),
        config.rate,
        momentum=config.momentum,
        nesterov=True,
        weight_decay=config.weight_decay,
    )
    out.mkdir(parents=True, exist_ok=True)
    first = resume(out / "last.pt", init, network, optimizer)
    augmenter = Augmenter(
        split.size, config.window, split.statistics, Colour(config.colour_pca, config.colour_gain), device
    )
    log.append(out / "log.jsonl", {"step": first, "config": asdict(config)})
    stopper = Stopper()
    count = len(split.labels) - config.held_out
    began, losses = time.monotonic(), torch.zeros(())
    for step in tqdm(
        range(first, config.steps), initial=first, total=config.steps, unit="step", mininterval=10
    ):
        for group in optimizer.param_groups:
            group["lr"] = config.rate_at(step)
        index = batch_indices(config, count, step).numpy()
        generator = generator_at(config.seed, step, device)
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout draws from the default generator
        x = augmenter.random(torch.from_numpy(split.images[index]).to(device), generator) / config.input_scale
        y = torch.from_numpy(split.labels[index]).to(device)
        losses += train_step(network, optimizer, x.contiguous(memory_format=torch.channels_last), y, config)
        done = step + 1
        if done % config.log_steps == 0:
            record = {
                "step": done,
                "loss": round(losses.item() / config.log_steps, 4),
                "rate": config.rate_at(step),
            }
            record["images_per_s"] = round(
                config.log_steps * config.batch_size / (time.monotonic() - began), 1
            )
            if done % config.checkpoint_steps == 0:
                record |= held_out_error(network, split, augmenter, config)
            log.append(out / "log.jsonl", record)
            began, losses = time.monotonic(), torch.zeros(())
        if done % config.checkpoint_steps == 0 or stopper.stopped or done == config.steps:
            velocity = {n: optimizer.state[p]["momentum_buffer"] for n, p in network.named_parameters()}
            checkpoint.save(out / "last.pt", config, done, network.state_dict(), velocity)
        if stopper.stopped:
            break


def resume(last: Path, init: Path | None, network: AlexNet, optimizer: torch.optim.Optimizer) -> int:
    """Load ``last`` (weights and velocity) or the weights of ``init``; returns the step to go on from."""
    if last.exists():
        state = checkpoint.load(last)
        network.load_state_dict(state["model"])
        for name, parameter in network.named_parameters():
            optimizer.state[parameter]["momentum_buffer"] = state["velocity"][name]
        return int(state["step"])
    if init is not None:
        weights = checkpoint.load(init)["model"]
        own = network.state_dict()
        same = {n: t for n, t in weights.items() if n in own and own[n].shape == t.shape}
        network.load_state_dict(own | same)
    return 0
