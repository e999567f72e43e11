"""From a recipe to the things a run works with: numerics, network, augmenter, and their saved state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alexnet_server.machine import configure_allocator
from alexnet_server.models.variants import variant_named
from alexnet_train import checkpoint
from alexnet_train.checkpoint import CheckpointError
from alexnet_train.config import Config, config_from
from alexnet_train.data.dataset import DatasetError, Split, mean_image
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.towers import Tower, own_rows
from alexnet_train.run.augment import Augmenter, Colour
from alexnet_train.run.parallel import Workers

MUST_MATCH = (
    "variant",
    "batch_norm",
    "window",
    "hidden",
    "input_scale",
    "mean",
    "update",
    "batch_size",
    "held_out",
    "seed",
)
"""Settings that a run may not change when it goes on from a checkpoint; rates and lengths it may."""


def set_numerics(config: Config, device: torch.device) -> None:
    """Choose speed or repeatability of the GPU's kernels; a CPU repeats itself, and keeps freed memory."""
    if device.type != "cuda":
        configure_allocator(keep_all=True)
        return
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not config.deterministic
    torch.set_float32_matmul_precision("high" if config.bfloat16 else "highest")
    torch.backends.cudnn.allow_tf32 = config.bfloat16


def whole_network(config: Config, classes: int, kind: type[AlexNet] = AlexNet) -> AlexNet:
    """The network of a recipe with uninitialised weights."""
    return kind(
        variant_named(config.variant),
        classes,
        batch_norm=config.batch_norm,
        dropout=config.dropout,
        window=config.window,
        hidden=config.hidden,
        constant_lrn=config.constant_lrn,
        activation=config.activation,
    )


def build(config: Config, classes: int, group: Workers) -> AlexNet:
    """This process' network, freshly initialised as one process would, channels last on its device."""
    network = whole_network(config, classes)
    network.initialise(torch.Generator().manual_seed(config.seed))
    if group.mode == "towers":
        tower = whole_network(config, classes, Tower)
        assert isinstance(tower, Tower)
        tower.split(group.rank).load_state_dict(own_rows(network.state_dict(), group.rank))
        network = tower
    nn.Module.to(network, device=group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def make_augmenter(config: Config, split: Split, device: torch.device) -> Augmenter:
    """The recipe's augmentation of a training split.

    Raises:
        DatasetError: the split was prepared without statistics.
    """
    if split.statistics is None:
        raise DatasetError("the training split has no statistics; run `alexnet-train prepare` again")
    mean = None
    if config.mean == "image":
        mean = split.mean_image if split.mean_image is not None else mean_image(split.images)
    return Augmenter(
        split.size,
        config.window,
        split.statistics,
        Colour(config.colour_pca, config.colour_gain, config.colour_divisor, config.colour_measure),
        device,
        mean_image=mean,
        shared_crops=config.shared_crops,
        resized_area=config.resized_area,
        channel_order=variant_named(config.variant).channel_order,
    )


def own_share(values: dict[str, Tensor], group: Workers) -> dict[str, Tensor]:
    """This process' part of a one-process state."""
    return own_rows(values, group.rank) if group.mode == "towers" else values


def load_to_resume(path: Path, config: Config, classes: int) -> dict[str, Any]:
    """The checkpoint a run goes on from.

    Raises:
        CheckpointError: unreadable, or of another recipe, variant or number of classes.
    """
    state = checkpoint.load(path)
    saved, found = config_from(state["config"]), len(state["model"]["fc8.bias"])
    differ = [
        f"{name} {getattr(saved, name)!r} there, {getattr(config, name)!r} here"
        for name in MUST_MATCH
        if getattr(saved, name) != getattr(config, name)
    ]
    if found != classes:
        differ.append(f"{found} classes there, {classes} here")
    if differ:
        raise CheckpointError(
            f"{path} is of another run ({'; '.join(differ)}): choose another --out, or the same settings"
        )
    return state


def load_to_start_from(path: Path, network: AlexNet, group: Workers) -> None:
    """Take the weights of a checkpoint that fit by name and shape, as a start.

    Raises:
        CheckpointError: unreadable, or no convolution fits: the checkpoint is of another variant.
    """
    weights = own_share(checkpoint.serving_state(checkpoint.load(path)), group)
    own = network.state_dict()
    same = {n: t for n, t in weights.items() if n in own and own[n].shape == t.shape}
    if "conv2.weight" not in same:
        raise CheckpointError(
            f"{path}: its convolutions do not fit variant {network.variant.name}; use one of that variant"
        )
    network.load_state_dict(own | same)


def mean_of(augmenter: Augmenter) -> Tensor:
    """What the checkpoint keeps of the mean: float32 (3,), or (256, 256, 3) whose centre is subtracted."""
    return augmenter.whole_mean.detach().cpu().to(torch.float32)
