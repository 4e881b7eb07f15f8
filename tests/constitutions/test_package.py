import ast
from pathlib import Path

import pytest

import constitutions

SOURCES = sorted(Path(constitutions.__file__).parent.glob("*.py"))
OURS = {"server", "adaptive", "loadtests", "tests"}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_package_imports_nothing_else_of_ours(source: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert not imported & OURS
