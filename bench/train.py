"""How fast we train, against plain eager PyTorch on the same device in the same run, and where the time goes.

python -m bench.train [--batch 128 512] [--seconds 10] [--out bench-train.json]

Prints Markdown for training/RESULTS.md. The projection at its end is arithmetic on the measured rates.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet_train.config import RECIPES, Config
from alexnet_train.data.dataset import Split, Statistics
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.run.augment import Augmenter
from alexnet_train.run.batches import Batches
from alexnet_train.run.mix import Labels
from alexnet_train.run.parallel import Workers
from alexnet_train.run.schedule import Rates
from alexnet_train.run.step import Stepper, prepared, set_numerics
from alexnet_train.run.update import optimizer_for

GFLOP_PER_IMAGE = 4.136
"""Training one 224-pixel image: three times 724.4 M multiply-adds, less conv1's input gradient."""
IMAGENET, EPOCHS = 1_281_167, 90
PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bf16 FLOP/s by a part of the device's name (vendor data sheets)."""
RATES = Rates(0.001, 0.001, 0.001, 0.001)


def fresh_network(config: Config, classes: int) -> AlexNet:
    """The recipe's network with its initial weights."""
    network = AlexNet.of(config, classes)
    network.initialise(torch.Generator().manual_seed(config.seed))
    return network


def main() -> None:
    """Measure every batch size, then project."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512, 2048] if on_gpu else [128])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each figure")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    device = torch.device("cuda" if on_gpu else "cpu")
    figures: dict[str, object] = {"device": name_of(device), "torch": torch.__version__}
    say(f"{name_of(device)}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads\n")
    best = 0.0
    for batch in options.batch:
        rates = rates_at(batch, options.seconds, device)
        figures[f"images_per_s_batch_{batch}"] = rates
        best = max(best, *(rate for name, rate in rates.items() if name.startswith("ours")))
        say(f"batch {batch}\n\n| | images/s | share of peak |\n|---|---|---|")
        for name, rate in rates.items():
            say(f"| {name} | {rate:,.0f} | {share_of_peak(rate, device)} |")
        parts = breakdown(batch, options.seconds, device)
        figures[f"breakdown_ms_batch_{batch}"] = parts
        say("\n| step of `modern`, eager | ms |\n|---|---|")
        say("\n".join(f"| {name} | {ms:.2f} |" for name, ms in parts.items()) + "\n")
    loader = loader_rate(options.batch[-1], options.seconds, device)
    figures["loader_images_per_s"] = loader
    say(projection(best, loader, name_of(device)))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1))


def rates_at(batch: int, seconds: float, device: torch.device) -> dict[str, float]:
    """Images a second of our recipes' whole step, from uint8 images on, and of the eager loop's.

    All take turns, so that whatever else the machine does disturbs them alike; the fastest turn counts.
    """
    contenders: dict[str, Callable[[], object]] = {}
    for name in ("modern", "2012"):
        config = replace(RECIPES[name], batch_size=batch, held_out=0)
        contenders[f"ours, `{name}`"] = our_step(config, device)
    contenders["eager PyTorch, fp32"] = eager_step(batch, device, False)
    contenders["eager PyTorch, bf16 autocast"] = eager_step(batch, device, True)
    turns: dict[str, list[float]] = {name: [] for name in contenders}
    for work in contenders.values():
        seconds_per_call(work, 0, device)
    began = time.perf_counter()
    while time.perf_counter() - began < seconds * len(contenders):
        for name, work in contenders.items():
            turns[name].append(seconds_per_call(work, 0, device, warm_up=False))
    return {name: batch / min(times) for name, times in turns.items()}


def our_step(config: Config, device: torch.device) -> Callable[[], object]:
    """One whole update of a recipe: augmentation, forward, backward, optimiser."""
    split = synthetic(config.batch_size)
    group = Workers("none", 0, 1, device)
    network = group.network(fresh_network(config, len(split.classes)), config)
    module: nn.Module = network
    graphs = config.compile and device.type == "cuda"
    if graphs:
        module = torch.compile(network)  # type: ignore[assignment]
    stepper = Stepper(
        module,
        optimizer_for(network, config),
        Augmenter.of(config, split, device),
        config,
        group.rows(config.batch_size),
        graphs,
    )
    images = torch.from_numpy(split.images).to(device)
    labels = torch.from_numpy(split.labels).to(device)
    count = iter(range(1_000_000_000))
    mix = bool(config.cutmix or config.mixup)

    def step() -> None:
        set_numerics(config, device)  # contenders take turns
        stepper(next(count), images, labels, RATES, mix)

    return step


def eager_step(batch: int, device: torch.device, bfloat16: bool) -> Callable[[], object]:
    """Torchvision's AlexNet and reference loop, given float crops that are already on the device."""
    network = torchvision_layers().to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    x = torch.randn(batch, 3, 224, 224, device=device)
    y = torch.randint(0, 1000, (batch,), device=device)

    def step() -> None:
        torch.set_float32_matmul_precision("highest")  # PyTorch's defaults
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def torchvision_layers() -> nn.Sequential:
    """The layers of torchvision.models.alexnet, written out."""

    def block(*layers: nn.Module) -> nn.Sequential:
        return nn.Sequential(*layers, nn.ReLU(inplace=True))

    return nn.Sequential(
        block(nn.Conv2d(3, 64, 11, 4, 2)),
        nn.MaxPool2d(3, 2),
        block(nn.Conv2d(64, 192, 5, padding=2)),
        nn.MaxPool2d(3, 2),
        block(nn.Conv2d(192, 384, 3, padding=1)),
        block(nn.Conv2d(384, 256, 3, padding=1)),
        block(nn.Conv2d(256, 256, 3, padding=1)),
        nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Dropout(),
        block(nn.Linear(9216, 4096)),
        nn.Dropout(),
        block(nn.Linear(4096, 4096)),
        nn.Linear(4096, 1000),
    )


