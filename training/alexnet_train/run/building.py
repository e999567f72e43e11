"""From a recipe to the things a run works with: numerics, network, augmenter, and their saved state."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from alexnet_server.allocation import configure_allocator
from alexnet_train.config import Config
from alexnet_train.data.dataset import DatasetError, Split, mean_image
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.towers import Tower, own_rows
from alexnet_train.network.variants import variant_named
from alexnet_train.run.augment import Augmenter, Colour
from alexnet_train.run.parallel import Workers


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


def fresh_network(config: Config, classes: int) -> AlexNet:
    """The network of a recipe with its initial weights."""
    network = whole_network(config, classes)
    network.initialise(torch.Generator().manual_seed(config.seed))
    return network


def own_network(whole: AlexNet, config: Config, group: Workers) -> AlexNet:
    """This process' part of a network, channels last on its device."""
    network = whole
    if group.mode == "towers":
        tower = whole_network(config, whole.classes, Tower)
        assert isinstance(tower, Tower)
        tower.split(group.rank).load_state_dict(own_rows(whole.state_dict(), group.rank))
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
        resized_area_max=config.resized_area_max,
        channel_order=variant_named(config.variant).channel_order,
    )


def own_share(values: dict[str, Tensor], group: Workers) -> dict[str, Tensor]:
    """This process' part of a one-process state."""
    return own_rows(values, group.rank) if group.mode == "towers" else values


def mean_of(augmenter: Augmenter) -> Tensor:
    """What the checkpoint keeps of the mean: float32 (3,), or (256, 256, 3) whose centre is subtracted."""
    return augmenter.whole_mean.detach().cpu().to(torch.float32)
