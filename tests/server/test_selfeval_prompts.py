"""What `preamble selfeval data` asks: files of prompts, outcomes, preferences and constitutions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptive.evaluation.tasks import TaskError, load
from adaptive.splits import SHARES, Split
from constitutions.compose import Placement, compose_messages, render_block
from constitutions.formats import from_plain
from server.selfeval_prompts import (
    Prompt,
    check_ids,
    mix,
    read_constitutions,
    read_outcomes,
    read_preferences,
    read_tasks,
)

USER = {"role": "user", "content": "hello"}
READERS: dict[str, Callable[[Path], object]] = {
    "tasks": lambda path: read_tasks(str(path), SHARES, None, verified=False),
    "outcomes": lambda path: read_outcomes(path, SHARES, None),
    "preferences": lambda path: read_preferences(path, SHARES, None),
    "constitutions": read_constitutions,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.jsonl"


def write(path: Path, *rows: dict[str, Any] | str) -> None:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def test_a_bundled_data_set_is_named_and_limited() -> None:
    prompts = read_tasks("gsm8k", SHARES, 3, verified=True)
    assert [prompt.id for prompt in prompts] == ["gsm8k/1", "gsm8k/2", "gsm8k/3"]
    assert {prompt.family for prompt in prompts} == {"gsm8k"}
    assert all(prompt.verify is not None for prompt in prompts)


def test_what_is_sampled_to_train_on_is_never_what_an_evaluation_asks(path: Path) -> None:
    """The same prompts, from a file of somebody's own, go where the data sets of `preamble eval` have them."""
    for name, split in (("synthetic:test", Split.TEST), ("synthetic-all:calibration", Split.CALIBRATION)):
        tasks = load(name).tasks
        assert {prompt.split for prompt in read_tasks(name, SHARES, None, verified=True)} == {split}
        write(path, *({"id": task.id, "messages": list(task.messages)} for task in tasks))
        assert {prompt.split for prompt in read_tasks(str(path), SHARES, None, verified=False)} == {split}
        assert {prompt.split for prompt in read_outcomes(path, SHARES, None)} == {split}


def test_prompts_without_verifiers_do_where_the_reward_needs_none(path: Path) -> None:
    rows = {"prompt": "one", "family": "f"}, {"id": "x", "messages": [USER], "verifier": {"kind": "json"}}
    write(path, *rows)
    first, second = read_tasks(str(path), SHARES, None, verified=False)
    assert (first.id, first.family, first.verify, first.messages[0]["content"]) == ("file/1", "f", None, "one")
    assert (second.id, second.family) == ("file/x", "file")
    assert second.verify is not None
    with pytest.raises(TaskError, match="line 1: "):
        read_tasks(str(path), SHARES, None, verified=True)


def test_no_such_data_set_is_said_with_those_that_there_are() -> None:
    with pytest.raises(TaskError, match="gsm8k"):
        read_tasks("gsm9k", SHARES, None, verified=False)


def test_outcomes_give_each_prompt_once_with_its_constitution(path: Path) -> None:
    rules = {"principles": ["Be brief."]}
    plain, ruled = {"prompt": "one", "chosen": "a"}, {"messages": [USER], "constitution": rules, "user": "u"}
    write(path, plain, ruled, {"prompt": [USER]}, {**plain, "chosen": "b"}, ruled, {"prompt": [USER]})
    prompts = read_outcomes(path, SHARES, None)
    assert [(prompt.id, prompt.constitution is not None) for prompt in prompts] == [
        ("file/1", False),
        ("file/2", True),
        ("file/3", False),
    ]
    assert prompts[1].composed(Placement.SYSTEM) == compose_messages([USER], render_block(from_plain(rules)))
    assert prompts[1].split is prompts[2].split  # the same prompt, whatever its constitution


def test_preferences_are_prompts_with_the_chosen_answer_first(path: Path) -> None:
    write(path, {"prompt": "one", "chosen": "good", "rejected": "bad"}, {"id": 7, "messages": [USER]} | _pair())
    first, second = read_preferences(path, SHARES, None)
    assert first.logged == ("good", "bad")
    assert (first.id, second.id) == ("file/1", "file/7")


def _pair() -> dict[str, str]:
    return {"chosen": "good", "rejected": "bad"}


