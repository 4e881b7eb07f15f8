"""What the docs page lists is what there is: routes, settings, metrics, error codes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from prometheus_client import Counter

from server.metrics import Metrics
from server.proxy import ADMIN_PATHS, FORWARDED_HEADERS, OPERATOR_FIELDS
from server.settings import Settings

SERVER = Path(__file__).resolve().parents[2] / "server"
PAGE = (SERVER / "README.md").read_text()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_listed_with_its_description(name: str) -> None:
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    assert str(Settings.model_fields[name].description) in row


def test_every_metric_is_listed() -> None:
    metrics = Metrics()
    names = {
        metric._name + ("_total" if isinstance(metric, Counter) else "")
        for metric in vars(metrics).values()
        if hasattr(metric, "_name") and not metric._labelvalues
    }
    assert len(names) >= 10
    for name in names:
        assert f"| `{name}` |" in PAGE


def test_every_error_code_is_listed() -> None:
    codes: set[object] = set()
    for path in SERVER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                codes.add(node.value.value)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                codes |= {
                    node.value.value
                    for target in node.targets
                    if isinstance(target, ast.Name) and target.id == "default_code"
                }
    codes -= {None}
    assert len(codes) >= 12
    assert not {code for code in codes if f"`{code}`" not in PAGE}


def test_what_passes_and_what_does_not_is_listed() -> None:
    for header in FORWARDED_HEADERS:
        assert header.decode() in PAGE
    for name in (*OPERATOR_FIELDS, *ADMIN_PATHS):
        assert f"`{name}`" in PAGE
