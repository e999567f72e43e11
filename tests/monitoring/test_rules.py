"""The rules are valid, every alert fires when it should, and each has its page in the runbook."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

HERE = Path(__file__).parent
RUNBOOK = HERE.parents[1] / "docs" / "operations.md"


def promtool(*arguments: str, cwd: Path | None = None) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    run = subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def alerts(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def test_rules_are_valid(rules_file: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", str(rules_file))


def test_alerts_fire_when_they_should(rules_file: Path) -> None:
    shutil.copy(HERE / "rules_test.yaml", rules_file.parent)
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yaml", cwd=rules_file.parent)


def test_every_alert_is_seen_firing(rule_groups: list[dict[str, Any]]) -> None:
    cases = yaml.safe_load((HERE / "rules_test.yaml").read_text())["tests"]
    fired = {check["alertname"] for case in cases for check in case["alert_rule_test"] if check["exp_alerts"]}
    assert fired == {rule["alert"] for rule in alerts(rule_groups)}


def test_a_rule_that_is_off_is_found(rules_file: Path, tmp_path: Path) -> None:
    """The unit tests can fail: refusals no longer counted, and a threshold moved."""
    shutil.copy(HERE / "rules_test.yaml", tmp_path)
    for right, wrong in (("|overloaded", ""), ("> 0.7", "> 0.9"), ('call="unary",', "")):
        (tmp_path / "rules.yaml").write_text(rules_file.read_text().replace(right, wrong))
        with pytest.raises(AssertionError, match="FAILED"):
            promtool("test", "rules", "rules_test.yaml", cwd=tmp_path)


def test_every_alert_says_what_to_do(rule_groups: list[dict[str, Any]]) -> None:
    headings = {line.strip("# ").lower() for line in RUNBOOK.read_text().splitlines() if line.startswith("#")}
    for rule in alerts(rule_groups):
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        url = urlsplit(rule["annotations"]["runbook_url"])
        assert (url.scheme, url.fragment) == ("https", rule["alert"].lower())
        assert url.path.endswith(RUNBOOK.name)
        assert rule["alert"].lower() in headings
