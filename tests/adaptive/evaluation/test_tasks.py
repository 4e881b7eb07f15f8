"""Data sets: those that come with the package, and files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from adaptive.evaluation.tasks import TaskError, load


def test_ifeval_comes_with_its_prompts_and_verifiers() -> None:
    data = load("ifeval")
    assert len(data.tasks) == 325
    assert "60 % sample" in data.about
    task = next(task for task in data.tasks if task.id == "1005")
    assert task.messages[0]["content"].startswith("Write a resume for a fresh high school graduate")
    assert task.verify("[a] " * 12).passed
    assert not task.verify("[a] " * 11).passed
    families = Counter(task.family for task in data.tasks)
    assert families["ifeval several"] == 125
    assert families["ifeval punctuation"] == 10
    assert sum(families.values()) == 325


def test_gsm8k_comes_with_its_questions_and_answers() -> None:
    data = load("gsm8k")
    assert len(data.tasks) == 200
    assert "60 % sample" in data.about
    assert data.tasks[0].verify("She makes 9 * 2 = $18 every day.\n#### 18").passed


def write(path: Path, *rows: object) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


EXACT = {"kind": "exact", "answer": "4"}


def test_a_file_has_prompts_or_messages_and_a_verifier_on_each_line(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2+2?"}]
    path = write(
        tmp_path / "own.jsonl",
        {"prompt": "2+2?\u2028", "verifier": EXACT},
        "",
        {"id": "b", "messages": messages, "verifier": EXACT, "family": "sums"},
    )
    data = load(path)
    assert data.name == "own"
    assert [task.family for task in data.tasks] == ["", "sums"]
    assert [task.id for task in data.tasks] == ["1", "b"]
    assert data.tasks[0].messages == ({"role": "user", "content": "2+2?\u2028"},)
    assert list(data.tasks[1].messages) == messages
    assert len({task.digest for task in data.tasks}) == 2
    assert data.tasks[0].verify("4").passed


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 2: is no JSON"),
        ([], "line 2: is no object"),
        ({"verifier": EXACT}, "line 2: prompt or messages must be there"),
        ({"prompt": "x", "messages": [], "verifier": EXACT}, "line 2: prompt or messages must be there, and not both"),
        ({"prompt": "", "verifier": EXACT}, "line 2: prompt is no text"),
        ({"messages": [], "verifier": EXACT}, "line 2: messages is no list"),
        ({"messages": ["x"], "verifier": EXACT}, "line 2: messages[0] is no message"),
        ({"prompt": "x"}, "line 2: verifier is missing"),
        ({"prompt": "x", "verifier": {"kind": "exakt"}}, "line 2: verifier.kind is 'exakt'; the kinds are exact"),
        ({"prompt": "x", "verifer": EXACT}, "line 2: verifer is unknown"),
        ({"id": 1.5, "prompt": "x", "verifier": EXACT}, "line 2: id is neither"),
        ({"family": 1, "prompt": "x", "verifier": EXACT}, "line 2: family is no text"),
        ({"id": "1", "prompt": "x", "verifier": EXACT}, "line 2: id '1' is there already"),
    ],
)
def test_a_wrong_line_is_named_with_its_field(tmp_path: Path, row: object, said: str) -> None:
    path = write(tmp_path / "own.jsonl", {"prompt": "x", "verifier": EXACT}, row)
    with pytest.raises(TaskError) as refusal:
        load(path)
    assert f"own.jsonl, {said}" in str(refusal.value)


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="neither a file nor one of gsm8k, ifeval"):
        load("mmlu")
    with pytest.raises(TaskError, match="has no tasks"):
        load(write(tmp_path / "empty.jsonl", ""))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(TaskError, match="cannot be read"):
        load(str(tmp_path / "binary.jsonl"))
