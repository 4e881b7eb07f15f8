"""Recordings, and what tells one from another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from adaptive.evaluation.recording import Recording, latest_setup, question_digest, seed_of
from adaptive.seeds import candidate_seed

from .recordings import SETUP, Made, recording

ONE = recording("a", 0, Made(0.5))


def test_a_line_gives_back_what_was_written_on_it() -> None:
    line = ONE.to_line()
    assert "\n" not in line
    assert Recording.from_line(line) == ONE


def test_a_torn_line_or_one_of_another_kind_is_nothing() -> None:
    line = ONE.to_line()
    for cut in range(0, len(line), 37):
        assert Recording.from_line(line[:cut]) is None
    assert Recording.from_line('{"key": 1}') is None
    assert Recording.from_line("[]") is None


def test_a_line_whose_key_is_not_that_of_its_content_is_nothing() -> None:
    assert Recording.from_line(replace(ONE, seed=ONE.seed + 1).to_line()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"root": "/weights"},
        {"fingerprint": "vllm-1"},
        {"question": "other"},
        {"temperature": 0.7},
        {"max_tokens": 17},
    ],
    ids=str,
)
def test_the_key_changes_with_everything_that_changes_a_candidate(change: dict[str, Any]) -> None:
    assert replace(SETUP, **change).key("prompt", 1) != SETUP.key("prompt", 1)


def test_the_key_changes_with_prompt_and_seed() -> None:
    assert len({SETUP.key(prompt, seed) for prompt in ("a", "b") for seed in (1, 2)}) == 4


def test_the_seeds_of_a_prompt_are_those_of_one_request_and_no_other_prompts() -> None:
    seeds = [seed_of(7, "prompt", index) for index in range(4)]
    assert seeds == [candidate_seed(seeds[0], index) for index in range(4)]
    assert not set(seeds) & {seed_of(7, "other", index) for index in range(4)}
    assert not set(seeds) & {seed_of(8, "prompt", index) for index in range(4)}


def test_a_score_before_the_end_is_that_of_the_checkpoint_and_after_it_the_last() -> None:
    found = recording("a", 0, Made(0.9, tokens=6, at={4: 0.2}))
    values = [found.score_at("self_evaluation", tokens) for tokens in (4, 8, None)]
    assert [each and each.value for each in values] == [0.2, 0.9, 0.9]
    assert found.score_at("self_evaluation", 5) is None  # not recorded


def test_a_question_is_told_by_its_tokens() -> None:
    assert question_digest([1, 2], [3]) == question_digest((1, 2), (3,))
    assert len({question_digest([1, 2], [3]), question_digest([1], [2, 3]), question_digest([1, 2], [4])}) == 3


def test_the_latest_setup_is_the_one_sampled_last_of_that_model() -> None:
    later = replace(ONE, setup=replace(SETUP, model="other"), sampled_at=9.0)
    found = {"a": ONE, "b": later}
    assert latest_setup(found, None) == later.setup
    assert latest_setup(found, "tiny") == SETUP
    assert latest_setup(found, "third") is None
