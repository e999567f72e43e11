"""Where a run starts: its own last checkpoint, another run's weights, or a model repository."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet_server.models.repository import RepositoryError, read_repository
from alexnet_server.models.variants import LAYERS, layers_of
from alexnet_server.models.weights import read_weights, tensor
from alexnet_train import checkpoint
from alexnet_train.checkpoint import CheckpointError
from alexnet_train.config import Config, config_from
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.fold import BATCH_NORM_EPS, unfolded

MUST_MATCH = (
    "variant",
    "activation",
    "batch_norm",
    "constant_lrn",
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


def load_to_resume(path: Path, config: Config, classes: list[tuple[str, str]]) -> dict[str, Any]:
    """The checkpoint a run goes on from.

    Raises:
        CheckpointError: unreadable, or of another recipe, variant or other classes.
    """
    state = checkpoint.load(path)
    saved, found = config_from(state["config"]), len(state["model"]["fc8.bias"])
    differ = [
        f"{name} {getattr(saved, name)!r} there, {getattr(config, name)!r} here"
        for name in MUST_MATCH
        if getattr(saved, name) != getattr(config, name)
    ]
    if found != len(classes):
        differ.append(f"{found} classes there, {len(classes)} here")
    else:
        named = [tuple(own) for own in state.get("classes", classes)]
        differ += [
            f"class {i} is {a[0]} there, {b[0]} here"
            for i, (a, b) in enumerate(zip(named, classes, strict=True))
            if a[0] != b[0]
        ][:1]
    if differ:
        raise CheckpointError(
            f"{path} belongs to another run ({'; '.join(differ)}): choose another --out, or the same settings"
        )
    return state


def start_from(path: Path, network: AlexNet, config: Config, crops: Iterable[Tensor]) -> str:
    """Give ``network`` the weights of ``path`` wherever they fit by name and shape; says what was taken.

    Args:
        path: a checkpoint, or a model repository with its weight file.
        network: the whole network, freshly initialised; what does not fit keeps these values.
        config: its recipe.
        crops: prepared training crops; what a repository's folded weights make of them is what the batch
            norms' statistics are measured from. Read only where they are needed.

    Raises:
        CheckpointError: unreadable, or no convolution fits: it is of another variant.
        RepositoryError: the folder is no model repository, or one without a weight file.
    """
    own = network.state_dict()
    if path.is_dir():
        given = unfolded(repository_weights(path, network.variant.channel_order), config)
    else:
        given = checkpoint.serving_state(checkpoint.load(path))
    same = {n: t for n, t in given.items() if n in own and own[n].shape == t.shape}
    if "conv2.weight" not in same:
        raise CheckpointError(
            f"{path}: its convolutions do not fit variant {network.variant.name}; use one of that variant"
        )
    network.load_state_dict(own | same)
    wanted = [name for name in given if name.split(".")[0] in LAYERS and name.endswith("weight")]
    layers = [name.removesuffix(".weight") for name in wanted if name not in same]
    if path.is_dir() and config.batch_norm:
        taken = [n for n in layers_of(network.variant) if f"{n}.weight" in same and n != "fc8"]
        weights = {name: network.layer(name).weight for name in taken}
        put_norms_back(network, weights, {name: given[f"{name}.bias"] for name in taken}, crops)
    anew = f"; {', '.join(layers)} start afresh" if layers else ""
    return f"took {len(wanted) - len(layers)} of {len(wanted)} layers of {path}{anew}"


def repository_weights(path: Path, channel_order: str = "RGB") -> dict[str, NDArray[np.float32]]:
    """The folded weights of a model repository, ``conv1.weight`` ... ``fc8.bias``, dequantised.

    Served graphs take RGB; ``channel_order`` is the one that conv1 is wanted in.

    Raises:
        RepositoryError: the folder is no model repository, or one without a weight file.
    """
    weights = read_weights(weight_file(path))
    names = [f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")]
    tensors = {name: np.array(tensor(weights, name), np.float32) for name in names}
    if channel_order == "BGR":
        tensors["conv1.weight"] = np.ascontiguousarray(tensors["conv1.weight"][:, ::-1])
    return tensors


def weight_file(path: Path) -> Path:
    """Where a model repository keeps its weights; errors as ``repository_weights``."""
    repository = read_repository(path)
    if repository.weight_file is None:
        raise RepositoryError(f"{path}: no weight file to start from; give a repository as it was released")
    return repository.weight_file


@torch.no_grad()
def put_norms_back(
    network: nn.Module, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor], crops: Iterable[Tensor]
) -> None:
    """Give folded layers batch norms that change nothing: gain and shift undo the statistics measured.

    The rows of weights are scaled to the norm that fresh ones have (He's), which the norm behind them does
    not see: the rate of a recipe means the same for them as for its own.

    Args:
        network: the batch norm behind layer ``<name>`` is its module ``norm_<name>``.
        weights: of folded layers by name, (outputs, ...), or a product's factor that has the outputs.
        biases: of the same layers, (outputs,).
        crops: what the network takes, of training images.
    """
    measured = {}
    for name, bias in biases.items():
        norm = network.get_submodule(f"norm_{name}")
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        measured[name] = _Moments(norm, bias.to(norm.weight.device))
    network.eval()
    for x in crops:
        network(x)
    network.train()
    for name, moments in measured.items():
        weight = weights[name]
        rows = weight.flatten(1).norm(dim=1).clamp(min=1e-12)
        scale = 2**0.5 / rows
        weight.mul_(scale.view(-1, *[1] * (weight.dim() - 1)))
        moments.close(scale)


class _Moments:
    """Makes a batch norm the identity plus a bias, and measures its inputs until ``close``."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, bias: Tensor) -> None:
        self.norm, self.bias = norm, bias
        self.count, self.total, self.squares = 0, torch.zeros_like(bias), torch.zeros_like(bias)
        self.hook = norm.register_forward_hook(self._look)

    def _look(self, _norm: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        x = inputs[0].transpose(0, 1).flatten(1).double()
        self.count += x.shape[1]
        self.total += x.sum(1)
        self.squares += (x * x).sum(1)
        shape = [1, -1] + [1] * (inputs[0].dim() - 2)
        return inputs[0] + self.bias.view(shape).to(inputs[0].dtype)

    def close(self, scale: Tensor) -> None:
        """Set statistics, gain and shift for inputs that are ``scale`` (outputs,) times those seen."""
        self.hook.remove()
        mean = self.total / self.count
        variance = (self.squares / self.count - mean * mean).clamp(min=0)
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.running_mean.copy_(mean * scale)
        norm.running_var.copy_(variance * scale * scale)
        norm.weight.copy_((norm.running_var.double() + BATCH_NORM_EPS).sqrt() / scale)
        norm.bias.copy_(self.bias + mean)
        norm.num_batches_tracked.fill_(1)
