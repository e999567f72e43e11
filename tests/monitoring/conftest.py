"""The rules and the dashboard as they are shipped, and what they name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

MONITORING = Path(__file__).resolve().parents[2] / "k8s" / "components" / "monitoring"
_NAME = re.compile(r"\b(?:alexnet|process)[:_][a-zA-Z0-9_:]+\b")


@pytest.fixture(scope="session")
def rule_groups() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())["spec"][
        "groups"
    ]
    return groups


@pytest.fixture(scope="session")
def rules_file(rule_groups: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rules as Prometheus itself reads them."""
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": rule_groups}))
    return path


@pytest.fixture(scope="session")
def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return read


def rule_expressions(groups: list[dict[str, Any]]) -> list[str]:
    return [rule["expr"] for group in groups for rule in group["rules"]]


def dashboard_expressions(board: dict[str, Any]) -> list[str]:
    """Every panel's queries, with Grafana's variables filled in."""
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    return [e.replace("$__rate_interval", "1m").replace("$namespace", ".*") for e in expressions]


def metric_names(expression: str) -> set[str]:
    """Names of ours and of the process in a PromQL expression."""
    return set(_NAME.findall(re.sub(r'"[^"]*"', '""', expression)))


def triton_names(expression: str) -> set[str]:
    """Names of Triton's metrics in a PromQL expression."""
    return set(re.findall(r"\bnv_\w+", expression))
