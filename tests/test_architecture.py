"""Who may import whom: `server` composes; `adaptive` and `constitutions` know neither it nor each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "constitutions": set[str](),
    "adaptive": set[str](),
    "server": {"adaptive", "constitutions"},
}
OURS = {"server", "adaptive", "constitutions", "loadtests", "tests"}
# Seconds and hundreds of megabytes: never in the process that answers requests.
HEAVY = {"torch", "transformers", "vllm", "gguf", "accelerate"}


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Return the first part of every module that `path` imports."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_it_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        forbidden = set(imports(path)) & (OURS - ALLOWED[package] - {package})
        assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}"


def test_only_the_conversion_script_imports_heavy_packages() -> None:
    """The script runs as a process of its own."""
    for package in ALLOWED:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name != "gguf_conversion.py":
                assert not HEAVY & set(imports(path, top_level_only=True)), path
