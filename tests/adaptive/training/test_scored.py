"""Scored examples as lines of a file, and what is wrong with a line."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from adaptive.calibration import Reading
from adaptive.training.scored import Scored, ScoredError, read_scored

LINE: dict[str, Any] = {
    "id": "p17",
    "family": "sums",
    "answer": 3,
    "tokens": 64,
    "final": False,
    "log_odds": -0.7,
    "logprobs_mean": -0.4,
    "logprobs_min": -3.1,
    "win_or_tie": 0.8,
    "passed": True,
    "label_mass": 0.9,
}


def test_a_line_is_an_example_and_an_example_a_line() -> None:
    example = Scored("p17", "sums", 3, Reading(-0.7, 64, False, -0.4, -3.1), 0.8, passed=True, label_mass=0.9)
    assert read_scored([json.dumps(LINE), " \n"], "x") == (example,)
    assert json.loads(example.to_line()) == LINE
    bare = Scored("p", "x", 0, Reading(-math.inf, 1, True), 0.0, passed=False)
    assert read_scored([bare.to_line()], "x") == (bare,)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": 7}, "id is 7; it must be text"),
        ({"answer": -1}, "answer is -1; it must be a whole number"),
        ({"tokens": 1.5}, "tokens is 1.5"),
        ({"final": 0}, "final is 0; it must be true or false"),
        ({"log_odds": None}, "log_odds is None; it must be a number"),
        ({"log_odds": math.nan}, "log_odds is nan"),
        ({"logprobs_mean": 2}, "logprobs_mean is 2; it must be at most 0, or null"),
        ({"logprobs_min": "x"}, "logprobs_min is 'x'"),
        ({"win_or_tie": 1.2}, "win_or_tie is 1.2; it must be from 0 to 1"),
        ({"win_or_tie": True}, "win_or_tie is True"),
        ({"passed": None}, "passed is None"),
        ({"label_mass": 2}, "label_mass is 2"),
    ],
)
def test_what_is_wrong_is_named_with_line_and_field(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ScoredError) as caught:
        read_scored([json.dumps(LINE), json.dumps(LINE | change)], "file.jsonl")
    assert str(caught.value).startswith(f"file.jsonl, line 2: {said}")


@pytest.mark.parametrize("name", list(LINE))
def test_no_field_may_be_missing(name: str) -> None:
    with pytest.raises(ScoredError, match=f"line 1: {name} is missing"):
        read_scored([json.dumps({key: value for key, value in LINE.items() if key != name})], "x")


@pytest.mark.parametrize(("line", "said"), [("{", "is not JSON"), ("[]", "must be an object")])
def test_a_line_that_is_no_object_is_named(line: str, said: str) -> None:
    with pytest.raises(ScoredError, match=said):
        read_scored([line], "x")
