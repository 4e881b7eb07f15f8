"""The package stands alone: it knows nothing of HTTP, users or constitutions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import adaptive

FORBIDDEN = {"server", "constitutions", "loadtests", "tests", "fastapi", "pydantic", "httptools"}
MODULES = sorted(Path(adaptive.__path__[0]).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_module_of_the_core_imports_a_layer_above_it(path: Path) -> None:
    assert not imported(path) & FORBIDDEN
