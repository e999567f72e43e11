"""One update: augmentation, forward, backward, the optimiser; on a GPU replayed from a CUDA graph."""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alexnet_server.machine import configure_allocator
from alexnet_train.config import Config
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.draws import Draws
from alexnet_train.network.towers import Tower, squared_norm_of_all
from alexnet_train.run.augment import Augmenter
from alexnet_train.run.mix import Labels, mixed
from alexnet_train.run.parallel import Workers
from alexnet_train.run.schedule import Rates
from alexnet_train.run.update import set_rates

EAGER_STEPS = 3
"""Updates before a graph is captured: cuDNN chooses its algorithms and the velocities come to be."""


def set_numerics(config: Config, device: torch.device) -> None:
    """Choose speed or repeatability of the GPU's kernels; a CPU repeats itself, and keeps freed memory."""
    if device.type != "cuda":
        configure_allocator(keep_all=True)
        return
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not config.deterministic
    rounded = config.bfloat16 or config.tf32
    torch.set_float32_matmul_precision("high" if rounded else "highest")
    torch.backends.cudnn.allow_tf32 = rounded


def prepared(
    augmenter: Augmenter, images: Tensor, draws: Draws, config: Config, coloured: bool = True
) -> Tensor:
    """Random crops of uint8 (N, S, S, 3) as the network takes them: (N, 3, window, window), channels last."""
    x = augmenter.random(images, draws, coloured) / config.input_scale
    return x.contiguous(memory_format=torch.channels_last)


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    labels: Labels,
    config: Config,
    draws: Draws | None = None,
) -> Tensor:
    """One update on crops (N, 3, window, window); returns the mean loss, a scalar (0 on tower b)."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.bfloat16):
        logits = network(x, draws)
    # Tower b has no logits: the scalar it gets instead passes the gradient on.
    loss = labels.loss(logits.float(), config.label_smoothing) if logits.dim() else logits
    loss.backward()
    if config.clip_gradient:
        clip(network, config.clip_gradient)
    optimizer.step()
    return loss.detach().float()


def clip(network: nn.Module, limit: float) -> None:
    """Scale all gradients so that their common norm is at most ``limit``, over both towers."""
    parameters = [p for p in network.parameters() if p.grad is not None]
    if isinstance(network, Tower):
        norm = squared_norm_of_all(parameters).sqrt()
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    else:
        nn.utils.clip_grad_norm_(parameters, limit)


def _synchronised(network: nn.Module) -> nn.Module:
    """The network with its batch norms taking statistics over all ranks, which only GPUs can."""
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return converted


def _has_compiler() -> bool:
    """Whether there is the C compiler that compiled kernels are launched through; says so where not."""
    if (
        shutil.which(os.environ.get("CC", ""))
        or shutil.which("cc")
        or shutil.which("gcc")
        or shutil.which("clang")
    ):
        return True
    warnings.warn("no C compiler here, so the step runs uncompiled and slower; install gcc", stacklevel=2)
    return False


@dataclass
class Stepper:
    """Runs updates of one network: eagerly, or from CUDA graphs where ``graphs`` is set.

    Every draw is a function of the update's number, which is a tensor: what was compiled or captured once
    serves every update. For graphs rates are tensors too. A graph is captured anew when a group of parameters
    freezes or colour noise ends; mixed updates have one of their own.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    augmenter: Augmenter
    config: Config
    rows: Tensor
    graphs: bool = False

    @classmethod
    def of(
        cls,
        network: AlexNet,
        optimizer: torch.optim.Optimizer,
        augmenter: Augmenter,
        config: Config,
        rows: Tensor,
        group: Workers,
    ) -> Stepper:
        """The update, compiled and replayed from CUDA graphs where that is asked for and possible."""
        on_gpu, alone = group.device.type == "cuda", group.mode == "none"
        compiled = config.compile and on_gpu and _has_compiler()
        data = group.mode == "data"
        stepped: nn.Module = _synchronised(network) if data and on_gpu else network
        if compiled:
            stepped = network.compiled() if isinstance(network, Tower) else torch.compile(stepped)  # type: ignore[assignment]
        if data:
            ids = [group.device.index] if on_gpu else None
            stepped = nn.parallel.DistributedDataParallel(
                stepped, device_ids=ids, gradient_as_bucket_view=True
            )
        return cls(stepped, optimizer, augmenter, config, rows, compiled and alone)

    def __post_init__(self) -> None:
        self.rows = self.rows.to(next(self.network.parameters()).device)
        self.number = torch.zeros((), dtype=torch.int64, device=self.rows.device)
        self.captured: dict[tuple[object, ...], _Captured] = {}
        self.eager: dict[tuple[object, ...], int] = {}
        if self.graphs:
            for group in self.optimizer.param_groups:
                group["lr"] = torch.zeros((), device=self.rows.device)

    def draws(self, step: int | Tensor) -> Draws:
        """The draws of an update."""
        return Draws(self.config.seed, step, self.rows)

    def __call__(self, step: int, images: Tensor, labels: Tensor, rates: Rates, mix: bool) -> Tensor:
        """Update ``step`` on uint8 (N, S, S, 3) and int64 (N,); returns the mean loss, a scalar."""
        set_rates(self.optimizer, rates)
        self.number.fill_(step)
        if not self.graphs:
            return self._update(images, labels, rates.colour, mix)
        key = (mix, rates.colour, *(group["frozen"] for group in self.optimizer.param_groups))
        if key not in self.captured:
            if self.eager.get(key, 0) < EAGER_STEPS:
                self.eager[key] = self.eager.get(key, 0) + 1
                return self._update(images, labels, rates.colour, mix)
            kept = {old: graph for old, graph in self.captured.items() if old[1:] == key[1:]}
            self.captured = kept | {key: self._capture(images, labels, rates.colour, mix)}
        return self.captured[key].replay(images, labels)

    def _update(self, images: Tensor, labels: Tensor, colour: bool, mix: bool) -> Tensor:
        draws = self.draws(self.number)
        x = prepared(self.augmenter, images, draws, self.config, colour)
        mixed_labels = Labels(labels, labels)
        if mix:
            x, mixed_labels = mixed(x, labels, draws, self.config.cutmix, self.config.mixup)
            x = x.contiguous(memory_format=torch.channels_last)
        return train_step(self.network, self.optimizer, x, mixed_labels, self.config, draws)

    def _capture(self, images: Tensor, labels: Tensor, colour: bool, mix: bool) -> _Captured:
        images, labels = images.clone(), labels.clone()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # Other threads may pin memory meanwhile: the reader that is a batch ahead does.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            loss = self._update(images, labels, colour, mix)
        return _Captured(graph, images, labels, loss)


@dataclass
class _Captured:
    """A captured update and the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    labels: Tensor
    loss: Tensor

    def replay(self, images: Tensor, labels: Tensor) -> Tensor:
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.loss.clone()
