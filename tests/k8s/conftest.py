"""Overlays rendered by `kubectl kustomize`, as lists of plain objects."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

K8S = Path(__file__).resolve().parents[2] / "k8s"
OVERLAYS = ("overlays/cpu", "overlays/gpu", "overlays/triton", "overlays/kserve", "training")
COMPONENTS = ("monitoring", "gateway-api", "tracing", "keys", "tls", "model-volume", "model-import")
# Two answers to one question.
EITHER = ("model-volume", "model-import")

Objects = list[dict[str, Any]]
Render = Callable[..., Objects]


@cache
def _kustomize(folder: Path) -> str:
    run = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr[:2000]
    return run.stdout


@pytest.fixture(scope="session")
def render(tmp_path_factory: pytest.TempPathFactory) -> Render:
    """`render("overlays/cpu", "keys", "tls")`: the overlay with these components added to it.

    `"import"`, a kustomization of its own, stands beside the overlay.
    """
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")

    def rendered(overlay: str, *components: str) -> Objects:
        folder = K8S / overlay
        jobs = [name for name in components if name == "import"]
        if components:
            folder = tmp_path_factory.mktemp("kustomization")
            relative = Path(os.path.relpath(K8S, folder))
            kustomization = {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "namespace": "alexnet",
                "resources": [str(relative / name) for name in (overlay, *jobs)],
                "components": [
                    str(relative / "components" / name) for name in components if name not in jobs
                ],
            }
            (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return list(yaml.safe_load_all(_kustomize(folder)))

    return rendered
