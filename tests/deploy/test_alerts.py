"""Alerts fire when they should, as Prometheus itself works it out."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import load

_CASES = Path(__file__).with_name("alerts_test.yaml")


def _write_rules(folder: Path) -> Path:
    rules = folder / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": load("gpu").of("PrometheusRule")[0]["spec"]["groups"]}))
    return rules


def _run(folder: Path, rules: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("there is no promtool on the PATH, which is in Debian's package prometheus")
    cases = folder / "cases.yaml"
    cases.write_text(_CASES.read_text().replace("RULES", str(rules)))
    return subprocess.run([program, "test", "rules", str(cases)], capture_output=True, text=True, check=False)


def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    done = _run(tmp_path, _write_rules(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_that_never_fires_is_found(tmp_path: Path) -> None:
    rules = _write_rules(tmp_path)
    rules.write_text(rules.read_text().replace("triserve_retries_total", "triserve_retries_totals"))
    done = _run(tmp_path, rules)
    assert done.returncode != 0
    assert "alertname: TriserveRetrying" in done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    cases = yaml.safe_load(_CASES.read_text())["tests"]
    firing = {case["alertname"] for test in cases for case in test["alert_rule_test"] if case["exp_alerts"]}
    groups = load("gpu").of("PrometheusRule")[0]["spec"]["groups"]
    assert firing == {rule["alert"] for group in groups for rule in group["rules"]}
