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
TORCH = {"torch", "transformers", "vllm", "gguf", "accelerate", "peft", "safetensors"}
HEAVY = TORCH | {"sklearn", "scipy", "numpy"}


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Return the first part of every module that `path` imports."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module.partition(".")[0]


def loads(*modules: str, root: Path = ROOT) -> Iterator[Path]:
    """Yield the file of each of our modules that is loaded when these are, functions' own imports left out."""
    waiting, seen = list(modules), set[Path]()
    while waiting:
        parts = waiting.pop().split(".")
        for count in range(1, len(parts) + 1):
            at = root.joinpath(*parts[:count])
            path = at / "__init__.py" if at.is_dir() else at.with_suffix(".py")
            if not path.is_file() or path in seen:  # a package of others, or a name in a module
                continue
            seen.add(path)
            yield path
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Import):
                    waiting += [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module is not None:
                    waiting += [f"{node.module}.{alias.name}" for alias in node.names]


# They run in a process of their own, or in that of `preamble selfeval train`. All other modules can be loaded, and so
# tested, where there is no torch.
LOAD_TORCH = {
    "adaptive/training/build.py",
    "adaptive/training/checkpoint.py",
    "adaptive/training/frozen.py",
    "adaptive/training/loop.py",
    "adaptive/training/losses.py",
    "adaptive/training/packing.py",
    "adaptive/training/rows.py",
    "adaptive/training/scores.py",
    "adaptive/training/ways.py",
    "server/gguf_conversion.py",
    "server/learning_curve_plot.py",
    "server/selfeval_train.py",
}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_it_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        forbidden = set(imports(path)) & (OURS - ALLOWED[package] - {package})
        assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}"


def test_the_process_that_answers_requests_loads_no_heavy_packages() -> None:
    """The conversion script runs as a process of its own, and training in that of its command."""
    loaded = list(loads("server.__main__", "server.cli", "server.app"))
    assert ROOT / "adaptive" / "best_of_n.py" in loaded
    assert ROOT / "adaptive" / "calibration.py" in loaded
    # What `preamble eval` and `selfeval` need, `serve` does not wait for.
    assert ROOT / "adaptive" / "evaluation" / "tasks.py" not in loaded
    assert ROOT / "server" / "eval_sampling.py" not in loaded
    for path in loaded:
        assert not HEAVY & set(imports(path, top_level_only=True)), path


def test_only_these_modules_load_torch() -> None:
    found = set()
    for path in (path for package in ALLOWED for path in (ROOT / package).rglob("*.py")):
        module = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        if any(TORCH & set(imports(each, top_level_only=True)) for each in loads(module)):
            found.add(str(path.relative_to(ROOT)))
    assert found == LOAD_TORCH


def test_heavy_packages_would_be_found_wherever_they_are_loaded_from(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "__init__.py").write_text("import a.light")
    (tmp_path / "a" / "light.py").write_text("from a import heavy\n\ndef late():\n    import a.later\n")
    (tmp_path / "a" / "heavy.py").write_text("import torch\n")
    (tmp_path / "a" / "later.py").write_text("import torch\n")
    assert {path.name for path in loads("a", root=tmp_path)} == {"__init__.py", "light.py", "heavy.py"}
