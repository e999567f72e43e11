"""The five AlexNets people mean by the name, as one dataclass of their differences.

Sources: ``2012`` is net #145 of the authors' released code (layers-145.cfg and its parameter logs), ``paper``
the text of Krizhevsky, Sutskever and Hinton, NIPS 2012; ``caffe`` and ``caffenet`` BVLC's train_val.prototxt
files; ``owt`` torchvision's network after "One weird trick" (arXiv:1404.5997). Free of torch, so that
importers and graph builders work where only numpy is installed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Step = Literal["relu", "lrn", "spatial_norm", "pool"]
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


@dataclass(frozen=True)
class ResponseNorm:
    """Local response normalisation, ``x * (k + alpha * sum(x**2 over size neighbours)) ** -beta``.

    ``alpha`` multiplies the plain sum: libraries that divide by the window's size (Caffe, PyTorch, ONNX, and
    the 2012 code itself) take ``alpha * size``.
    """

    k: float
    alpha: float
    beta: float = 0.75
    size: int = 5


@dataclass(frozen=True)
class Variant:
    """How one AlexNet differs from another; lengths in pixels or channels, eight-tuples follow ``LAYERS``."""

    name: str
    channels: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    groups: tuple[int, int, int, int, int] = (1, 2, 1, 2, 2)
    hidden: int = 4096
    crop: int = 224
    conv1_padding: tuple[int, int] = (0, 3)
    """Zeros before (top, left) and after (bottom, right)."""
    layer1: tuple[Step, ...] = ("relu", "lrn", "pool")
    layer2: tuple[Step, ...] = ("relu", "lrn", "pool")
    layer5: tuple[Step, ...] = ("relu", "pool")
    """What follows conv1, conv2 and conv5. conv3 and conv4 are followed by ReLU in every variant."""
    pool: tuple[int, int] = (3, 2)
    """Window and stride of the three max-pools, in cells; the output's side is rounded up (layer.py:1164)."""
    without_conv4: bool = False
    """Leave conv4 out, for the paper's remark that any middle layer is worth about 2 % top-1."""
    lrn: ResponseNorm | None = None
    lrn_per_tower: bool = False
    spatial_norm: ResponseNorm | None = None
    """The extra norm over a ``size`` x ``size`` neighbourhood of the same map, after layer 2's LRN."""
    channel_order: Literal["RGB", "BGR"] = "RGB"
    mean: Literal["image", "pixel"] = "image"
    sigma: tuple[float, ...] | None = (0.01,) * 8
    """Standard deviation of the initial weights; None for PyTorch's default (kaiming-uniform)."""
    bias: tuple[float, ...] = (0.0,) * 8
    dropout: Literal["after", "before"] = "after"
    """Behind fc6 and fc7 (their outputs) or before them (their inputs)."""
    dropout_scale: Literal["train", "test"] = "test"
    """Where the factor for dropout is applied: x2 in training, or x0.5 at test as in 2012."""

    @property
    def towers(self) -> bool:
        """True when the network splits into two towers as the two GPUs of 2012 held them."""
        return self.groups == (1, 2, 1, 2, 2) and (self.lrn is None or self.lrn_per_tower)


VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant(
            "2012",
            layer1=("lrn", "pool", "relu"),
            layer2=("relu", "lrn", "spatial_norm", "pool"),
            layer5=("pool", "relu"),
            # layer-params-145-2010.cfg:137-163 gives scale 1e-4 and 1e-3; layer.py:1183 divides them by the
            # window's 5 and 25 elements.
            lrn=ResponseNorm(k=2.0, alpha=1e-4 / 5),
            lrn_per_tower=True,
            spatial_norm=ResponseNorm(k=1.0, alpha=1e-3 / 25),
            sigma=(0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01),
            bias=(0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0),
        ),
        Variant(
            "paper",
            lrn=ResponseNorm(k=2.0, alpha=1e-4),
            lrn_per_tower=True,
            bias=(0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0),
        ),
        Variant(
            "caffe",
            crop=227,
            conv1_padding=(0, 0),
            lrn=ResponseNorm(k=1.0, alpha=1e-4 / 5),
            channel_order="BGR",
            sigma=(0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.01),
            bias=(0.0, 0.1, 0.0, 0.1, 0.1, 0.1, 0.1, 0.0),
            dropout_scale="train",
        ),
        Variant(
            "caffenet",
            crop=227,
            conv1_padding=(0, 0),
            layer1=("relu", "pool", "lrn"),
            layer2=("relu", "pool", "lrn"),
            lrn=ResponseNorm(k=1.0, alpha=1e-4 / 5),
            channel_order="BGR",
            sigma=(0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.01),
            bias=(0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0),
            dropout_scale="train",
        ),
        Variant(
            "owt",
            channels=(64, 192, 384, 256, 256),
            groups=(1, 1, 1, 1, 1),
            conv1_padding=(2, 2),
            layer1=("relu", "pool"),
            layer2=("relu", "pool"),
            mean="pixel",
            sigma=None,
            dropout="before",
            dropout_scale="train",
        ),
    )
}


# What section 4 and the authors' parameter logs take away from net #145, one thing at a time.
_FULL = VARIANTS["2012"]
ABLATED: dict[str, Variant] = {
    v.name: v
    for v in (
        replace(_FULL, name="2012-no-lrn", lrn=None, spatial_norm=None),
        replace(_FULL, name="2012-no-overlap", pool=(2, 2)),
        replace(_FULL, name="2012-no-links", groups=(1, 2, 2, 2, 2)),
        replace(_FULL, name="2012-no-conv4", without_conv4=True),
        # conv5 and what follows it keep their size (section 3.2, footnote).
        replace(
            _FULL,
            name="2012-half",
            channels=(48, 128, 192, 192, 256),
            groups=(1, 1, 1, 1, 1),
            lrn_per_tower=False,
        ),
    )
}


def variant_named(name: str) -> Variant:
    """The variant or ablated variant of that name; KeyError for any other."""
    return VARIANTS[name] if name in VARIANTS else ABLATED[name]


def layers_of(variant: Variant) -> tuple[str, ...]:
    """The layers with weights, in order: ``LAYERS``, less what an ablation leaves out."""
    return tuple(name for name in LAYERS if not (variant.without_conv4 and name == "conv4"))


def parameter_shapes(variant: Variant, classes: int) -> dict[str, tuple[int, ...]]:
    """Shapes of every parameter, one-process ("canonical") layout, keyed ``conv1.weight`` ... ``fc8.bias``.

    Convolution weights are (out, in / groups, height, width), fully connected ones (out, in); fc6's inputs
    are pool5 flattened channel first, tower a's channels before tower b's.
    """
    kernels = (11, 5, 3, 3, 3)
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for i, (out, group, kernel) in enumerate(zip(variant.channels, variant.groups, kernels, strict=True)):
        if f"conv{i + 1}" not in layers_of(variant):
            continue
        shapes[f"conv{i + 1}.weight"] = (out, inputs // group, kernel, kernel)
        shapes[f"conv{i + 1}.bias"] = (out,)
        inputs = out
    inputs *= 6 * 6
    for name, out in (("fc6", variant.hidden), ("fc7", variant.hidden), ("fc8", classes)):
        shapes[f"{name}.weight"] = (out, inputs)
        shapes[f"{name}.bias"] = (out,)
        inputs = out
    return shapes
