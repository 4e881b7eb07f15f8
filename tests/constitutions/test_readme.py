"""The examples in the package's README are true."""

import re
from pathlib import Path

import pytest

import constitutions
from constitutions.compose import render_block
from constitutions.constitution import Constitution, Dimension, Limits, Principle
from constitutions.formats import parse

README = (Path(constitutions.__file__).parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
CONSTITUTION = Constitution(
    (
        Principle("Answer in British English."),
        Principle("Keep it short\nunless I ask for more.", Dimension.STYLE, 2, "long answers tire me"),
        Principle("Never guess a dose."),
    )
)


@pytest.mark.parametrize(
    ("example", "media_type"),
    [("json", "application/json"), ("yaml", "application/yaml"), ("markdown", "text/markdown")],
)
def test_the_three_examples_are_the_same_constitution(example: str, media_type: str) -> None:
    assert parse(media_type, EXAMPLES[example].encode(), Limits()) == CONSTITUTION


def test_the_block_shown_is_the_block_sent() -> None:
    assert EXAMPLES["text"] == render_block(CONSTITUTION) + "\n"


def test_every_module_is_named() -> None:
    modules = {path.name for path in Path(constitutions.__file__).parent.glob("*.py")} - {
        "__init__.py",
        "similarity.py",
    }
    assert not [name for name in modules if f"`{name}`" not in README]
