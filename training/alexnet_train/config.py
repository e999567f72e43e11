"""Recipes: every number of a training run, frozen, one dataclass for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from alexnet_server.models.variants import ABLATED, VARIANTS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")
SWITCH = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
CHOICES = {
    "variant": (*VARIANTS, *ABLATED),
    "activation": ("relu", "tanh"),
    "update": ("2012", "sgd"),
    "mean": ("pixel", "image"),
    "colour_measure": ("deviation", "variance"),
}


class ConfigError(ValueError):
    """A setting that no run can be made of; the message says what it may be."""


@dataclass(frozen=True)
class Stage:
    """A stretch of a run with constant rates, as the authors set them by hand."""

    until_epoch: float
    weights: float
    biases: float
    conv1: float | None = None
    """Rate of conv1's weights where it differs; 0 freezes its biases as well."""
    colour: bool = True
    """Colour noise, and the divisor that goes with it."""


@dataclass(frozen=True)
class Config:
    """One training run. Rates are per update, lengths in pixels, ``steps`` in updates."""

    recipe: str
    variant: str = "2012"
    batch_norm: bool = False
    constant_lrn: bool = False
    window: int = 224
    hidden: int = 4096
    dropout: float = 0.5
    activation: Literal["relu", "tanh"] = "relu"
    batch_size: int = 128
    """Images an update, over all processes."""
    steps: int = 0
    epochs: float = 0.0
    """Length of the run; ``epochs`` where not 0, else ``steps``."""
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    decay_steps: int = 0
    """The last ``decay_steps`` bring the rate linearly to 0; before them it stays at ``rate``."""
    cosine: bool = False
    """Bring the rate to 0 along a cosine instead."""
    stages: tuple[Stage, ...] = ()
    """Rates by hand instead of ``rate`` and its schedule; with other ``epochs``, all are stretched alike."""
    plateau_epochs: float = 0.0
    """Where not 0, a stage ends when the held-out error has not improved for so many epochs."""
    update: Literal["2012", "sgd"] = "sgd"
    """The authors' (the rate inside the velocity), or torch's SGD with Nesterov momentum."""
    rate: float = 0.01
    bias_factor: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    """On weights; never on biases or on batch norm's gains and shifts (layer.cu:565)."""
    clip_gradient: float = 0.0
    """Largest norm of all gradients together; 0: no limit."""
    average_decay: float = 0.0
    """Decay per update of the weights' exponential moving average; 0: none is kept."""
    label_smoothing: float = 0.0
    input_scale: float = 1.0
    """Mean-subtracted grey levels are divided by this; folded into conv1 on export."""
    mean: Literal["pixel", "image"] = "pixel"
    fixed_order: bool = False
    """Every epoch in the order of the prepared files, which are shuffled once."""
    shared_crops: int = 1
    """So many consecutive images share one crop and mirror."""
    resized_area: float = 0.0
    """Smallest share of the image that a resized crop covers; 0: windows of fixed size."""
    resized_area_max: float = 1.0
    """Largest share; smaller windows with a smaller share keep the scale of objects."""
    colour_pca: float = 0.1
    colour_measure: Literal["deviation", "variance"] = "deviation"
    """Noise times the components' standard deviations (2012), or variances on a 0-1 scale (the text)."""
    colour_divisor: float = 1.0
    """Images with colour noise are divided by this."""
    colour_gain: float = 0.0
    cutmix: float = 0.0
    mixup: float = 0.0
    """Parameters of the Beta distributions of CutMix and Mixup; with both, half of the updates each."""
    mix_share: float = 0.9
    """The part of the run in which images are mixed."""
    mix_every: int = 1
    """One update in so many is mixed."""
    bfloat16: bool = False
    tf32: bool = False
    """Round the factors of float32 products to 10 bits on CUDA, for speed; bfloat16 implies it."""
    compile: bool = False
    """Compile the step, on CUDA: one rank replays it from graphs; of a tower, what lies between crossings."""
    deterministic: bool = False
    """Same weights bit for bit on CUDA too, at a price."""
    seed: int = 2012
    classes: int = 0
    """Train on the first so many classes only; 0: all."""
    held_out: int = 4000
    """The last images of the training split, kept for selection; never trained on."""
    log_steps: int = 50
    checkpoint_steps: int = 500
    evaluate_epochs: float = 0.0
    """Held-out error every so many epochs; 0: with each checkpoint."""

    def __post_init__(self) -> None:
        """Refuse what no run can be made of.

        Raises:
            ConfigError: which setting, and what it may be.
        """
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}={getattr(self, name)}: choose one of {', '.join(choices)}")
        for name in (
            "batch_size",
            "window",
            "hidden",
            "log_steps",
            "checkpoint_steps",
            "shared_crops",
            "mix_every",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.resized_area <= self.resized_area_max <= 1:
            raise ConfigError(
                f"resized_area={self.resized_area}, resized_area_max={self.resized_area_max}: "
                "shares of the image, the first no larger than the second, both from 0 to 1"
            )
        if self.window > 256:
            raise ConfigError(f"window={self.window}: crops come out of 256 pixels")
        if (self.cutmix or self.mixup) and self.batch_size % 2:
            raise ConfigError(f"batch_size={self.batch_size}: mixing pairs images, so it must be even")

    def length(self, count: int) -> int:
        """Updates in the whole run on ``count`` training images."""
        return round(self.epochs * count / self.batch_size) if self.epochs else self.steps


def config_from(values: Mapping[str, Any]) -> Config:
    """The recipe that ``asdict`` made ``values`` of; fields it does not name take their defaults.

    Raises:
        ConfigError: a field this version does not know.
    """
    unknown = set(values) - {field.name for field in fields(Config)}
    if unknown:
        raise ConfigError(f"unknown settings {', '.join(sorted(unknown))}: made by a newer version?")
    stages = tuple(Stage(**stage) for stage in values.get("stages", ()))
    return Config(**{**values, "stages": stages})


# The epochs of #145's run on ILSVRC-2012 (layer-params-145.cfg:182-197), ended at 90; biases at .02 to the
# end, as that file leaves them.
STAGES_2012 = (
    Stage(25, 0.01, 0.02),
    Stage(51, 0.001, 0.02),
    Stage(67, 0.0001, 0.02),
    Stage(72, 0.0001, 0.02, conv1=0.00001, colour=False),
    Stage(79, 0.0001, 0.02, conv1=0.0, colour=False),
    Stage(90, 0.00001, 0.02, conv1=0.0, colour=False),
)
# Section 5 of the paper: one rate for all layers, divided by 10 three times; its epochs are not given.
STAGES_PAPER = (Stage(25, 1e-2, 1e-2), Stage(51, 1e-3, 1e-3), Stage(79, 1e-4, 1e-4), Stage(90, 1e-5, 1e-5))


def with_bias_drop(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages with biases at a tenth from the first drop on (layer-params-120-4gpu-auto2.cfg ff.)."""
    first = stages[0]
    return (first, *(replace(stage, biases=first.biases / 10) for stage in stages[1:]))


RECIPE_2012 = Config(
    "2012",
    epochs=90,
    stages=STAGES_2012,
    update="2012",
    mean="image",
    fixed_order=True,
    shared_crops=32,
    colour_divisor=1.1,
    compile=True,
    held_out=10_000,
    checkpoint_steps=5000,
    evaluate_epochs=1.0,
)
RECIPE_PAPER = replace(
    RECIPE_2012,
    recipe="paper",
    variant="paper",
    stages=STAGES_PAPER,
    shared_crops=1,
    colour_measure="variance",
    colour_divisor=1.0,
)
RECIPE_MODERN = Config(
    "modern",
    batch_norm=True,
    batch_size=1024,
    epochs=90,
    warmup_epochs=5,
    cosine=True,
    rate=0.08,
    average_decay=0.9995,
    clip_gradient=5.0,
    label_smoothing=0.1,
    input_scale=60.0,
    resized_area=0.25,
    cutmix=1.0,
    mixup=0.2,
    bfloat16=True,
    compile=True,
    held_out=10_000,
    checkpoint_steps=5000,
    evaluate_epochs=1.0,
)

# A CPU's way to good convolutions: 128-pixel windows at the object scale of the 256-pixel image cost a fifth
# of a 224-pixel crop. The head of 512 units is thrown away.
RECIPE_TINY_CONVOLUTIONS = Config(
    "tiny-convolutions",
    batch_norm=True,
    constant_lrn=True,
    window=128,
    hidden=512,
    dropout=0.2,
    steps=6000,
    warmup_steps=200,
    decay_steps=2500,
    rate=0.04,
    label_smoothing=0.1,
    input_scale=60.0,
    colour_gain=0.15,
    bfloat16=True,
)

RECIPES: dict[str, Config] = {
    config.recipe: config
    for config in (
        RECIPE_2012,
        RECIPE_PAPER,
        RECIPE_MODERN,
        replace(RECIPE_2012, recipe="2012-bias-drop", stages=with_bias_drop(STAGES_2012)),
        replace(RECIPE_2012, recipe="2012-plateau", plateau_epochs=5.0, epochs=200),
        replace(RECIPE_2012, recipe="2012-tiny", held_out=4000, checkpoint_steps=500),
        replace(RECIPE_PAPER, recipe="paper-tiny", held_out=4000, checkpoint_steps=500),
        replace(
            RECIPE_MODERN,
            recipe="modern-tiny",
            batch_size=512,
            rate=0.04,
            epochs=100,
            held_out=4000,
            checkpoint_steps=500,
        ),
        RECIPE_TINY_CONVOLUTIONS,
        # One long run instead of several short ones: most of a run's gain comes while the rate falls. Areas
        # of .15 to .4 keep the scale of objects in a 128-pixel window.
        replace(
            RECIPE_TINY_CONVOLUTIONS,
            recipe="tiny-convolutions-long",
            steps=37_500,
            decay_steps=15_000,
            resized_area=0.15,
            resized_area_max=0.4,
            cutmix=1.0,
            mix_every=2,
            average_decay=0.999,
        ),
    )
}

ABOUT = {
    "2012": "net #145 of the authors' code",
    "paper": "the paper's text where it differs from the code",
    "modern": "batch norm, bfloat16, cosine, CutMix",
    "2012-bias-drop": "2012, the rate of biases drops too",
    "2012-plateau": "2012, the rate drops when the error stops falling",
    "2012-tiny": "2012 for Tiny ImageNet",
    "paper-tiny": "paper for Tiny ImageNet",
    "modern-tiny": "modern for Tiny ImageNet",
    "tiny-convolutions": "stage one on a CPU",
    "tiny-convolutions-long": "stage one on a CPU, in one long run",
}
"""What each recipe is, for `--help`."""


def recipe_named(name: str, changes: Sequence[str] = ()) -> Config:
    """The recipe ``name`` with ``FIELD=VALUE`` applied.

    Raises:
        ConfigError: no such recipe, or a change that it cannot take.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}")
    config = changed(RECIPES[name], changes)
    if config.epochs and any(change.partition("=")[0] == "steps" for change in changes):
        raise ConfigError(f"--set steps: {name} counts epochs, and would ignore it; use --set epochs=N")
    return config


def changed(config: C, changes: Sequence[str]) -> C:
    """A copy of the frozen dataclass ``config`` with ``FIELD=VALUE`` applied, values typed as they were.

    Raises:
        ConfigError: no such field, or a value that is none of its type.
    """
    values: dict[str, object] = {}
    for change in changes:
        name, _, text = change.partition("=")
        if not hasattr(config, name):
            raise ConfigError(f"--set {change}: no field {name!r}")
        kind = type(getattr(config, name))
        if kind not in (bool, int, float, str):
            raise ConfigError(f"--set {change}: {name} is no single number; choose another recipe")
        try:
            values[name] = SWITCH[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError) as error:
            wanted = "true or false" if kind is bool else f"{kind.__name__} values"
            raise ConfigError(f"--set {change}: {name} takes {wanted}") from error
    return replace(config, **values)
