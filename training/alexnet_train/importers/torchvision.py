"""torchvision's ``.pth``: a state dict, read without executing anything (weights only)."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

from alexnet_train.importers.errors import WeightsError
from alexnet_train.importers.network import TORCHVISION_MEAN, TORCHVISION_STD, Network, fitted
from alexnet_train.network.variants import LAYERS, VARIANTS

MODULES = (*(f"features.{i}" for i in (0, 3, 6, 8, 10)), *(f"classifier.{i}" for i in (1, 4, 6)))
"""torchvision's names of conv1 ... fc8."""


def read(path: Path) -> Network:
    """The network of a ``.pth``.

    Raises:
        WeightsError: it holds something else than tensors, or another network.
        RuntimeError: torch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise WeightsError("a .pth file is read with torch: pip install '.[train]'") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} holds no weights that can be read safely: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict of tensors")
    found = {
        f"{layer}.{kind}": state[f"{module}.{kind}"].float().numpy()
        for layer, module in zip(LAYERS, MODULES, strict=True)
        for kind in ("weight", "bias")
        if f"{module}.{kind}" in state
    }
    return Network(*fitted(VARIANTS["owt"], found, path), TORCHVISION_MEAN, TORCHVISION_STD)
