"""AlexNet in PyTorch, every variant; one process here, one of two towers in ``towers``.

Parameters carry the canonical names and shapes of ``variants.parameter_shapes``. With batch norm (a training
aid, never exported) the norm stands directly behind its convolution or linear layer, where it folds exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet_server.models.variants import LAYERS, Variant, layers_of, parameter_shapes, variant_named
from alexnet_train.config import Config
from alexnet_train.network.draws import Draws
from alexnet_train.network.response_norm import response_norm, spatial_norm

LAST_NORM_GAIN = 0.3
"""Initial gain of fc7's batch norm: fc8 sums 4,096 unit-variance inputs, and training diverges at 1."""


def convolve_by_blocks(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """A strided convolution as a stride-1 convolution over ``stride`` x ``stride`` blocks; the same sums.

    conv1's three input channels leave matrix units idle and its weight gradient is the slowest part of a CPU
    step; over 4x4 blocks it has 48 channels and a 3x3 kernel and runs about 1.5 times faster.
    """
    kernel = weight.shape[-1]
    blocks = -(-kernel // stride)
    weight = F.pad(weight, (0, blocks * stride - kernel) * 2)
    outputs = (x.shape[-1] - kernel) // stride + 1
    side = (outputs - 1 + blocks) * stride
    x = F.pad(x, (0, side - x.shape[-1]) * 2)
    return F.conv2d(F.pixel_unshuffle(x, stride), F.pixel_unshuffle(weight, stride), bias)


class Layer(nn.Module):
    """The weights of one convolution or linear layer; what is done with them stands in ``AlexNet``."""

    weight: nn.Parameter
    bias: nn.Parameter | None


class AlexNet(nn.Module):
    """One network: ``forward`` maps prepared crops (N, 3, crop, crop) float to logits (N, classes).

    A network may be spread over ``processes`` processes; each then owns that share of the output rows of
    every layer but fc8, and ``join`` is where the activations cross.

    Args:
        variant: which AlexNet.
        classes: number of classes.
        batch_norm: put a batch norm behind conv1-5, fc6 and fc7, whose biases it then replaces.
        dropout: probability of dropping a unit of fc6 and fc7.
        window: side of the crops in pixels; anything but the variant's crop shrinks fc6 with pool5.
        constant_lrn: replace both norms by their value at zero input. Behind batch norm a unit-variance input
            moves their denominators by less than 1e-4, below the resolution of bfloat16.
        activation: ReLU, or tanh for the paper's Figure 1.
    """

    processes: ClassVar[int] = 1

    def __init__(
        self,
        variant: Variant,
        classes: int,
        *,
        batch_norm: bool = False,
        dropout: float = 0.5,
        window: int | None = None,
        hidden: int | None = None,
        constant_lrn: bool = False,
        activation: Literal["relu", "tanh"] = "relu",
    ) -> None:
        super().__init__()
        self.variant, self.classes, self.dropout = variant, classes, dropout
        self.batch_norm, self.constant_lrn = batch_norm, constant_lrn
        self.towers_here: tuple[str, ...] = ("a", "b")
        self.activation: Callable[[Tensor], Tensor] = F.relu if activation == "relu" else torch.tanh
        shapes = parameter_shapes(variant, classes)
        hidden = hidden or variant.hidden
        pooled = variant.channels[-1] * pool5_side(variant, window or variant.crop) ** 2
        shapes["fc6.weight"], shapes["fc6.bias"] = (hidden, pooled), (hidden,)
        shapes["fc7.weight"], shapes["fc7.bias"] = (hidden, hidden), (hidden,)
        shapes["fc8.weight"] = (classes, hidden)
        for name in layers_of(variant):
            rows, *kernel = shapes[f"{name}.weight"]
            rows = rows if name == "fc8" else rows // self.processes
            layer = Layer()
            layer.weight = nn.Parameter(torch.empty(rows, *kernel))
            normed = batch_norm and name != "fc8"
            layer.bias = None if normed else nn.Parameter(torch.empty(rows))
            self.add_module(name, layer)
            if normed:
                kind = nn.BatchNorm2d if name.startswith("conv") else nn.BatchNorm1d
                self.add_module(f"norm_{name}", kind(rows))

    @classmethod
    def of(cls, config: Config, classes: int) -> Self:
        """The network of a recipe with uninitialised weights."""
        return cls(
            variant_named(config.variant),
            classes,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
            window=config.window,
            hidden=config.hidden,
            constant_lrn=config.constant_lrn,
            activation=config.activation,
        )

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the initial weights: the variant's sigmas and biases, or He's where batch norm is used."""
        for name in layers_of(self.variant):
            i, layer = LAYERS.index(name), self.layer(name)
            fan_in = layer.weight[0].numel()
            with torch.no_grad():
                if self.batch_norm:
                    layer.weight.normal_(
                        0, (2 / fan_in) ** 0.5 if name != "fc8" else 0.01, generator=generator
                    )
                    biases = torch.zeros(())
                elif self.variant.sigma is None:
                    bound = fan_in**-0.5
                    layer.weight.uniform_(-bound, bound, generator=generator)
                    biases = torch.empty(len(layer.weight)).uniform_(-bound, bound, generator=generator)
                else:
                    layer.weight.normal_(0, self.variant.sigma[i], generator=generator)
                    biases = torch.tensor(self.variant.bias[i])
                if layer.bias is not None:
                    layer.bias.copy_(biases.expand_as(layer.bias))
        if self.batch_norm:
            gain = self.get_parameter("norm_fc7.weight")
            nn.init.constant_(gain, LAST_NORM_GAIN)

    def layer(self, name: str) -> Layer:
        """The layer ``conv1`` ... ``fc8``."""
        layer = self.get_submodule(name)
        assert isinstance(layer, Layer)
        return layer

    def _affine(self, name: str, x: Tensor) -> Tensor:
        """The convolution or linear layer ``name`` and the batch norm behind it."""
        weight, bias = self.layer(name).weight, self.layer(name).bias
        if name.startswith("fc"):
            x = F.linear(x, weight, bias)
        elif name == "conv1":
            before, after = self.variant.conv1_padding
            x = convolve_by_blocks(F.pad(x, (before, after) * 2), weight, bias, 4)
        else:
            groups = max(1, self.variant.groups[int(name[-1]) - 1] // self.processes)
            x = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=groups)
        return self.get_submodule(f"norm_{name}")(x) if self.batch_norm and name != "fc8" else x

    def _steps(self, x: Tensor, steps: tuple[str, ...]) -> Tensor:
        """Run what follows a convolution, in the variant's order."""
        variant = self.variant
        for step in steps:
            if step == "relu":
                x = self.activation(x)
            elif step == "pool":
                x = F.max_pool2d(x, *variant.pool, ceil_mode=True)
            elif step == "lrn" and variant.lrn:
                towers = 2 // self.processes if variant.lrn_per_tower else 1
                x = (
                    x * variant.lrn.k**-variant.lrn.beta
                    if self.constant_lrn
                    else response_norm(x, variant.lrn, towers)
                )
            elif step == "spatial_norm" and variant.spatial_norm and not self.constant_lrn:
                x = spatial_norm(x, variant.spatial_norm)
        return x

    def pool5(self, x: Tensor) -> Tensor:
        """The five convolutions: crops (N, 3, crop, crop), mean subtracted, to (N, channels, 6, 6)."""
        return self.layers3to5(self.join(self.layers1and2(x)))

    def conv5_maps(self, x: Tensor) -> Tensor:
        """The five convolutions of (N, 3, side, side), mean subtracted, before conv5's ReLU."""
        return self._convolutions3to5(self.join(self.layers1and2(x)))

    def layers1and2(self, x: Tensor) -> Tensor:
        """Crops (N, 3, side, side) to pool2, before activations cross."""
        x = self._steps(self._affine("conv1", x), self.variant.layer1)
        return self._steps(self._affine("conv2", x), self.variant.layer2)

    def layers3to5(self, x: Tensor) -> Tensor:
        """Both towers' pool2 to pool5, before activations cross."""
        return self.pooled5(self._convolutions3to5(x))

    def _convolutions3to5(self, x: Tensor) -> Tensor:
        x = self.activation(self._affine("conv3", x))
        x = x if self.variant.without_conv4 else self.activation(self._affine("conv4", x))
        return self._affine("conv5", x)

    def pooled5(self, x: Tensor) -> Tensor:
        """ReLU and pooling: conv5 (N, channels, 13, 13) to pool5 (N, channels, 6, 6)."""
        return self._steps(x, self.variant.layer5)

    def classify(self, pool5: Tensor, draws: Draws | None = None) -> Tensor:
        """The fully connected layers: pool5 (N, channels, 6, 6) or flat to logits (N, classes)."""
        return self._affine("fc8", self.join(self.hidden_units(pool5, draws)))

    def hidden_units(self, pool5: Tensor, draws: Draws | None = None) -> Tensor:
        """fc6 and fc7: pool5 to (N, hidden), what goes into fc8."""
        return self.layer7(self.join(self.layer6(self.join(pool5), draws)), draws)

    def layer6(self, pool5: Tensor, draws: Draws | None) -> Tensor:
        """Both towers' pool5 to fc6's units (N, hidden), before activations cross."""
        return self._units("fc6", pool5.flatten(1), draws)

    def layer7(self, units: Tensor, draws: Draws | None) -> Tensor:
        """Both towers' units of fc6 to fc7's (N, hidden)."""
        return self._units("fc7", units, draws)

    def _units(self, name: str, x: Tensor, draws: Draws | None) -> Tensor:
        before = self.variant.dropout == "before"
        x = self._drop(name, x, draws) if before else x
        x = self.activation(self._affine(name, x))
        return x if before else self._drop(name, x, draws)

    def join(self, x: Tensor) -> Tensor:
        """Both towers' maps or units; one process holds both already."""
        return x

    def _drop(self, name: str, x: Tensor, draws: Draws | None) -> Tensor:
        """Dropout, scaled by 1/(1-p) in training or by 1-p at test, where the variant scales it."""
        scaled_in_training = self.variant.dropout_scale == "train" or self.batch_norm
        if self.dropout == 0 or (scaled_in_training and not self.training):
            return x
        if not self.training:
            return x * (1 - self.dropout)
        if draws is None:
            kept = torch.rand_like(x) >= self.dropout
        else:
            units = x.shape[1] // len(self.towers_here)
            kept = torch.cat(
                [draws.uniform(f"{name} tower {t}", units) >= self.dropout for t in self.towers_here], 1
            )
        return x * kept * (1 / (1 - self.dropout) if scaled_in_training else 1)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """Prepared crops (N, 3, crop, crop) to logits (N, classes).

        ``draws`` gives the dropout masks in training; without them torch's default generator does.
        """
        return self.classify(self.pool5(x), draws)


def pool5_side(variant: Variant, window: int) -> int:
    """Side of pool5 in cells for crops of ``window`` pixels: 6 for the variant's own crop."""
    before, after = variant.conv1_padding
    side = (window + before + after - 11) // 4 + 1
    size, stride = variant.pool
    for _ in range(3):
        side = -((size - side) // stride) + 1
    return side
