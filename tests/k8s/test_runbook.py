"""docs/operations.md against what it talks about: settings, limits, components, metrics, the example."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from alexnet_server.settings import PREFIX, Settings
from alexnet_server.telemetry.metrics import Metrics
from tests.k8s.checks import problems
from tests.k8s.conftest import COMPONENTS, K8S, OVERLAYS, Render
from tests.k8s.manifests import of_kind, settings_of, workloads

TEXT = (K8S.parent / "docs" / "operations.md").read_text()
UNITS = {"MiB": 2**20, "million": 10**6, "s": 1, "": 1}


def yaml_blocks() -> list[str]:
    """The indented ones too."""
    found = re.findall(r"^( *)```yaml\n(.*?)^ *```", TEXT, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def test_settings_it_names_exist() -> None:
    named = set(re.findall(r"ALEXNET_[A-Z_]+", TEXT))
    assert len(named) > 10
    assert {name for name in named if name.removeprefix(PREFIX).lower() not in Settings.model_fields} == set()


def test_limits_are_the_defaults() -> None:
    rows = re.findall(r"^\| .+? \| ([\d,]+) ?(\w*) \| `ALEXNET_(\w+)` \|", TEXT, re.MULTILINE)
    assert len(rows) >= 6
    for number, unit, name in rows:
        default = Settings.model_fields[name.lower()].default
        assert int(number.replace(",", "")) * UNITS[unit] == default, name


def test_folders_are_all_explained_and_no_others() -> None:
    kept = {path.parent.name for path in K8S.glob("components/*/kustomization.yaml")}
    assert kept == {*COMPONENTS, "hpa-cpu", "keda-queue", "labels"}
    for name in (*kept, *(overlay.removeprefix("overlays/") for overlay in OVERLAYS)):
        assert f"`{name}`" in TEXT or f"k8s/{name}`" in TEXT, name
    for path in re.findall(r"k8s/[\w/.-]*\w", TEXT):
        assert (K8S.parent / path).exists(), path
    for link in re.findall(r"\]\((\.\.?/[^)#]+|[\w-]+\.md)", TEXT):
        assert (K8S.parent / "docs" / link).exists(), link


def test_metrics_it_names_are_measured() -> None:
    measured = set(re.findall(rb"^# TYPE (\w+)", Metrics().render(), re.MULTILINE))
    named = set(re.findall(r"^\| (`alexnet_[^|]+)", TEXT, re.MULTILINE))
    names = {name for cell in named for name in re.findall(r"`(\w+)`", cell)}
    assert len(names) >= 7
    assert {name for name in names if name.encode() not in measured} == set()


def test_the_example_renders_and_is_sound(render: Render, tmp_path: Path) -> None:
    (example,) = [block for block in yaml_blocks() if "Kustomization" in block]
    render("overlays/cpu")  # skips where there is no kubectl
    objects = kustomize(tmp_path, example)
    assert problems(objects) == []
    (server,) = workloads(objects)
    (container,) = server.spec["containers"]
    assert re.fullmatch(r"registry\.example\.com/alexnet:[\d.]+-cpu", container["image"])
    assert settings_of(objects, container)["ALEXNET_QUEUE_SIZE"] == "256"
    routes = of_kind(objects, "HTTPRoute", "GRPCRoute")
    assert len(routes) == 2
    for route in routes:
        assert route["spec"]["parentRefs"][0]["name"] == "my-gateway"
        assert route["spec"]["hostnames"][0].endswith(".example.org")


def kustomize(folder: Path, kustomization: str) -> list[Any]:
    """The objects of a kustomization in `folder` that names ../k8s."""
    relative = os.path.relpath(K8S, folder)
    (folder / "kustomization.yaml").write_text(kustomization.replace("../k8s", relative))
    run = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return list(yaml.safe_load_all(run.stdout))


def test_the_monitoring_example_reaches_every_monitor_and_alert(render: Render, tmp_path: Path) -> None:
    (example,) = [block for block in yaml_blocks() if "runbook_url" in block]
    render("overlays/cpu")  # skips where there is no kubectl
    objects = kustomize(tmp_path, f"resources: [../k8s/overlays/triton]\n{example}")
    found = of_kind(objects, "ServiceMonitor", "PrometheusRule")
    assert {item["metadata"]["labels"]["release"] for item in found} == {"my-release"}
    (rules,) = of_kind(objects, "PrometheusRule")
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) == 7
    for rule in alerts:
        url = f"https://wiki.example.org/operations.md#{rule['alert'].lower()}"
        assert rule["annotations"]["runbook_url"] == url


def test_an_overlay_can_be_named_in_its_repository(render: Render, tmp_path: Path) -> None:
    """`REPOSITORY//k8s/overlays/cpu?ref=TAG`: nothing that an overlay needs lies outside what git keeps."""
    render("overlays/cpu")  # skips where there is no kubectl
    origin, cluster = tmp_path / "origin", tmp_path / "cluster"
    shutil.copytree(K8S, origin / "k8s")
    cluster.mkdir()
    git = ["git", "-C", str(origin), "-c", "user.name=Test", "-c", "user.email=test@localhost"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "A release"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    for overlay in OVERLAYS:
        there = f"file://{origin}//k8s/{overlay}?ref=v1"
        assert kustomize(cluster, f"resources: ['{there}']") == render(overlay)


@pytest.mark.parametrize("anchor", sorted(set(re.findall(r"\]\(#([\w-]+)\)", TEXT))))
def test_links_within_lead_somewhere(anchor: str) -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    assert anchor in anchors


def test_the_stop_is_told_as_the_manifests_have_it(render: Render) -> None:
    (server,) = workloads(render("overlays/cpu"))
    container = server.spec["containers"][0]
    settings = settings_of(render("overlays/cpu"), container)
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drained = sleep + int(settings["ALEXNET_DRAIN_DELAY_S"])
    told = [int(number) for number in re.findall(r"^\| (\d+) \| ", TEXT, re.MULTILINE)]
    assert told == [0, sleep, drained, server.spec["terminationGracePeriodSeconds"]]
    assert f"(`ALEXNET_DRAIN_DELAY_S`, {settings['ALEXNET_DRAIN_DELAY_S']} s)" in TEXT
