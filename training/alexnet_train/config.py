"""Recipes: every number of a training run, frozen, one dataclass for all."""

from __future__ import annotations

from dataclasses import dataclass


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
    batch_size: int = 128
    steps: int = 0
    warmup_steps: int = 0
    decay_steps: int = 0
    """The last ``decay_steps`` bring the rate linearly to 0; before them it stays at ``rate``."""
    rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    input_scale: float = 1.0
    """Mean-subtracted grey levels are divided by this; folded into conv1 on export."""
    colour_pca: float = 0.1
    colour_gain: float = 0.0
    bfloat16: bool = False
    seed: int = 2012
    held_out: int = 4000
    """The last images of the training split, kept for selection; never trained on."""
    log_steps: int = 50
    checkpoint_steps: int = 500

    def rate_at(self, step: int) -> float:
        """The learning rate of update ``step`` (from 0): warm-up, plateau, linear decay."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = min(1.0, (self.steps - step) / self.decay_steps) if self.decay_steps else 1.0
        return self.rate * min(warm, left)


RECIPES: dict[str, Config] = {
    config.recipe: config
    for config in (
        # A CPU's way to good convolutions: 128-pixel windows at the object scale of the 256-pixel image cost
        # a fifth of a 224-pixel crop. The head of 512 units is thrown away.
        Config(
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
        ),
    )
}
