"""The committed Prometheus files: `promtool` accepts them, their unit tests pass, and every alert and rule has one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from server.board import BOARD
from server.watching import SCRAPED_ENGINE, SCRAPED_PROXY
from tests.e2e.prometheus import FOLDER, needs_promtool
from tests.server.test_board import exported

RULES: Final[list[dict[str, Any]]] = [
    rule
    for name in ("recording.yml", "alerts.yml")
    for group in yaml.safe_load((FOLDER / name).read_text())["groups"]
    for rule in group["rules"]
]
RECORDED: Final = {rule["record"] for rule in RULES if "record" in rule}
ALERTS: Final = {rule["alert"] for rule in RULES if "alert" in rule}
UNIT_TESTS: Final = sorted((FOLDER / "tests").glob("*.yml"))


def promtool(*arguments: str | Path) -> None:
    ran = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)  # noqa: S607
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_promtool
def test_promtool_accepts_the_configuration_and_the_rules_that_it_names() -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", FOLDER / "recording.yml", FOLDER / "alerts.yml")


@needs_promtool
@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.name)
def test_the_rules_do_what_their_unit_tests_say(path: Path) -> None:
    promtool("test", "rules", path)


def test_every_alert_is_tested_to_fire_and_to_keep_quiet() -> None:
    tests = yaml.safe_load((FOLDER / "tests" / "alerts.yml").read_text())["tests"]
    asked = [check for test in tests for check in test["alert_rule_test"]]
    assert {check["alertname"] for check in asked if check.get("exp_alerts")} == ALERTS
    assert {check["alertname"] for check in asked if not check.get("exp_alerts")} == ALERTS


def test_rules_ask_for_series_that_exist() -> None:
    names = exported()
    for rule in RULES:
        for name in re.findall(r"(?<![\w:])preamble_\w+", rule["expr"]):
            assert name in names, name
        for name in re.findall(r"job:\w+:\w+", rule["expr"]):
            assert name in RECORDED, name


def test_recorded_names_are_level_metric_operation() -> None:
    assert not [name for name in RECORDED if not re.fullmatch(r"job:preamble_\w+:\w+", name)]


def test_the_board_works_without_the_recorded_rules() -> None:
    assert not [query for panel in BOARD.panels() for query in panel.queries if "job:" in query.expression]


def test_every_alert_says_what_is_wrong_how_bad_and_is_in_the_docs() -> None:
    page = (FOLDER.parent / "README.md").read_text()
    for rule in RULES:
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"critical", "warning"}
            assert set(rule["annotations"]) == {"summary", "description"}
            assert f"| `{rule['alert']}` |" in page


def test_what_serve_prints_are_the_targets_that_are_scraped() -> None:
    scraped = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in scraped}
    assert targets == {"preamble": [SCRAPED_PROXY], "vllm": [SCRAPED_ENGINE]}