def test_constitutions_are_principles_a_list_or_one_text(path: Path) -> None:
    write(
        path,
        {"id": "a", "principles": ["Be brief.", {"text": "Be kind.", "weight": 2}]},
        {"id": "b", "text": "1. Be brief.\n2. Be kind."},
        {"id": "c", "text": "Answer in one word.", "verifier": {"kind": "regex", "pattern": r"\w+", "answer": "yes"}},
    )
    a, b, c = read_constitutions(path)
    assert a.block == b.block
    assert a.respects is None
    assert "1. Answer in one word.\n" in c.block
    assert c.respects is not None
    assert c.respects("yes").passed


def prompts(count: int) -> list[Prompt]:
    rows = ({"role": "user", "content": f"prompt {number}"} for number in range(count))
    return [Prompt(f"p/{number}", "f", SPLIT, (row,)) for number, row in enumerate(rows)]


SPLIT = read_tasks("gsm8k", SHARES, 1, verified=True)[0].split


def test_constitutions_go_to_their_share_of_prompts_by_the_seed(path: Path) -> None:
    write(path, {"id": "a", "text": "Be brief."}, {"id": "b", "text": "Be kind."})
    constitutions = read_constitutions(path)
    mixed = mix(prompts(1000), constitutions, 0.3, seed=0)
    counted = Counter(None if each.constitution is None else each.constitution.id for each in mixed)
    assert counted[None] == pytest.approx(700, abs=50)
    assert counted["a"] == pytest.approx(150, abs=40)
    assert mix(prompts(2000), constitutions, 0.3, seed=0)[:1000] == mixed  # more prompts change none
    assert mix(prompts(1000), constitutions, 0.3, seed=1) != mixed
    assert mix(prompts(10), constitutions, 0.0, seed=0) == prompts(10)
    assert mix(prompts(10), [], 0.3, seed=0) == prompts(10)
    assert [each.split for each in mixed] == [each.split for each in prompts(1000)]


def test_a_prompt_keeps_the_constitution_that_it_was_logged_with(path: Path) -> None:
    write(path, {"prompt": "one", "constitution": ["Be brief."]})
    (logged,) = read_outcomes(path, SHARES, None)
    write(path, {"id": "a", "text": "Be kind."})
    assert mix([logged], read_constitutions(path), 1.0, seed=0) == [logged]


def test_two_prompts_of_one_id_are_refused() -> None:
    with pytest.raises(TaskError, match="'p/0' is there twice"):
        check_ids([*prompts(2), *prompts(1)])


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        ("tasks", "{", "line 1: is no JSON"),
        ("tasks", "[]", "line 1: is no object"),
        ("tasks", "", "is empty; it has one JSON object a line"),
        ("tasks", {"prompt": ""}, "line 1: messages is missing"),
        ("tasks", {"messages": ["hello"]}, r"line 1: messages\[0\] is no message"),
        ("tasks", {"prompt": "x", "family": 3}, "line 1: family is no text"),
        ("tasks", {"prompt": "x", "verifier": {"kind": "psychic"}}, r"line 1: verifier\.kind is 'psychic'"),
        ("outcomes", {"prompt": "x", "constitution": 3}, "line 1: constitution: .* is a number"),
        ("preferences", {"prompt": "x", "chosen": "a"}, "line 1: rejected is missing"),
        ("preferences", {"prompt": "x", "chosen": "a", "rejected": 1}, "line 1: rejected is no text"),
        ("constitutions", {"text": "Be brief."}, "line 1: id is missing"),
        ("constitutions", {"id": "a"}, "line 1: principles or text must be there"),
        ("constitutions", {"id": "a", "text": "x", "principles": []}, "and not both"),
        ("constitutions", {"id": "a", "principles": []}, "line 1: principles is empty"),
        ("constitutions", {"id": "a", "principles": [{"text": "x", "weight": 0}]}, "all have the weight 0"),
        ("constitutions", '{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}', "line 2: id 'a' is there already"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(path: Path, kind: str, row: dict[str, Any] | str, said: str) -> None:
    write(path, row)
    with pytest.raises(TaskError, match=said):
        READERS[kind](path)


@pytest.mark.parametrize("kind", ["outcomes", "preferences", "constitutions"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(TaskError, match=r"missing\.jsonl cannot be read"):
        READERS[kind](tmp_path / "missing.jsonl")
