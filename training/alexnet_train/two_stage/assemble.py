"""The two stages joined: convolutions and classifier to the weights that are exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alexnet_train import checkpoint
from alexnet_train.config import config_from
from alexnet_train.network.fold import serving_weights, without_norm

Array = NDArray[np.float32]
FACTORED = ("fc6", "fc7")


def join(convolutions: Path, classifier: Path) -> tuple[dict[str, Array], dict[str, tuple[Array, Array]]]:
    """Folded weights of the whole network, ``conv1.weight`` ... ``fc8.bias``, and the factors of fc6 and fc7.

    A factored layer's weight is ``left @ right``, (outputs, rank) times (rank, inputs), the batch norm folded
    into ``left``; the factors are what a small weight file stores. A layer with a full weight has none.

    Raises:
        CheckpointError: a checkpoint is unreadable.
        FoldError: a parameter is missing.
    """
    first, second = checkpoint.load(convolutions), checkpoint.load(classifier)
    state: dict[str, Tensor] = {n: t for n, t in checkpoint.serving_state(first).items() if "fc" not in n}
    factors: dict[str, tuple[Array, Array]] = {}
    for name, tensor in second["model"].items():
        layer, _, part = name.partition(".")
        state[f"norm_{layer}.{part.removeprefix('norm.')}" if part.startswith("norm.") else name] = tensor
    for name in FACTORED:
        if f"{name}.weight" in state:
            continue
        left, right = state.pop(f"{name}.left"), state.pop(f"{name}.right")
        folded, _ = without_norm(state | {f"{name}.weight": left}, name, True)
        factors[name] = folded.float().numpy(), right.numpy()
        state[f"{name}.weight"] = left @ right
    return serving_weights(state, config_from(first["config"])), factors
