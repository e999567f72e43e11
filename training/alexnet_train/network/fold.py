"""From a training state to the weights that are served: everything training added is folded away, exactly.

Batch norm (its running statistics), the divisor of the input and the 2012 factor for dropout at test are all
linear, so they disappear into the layers' weights: what is left has the shapes of ``parameter_shapes``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet_server.models.variants import layers_of, variant_named
from alexnet_train.config import Config

BATCH_NORM_EPS = 1e-5


class FoldError(ValueError):
    """A state that does not belong to its recipe; the message names what is missing."""


def serving_weights(state: Mapping[str, Tensor], config: Config) -> dict[str, NDArray[np.float32]]:
    """The weights of the served network, ``conv1.weight`` ... ``fc8.bias``, float32, canonical shapes.

    The served network runs on mean-subtracted grey levels (0-255) and knows neither batch norm nor dropout.
    With ``constant_lrn`` it computes its norms in full, which moves its outputs by less than 1e-4 per norm.

    Args:
        state: state dict of ``network.AlexNet`` (one process' shapes).
        config: the recipe it was trained with; gives variant, batch norm, dropout and input scale.

    Raises:
        FoldError: a parameter of the recipe is missing from the state.
    """
    weights: dict[str, NDArray[np.float32]] = {}
    for name in layers_of(variant_named(config.variant)):
        weight, bias = folded(state, name, config)
        weights[f"{name}.weight"] = weight.float().numpy()
        weights[f"{name}.bias"] = bias.float().numpy()
    return weights


def folded(state: Mapping[str, Tensor], name: str, config: Config) -> tuple[Tensor, Tensor]:
    """Weight and bias (float64) of the served layer ``name``; arguments and errors as ``serving_weights``."""
    try:
        weight, bias = without_norm(state, name, config.batch_norm)
    except KeyError as error:
        raise FoldError(
            f"the state has no {error.args[0]}, which recipe {config.recipe} needs; it may be of another one"
        ) from error
    return weight * _input_factor(name, config), bias


def without_norm(state: Mapping[str, Tensor], name: str, batch_norm: bool) -> tuple[Tensor, Tensor]:
    """Weight and bias (float64) of one layer with the batch norm behind it folded in."""
    weight = state[f"{name}.weight"].detach().cpu().double()
    if not batch_norm or name == "fc8":
        return weight, state[f"{name}.bias"].detach().cpu().double()
    gain, shift, mean, variance = (
        state[f"norm_{name}.{part}"].detach().cpu().double()
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gain * torch.rsqrt(variance + BATCH_NORM_EPS)
    return weight * factor.view(-1, *[1] * (weight.dim() - 1)), shift - mean * factor


def unfolded(weights: Mapping[str, NDArray[np.float32]], config: Config) -> dict[str, Tensor]:
    """Served weights as a recipe trains them, float64: the inverse of ``serving_weights`` but for batch norm.

    A layer that the recipe puts a batch norm behind keeps its ``bias`` here; the norm has to supply it.
    """
    state = {name: torch.from_numpy(tensor).double() for name, tensor in weights.items()}
    for name in layers_of(variant_named(config.variant)):
        if f"{name}.weight" in state:
            state[f"{name}.weight"] /= _input_factor(name, config)
    return state


def _input_factor(name: str, config: Config) -> float:
    """What the inputs of a layer are multiplied by at test: the input scale, or dropout's 1 - p of 2012."""
    if name == "conv1":
        return 1 / config.input_scale
    variant = variant_named(config.variant)
    dropped = ("fc7", "fc8") if variant.dropout == "after" else ("fc6", "fc7")
    if name in dropped and variant.dropout_scale == "test" and not config.batch_norm:
        return 1 - config.dropout
    return 1.0
