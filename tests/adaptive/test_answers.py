"""Taking the answer out of a reply."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.answers import AnswerError, by_json_path, by_regex


@pytest.mark.parametrize(
    ("pattern", "reply", "answer"),
    [
        (r"answer is\s*(\d+)", "The answer is 3. No: the answer is 42", "42"),
        (r"\d+", "1 then 2", "2"),
        (r"####\s*(.+)", "so\n#### 17 \n", "17"),
        (r"\d+", "none at all", None),
        (r"yes|(no)", "yes", None),
    ],
)
def test_a_regex_gives_group_one_of_its_last_match(pattern: str, reply: str, answer: str | None) -> None:
    assert by_regex(pattern)(reply) == answer


def test_a_pattern_that_takes_exponential_time_is_stopped_and_finds_nothing() -> None:
    started = time.monotonic()
    assert by_regex(r"^(a|a)*b$", timeout_s=0.05)("a" * 60) is None
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("pattern", ["(", "a" * 501])
def test_a_pattern_that_cannot_be_read_is_an_error(pattern: str) -> None:
    with pytest.raises(AnswerError):
        by_regex(pattern)


@pytest.mark.parametrize(
    ("path", "reply", "answer"),
    [
        ("$.result[1].total", '{"result": [0, {"total": 5}]}', "5"),
        ("result", '{"result": {"b": 1, "a": "é"}}', '{"a": "é", "b": 1}'),
        ("$", "[1, 2]", "[1, 2]"),
        ("$[0]", "[null]", "null"),
        ("$.a", '{"b": 1}', None),
        ("$[3]", "[1]", None),
        ("$.a", "7", None),
        ("$[0]", '{"0": 1}', None),
        ("$.a", "no JSON", None),
    ],
)
def test_a_json_path_gives_the_value_as_canonical_json(path: str, reply: str, answer: str | None) -> None:
    assert by_json_path(path)(reply) == answer


@pytest.mark.parametrize("path", ["$..a", "$.a[*]", "$.a[", "$[-1]", "a b"])
def test_a_path_of_anything_but_names_and_indices_is_an_error(path: str) -> None:
    with pytest.raises(AnswerError, match="cannot be read"):
        by_json_path(path)


@given(st.text())
def test_no_reply_makes_an_extractor_fail(reply: str) -> None:
    by_regex(r"(\w+)\s*=")(reply)
    by_json_path("$.a[0]")(reply)