def breakdown(batch: int, seconds: float, device: torch.device) -> dict[str, float]:
    """Milliseconds of a `modern` update's parts, each timed alone and eagerly."""
    config = replace(RECIPES["modern"], batch_size=batch, held_out=0, compile=False)
    set_numerics(config, device)
    split, group = synthetic(batch), Workers("none", 0, 1, device)
    network = group.network(fresh_network(config, len(split.classes)), config)
    augmenter, optimizer = Augmenter.of(config, split, device), optimizer_for(network, config)
    stepper = Stepper(network, optimizer, augmenter, config, group.rows(batch))
    images = torch.from_numpy(split.images).to(device)
    labels = Labels(*[torch.from_numpy(split.labels).to(device)] * 2)
    draws = stepper.draws(0)
    x = prepared(augmenter, images, draws, config)

    def forward() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            logits: Tensor = network(x, draws)
        return labels.loss(logits.float(), config.label_smoothing)

    def both() -> None:
        optimizer.zero_grad(set_to_none=True)
        forward().backward()  # type: ignore[no-untyped-call]

    part = seconds / 4
    augment = seconds_per_call(lambda: prepared(augmenter, images, draws, config), part, device)
    ahead, there_and_back = (seconds_per_call(work, part, device) for work in (forward, both))
    update = seconds_per_call(optimizer.step, part, device)
    times = {"augment": augment, "forward": ahead, "backward": there_and_back - ahead, "update": update}
    return {name: 1000 * value for name, value in times.items()}


def loader_rate(batch: int, seconds: float, device: torch.device) -> float:
    """Images a second from a uint8 memmap of 256-pixel images to the device, read in shuffled order."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        count = max(2 * batch, 1024)
        np.save(file, np.zeros((count, 256, 256, 3), np.uint8))
        split = replace(synthetic(count), images=np.load(file, mmap_mode="c"))
        config = Config("loader", batch_size=batch, held_out=0)
        batches = Batches(split, config, torch.arange(batch), device, 1_000_000_000)
        steps = iter(range(1_000_000_000))
        rate = batch / seconds_per_call(lambda: batches(next(steps)), seconds, device)
        batches.close()
    return rate


def synthetic(count: int) -> Split:
    """Random 256-pixel images of 1,000 classes."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (count, 256, 256, 3), np.uint8)
    statistics = Statistics([120.0, 115.0, 105.0], (np.eye(3) * 4000).tolist())
    classes = [(f"n{i:08}", str(i)) for i in range(1000)]
    return Split(images, draw.integers(0, 1000, count), classes, statistics)


def seconds_per_call(
    work: Callable[[], object], seconds: float, device: torch.device, warm_up: bool = True
) -> float:
    """Mean time of a call over at least ``seconds``: one call on a CPU, ten on a GPU."""
    for _ in range((5 if device.type == "cuda" else 1) * warm_up):
        work()
    wait(device)
    began, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - began < seconds:
        for _ in range(10 if device.type == "cuda" else 1):
            work()
            calls += 1
        wait(device)
    return (time.perf_counter() - began) / calls


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name_of(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "CPU")


def share_of_peak(rate: float, device: torch.device) -> str:
    """Share of the GPU's dense bf16 peak, where that is known."""
    peak = next((flops for name, flops in PEAK_BF16.items() if name in name_of(device)), None)
    return f"{100 * rate * GFLOP_PER_IMAGE * 1e9 / peak:.1f} %" if peak else ""


def projection(step: float, loader: float, device: str) -> str:
    """What the measured rates mean for 90 epochs of ImageNet, beside what others took."""
    images, rate = IMAGENET * EPOCHS, min(step, loader)
    limit = images * GFLOP_PER_IMAGE * 1e9 / (2 * PEAK_BF16["H200"])
    measured = span(images / rate)
    shares = ", ".join(f"{span(limit / share)} at {share:.0%}" for share in (1.0, 0.4, 0.2))
    return f"""Projection, not a measurement: {EPOCHS} epochs of ImageNet are {images:,} images.

| | time |
|---|---|
| {device}, at the measured {rate:,.0f} images/s (step {step:,.0f}, loader {loader:,.0f}) | {measured} |
| two of them, if both were used perfectly | {span(images / rate / 2)} |
| two H200, arithmetic alone, by share of their bf16 peak | {shares} |
| two GTX 580, 2012 (the paper) | 5-6 days |
| 1,024 CPUs, 2017 (arXiv:1709.05011, batch norm, batch 32K) | 11 minutes |
"""


def span(seconds: float) -> str:
    """A time in the unit a person would use."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def say(text: str) -> None:
    """Print at once: a measurement takes a while."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
