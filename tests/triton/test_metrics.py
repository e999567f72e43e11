"""What dashboard and autoscaler ask of Triton's metrics is there, under these names."""

from __future__ import annotations

import json
import re
import urllib.request

from tests.triton.repositories import CHECKOUT
from tests.triton.triton_process import TritonProcess

K8S = CHECKOUT / "k8s"


def test_names_are_tritons(triton: TritonProcess) -> None:
    board = json.loads((K8S / "components/monitoring/dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    asked.append((K8S / "overlays/triton/scaledobject.yaml").read_text())
    names = set(re.findall(r"\bnv_\w+", "\n".join(asked)))
    assert len(names) >= 5
    with urllib.request.urlopen(f"http://127.0.0.1:{triton.metrics_port}/metrics", timeout=30) as answer:
        told = set(re.findall(r"^# TYPE (\w+)", answer.read().decode(), re.MULTILINE))
    assert names - told == set()
