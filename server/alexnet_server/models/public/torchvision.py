"""torchvision's AlexNet in files of ``torch.save``: its state dict, alone or as training programs wrap it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexnet_server.models.public.errors import WeightsError
from alexnet_server.models.public.network import TORCHVISION_MEAN, TORCHVISION_STD, Network, fitted
from alexnet_server.models.public.torch_file import Tensor, TorchFile
from alexnet_server.models.variants import LAYERS, VARIANTS

MODULES = (*(f"features.{i}" for i in (0, 3, 6, 8, 10)), *(f"classifier.{i}" for i in (1, 4, 6)))
"""torchvision's names of conv1 ... fc8."""
_WITHIN = ("state_dict", "model_state_dict", "model", "model_ema", "net", "network", "weights")
"""Where training programs keep the state dict among other things, the likeliest first."""
_WRAPPERS = {"module", "_orig_mod"}
"""What DataParallel and torch.compile put into the names, wherever they wrapped."""


def read(path: Path) -> Network:
    """The network of a ``.pth``, ``.pt``, ``.pth.tar`` or ``.ckpt``.

    Raises:
        WeightsError: it holds something else than tensors, or another network.
    """
    file = TorchFile(path)
    state = _state_dict(file.root)
    if state is None:
        raise WeightsError(f"{path} holds no state dict of tensors")
    named = _unwrapped(state)
    found = {
        f"{layer}.{kind}": file.array(named[f"{module}.{kind}"])
        for layer, module in zip(LAYERS, MODULES, strict=True)
        for kind in ("weight", "bias")
        if f"{module}.{kind}" in named
    }
    return Network(
        *fitted(VARIANTS["owt"], found, path, {name: tensor.shape for name, tensor in state.items()}),
        TORCHVISION_MEAN,
        TORCHVISION_STD,
    )


def _state_dict(root: Any) -> dict[str, Tensor] | None:
    """The tensors by name, of the first place that holds some."""
    for _ in range(3):
        if not isinstance(root, Mapping):
            return None
        tensors = {str(name): value for name, value in root.items() if isinstance(value, Tensor)}
        if any("." in name for name in tensors):
            return tensors
        root = next((root[key] for key in _WITHIN if isinstance(root.get(key), Mapping)), None)
    return None


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By torchvision's own names, without what wrapped the network or named it within a larger one."""
    names = {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): value
        for name, value in state.items()
    }
    first = f"{MODULES[0]}.weight"
    prefix = next((name.removesuffix(first) for name in names if name.endswith(f".{first}")), "")
    return {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)}
