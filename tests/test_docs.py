"""What the README pages point at is there: files, headings, and the functions named after a link to a file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from server.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted(
        path
        for folder in ("adaptive", "constitutions", "deploy", "loadtests", "server")
        for path in (ROOT / folder).rglob("*.md")
    ),
]
TRAINING = ROOT / "adaptive" / "training"
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)(?P<names>(?:,?\s`\w+(?:\.(?!py`)\w+)*`)*)")
NAME = re.compile(r"`([\w.]+)`")
COMMAND = re.compile(r"^\$ preamble (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Reference:
    """A link on a page. names: the code spans right after it."""

    page: Path
    text: str
    target: str
    names: tuple[str, ...]

    @property
    def file(self) -> Path:
        """What it leads to, without the heading."""
        path = self.target.partition("#")[0]
        return (self.page.parent / path).resolve() if path else self.page


def references(page: Path, text: str | None = None) -> list[Reference]:
    """Return the links to files of ours."""
    found = LINK.finditer(FENCED.sub("", page.read_text() if text is None else text))
    return [
        Reference(page, link["text"].strip("`"), link["target"], tuple(NAME.findall(link["names"])))
        for link in found
        if "://" not in link["target"]
    ]


def defined(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Yield what a module defines, and `Class.name` for what its classes do."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from defined(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))


def missing(reference: Reference) -> list[str]:
    """Return the names that are not in the file."""
    if not reference.names or reference.file.suffix != ".py":
        return []
    names = set(defined(ast.parse(reference.file.read_text()).body))
    return [name for name in reference.names if name not in names]


def headings(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_points_at_is_there(page: Path) -> None:
    for reference in references(page):
        assert reference.file.exists(), reference.target
        _, _, anchor = reference.target.partition("#")
        assert not anchor or anchor in headings(reference.file), reference.target
        assert not missing(reference), f"{reference.text} has no {', '.join(missing(reference))}"


def test_the_researchers_page_names_every_module_of_training_and_links_every_file() -> None:
    page = TRAINING / "README.md"
    found = references(page)
    files = [reference for reference in found if reference.file.suffix == ".py"]
    assert len([name for reference in files for name in reference.names]) >= 100
    for reference in files:
        assert reference.text == reference.file.name
        assert reference.names, f"{reference.text} stands without a name from it"
    modules = {path for path in TRAINING.glob("*.py") if path.name != "__init__.py"}
    assert not sorted(path.name for path in modules - {reference.file for reference in files})


def test_a_reference_to_what_is_not_there_is_found() -> None:
    page = TRAINING / "README.md"
    text = "[`losses.py`](losses.py) `ranking_loss`, `lost`; [`ways.py`](ways.py) `SoftTokens.log_odds`, `SoftTokens.x`"
    losses, ways = references(page, text)
    assert (losses.names, missing(losses)) == (("ranking_loss", "lost"), ["lost"])
    assert missing(ways) == ["SoftTokens.x"]
    assert not references(page, "[gone](gone.py) `x`")[0].file.exists()


def shown(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command that a page shows, with its options."""
    for line in COMMAND.findall(text):
        words = line.partition("  #")[0].split()
        name = " ".join(words[: 2 if words[0] == "selfeval" else 1])
        yield name, [word.partition("=")[0] for word in words if word.startswith("--")]


def options_of(name: str) -> set[str] | None:
    """Return the options of a command, None for one that is not there."""
    command = get_command(app)
    for word in name.split():
        if not isinstance(command, TyperGroup) or word not in command.commands:
            return None
        command = command.commands[word]
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", [TRAINING / "README.md", ROOT / "adaptive" / "evaluation" / "README.md"])
def test_commands_are_shown_with_options_that_they_have(page: Path) -> None:
    commands = list(shown(page.read_text()))
    assert len(commands) >= 5
    for name, options in commands:
        known = options_of(name)
        assert known is not None, f"preamble {name}"
        assert set(options) <= known, f"preamble {name}: {sorted(set(options) - known)}"
