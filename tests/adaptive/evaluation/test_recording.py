"""Recordings, and what tells one from another."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from adaptive.evaluation.recording import Recording, latest, question_digest, seed_of
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


def test_the_least_label_mass_is_kept_and_changes_no_key() -> None:
    trained = replace(SETUP, min_label_mass=1e-20)
    assert trained.key("prompt", 1) == SETUP.key("prompt", 1)
    rescored, before = (replace(SETUP, model="other", sampled_by=each) for each in (trained, SETUP))
    assert rescored.key("prompt", 1) == before.key("prompt", 1)
    kept = Recording.from_line(replace(ONE, setup=rescored, key=rescored.key(ONE.prompt, ONE.seed)).to_line())
    assert kept is not None
    assert kept.setup == rescored


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


def test_staged_has_the_read_outs_score_while_a_candidate_goes_on_and_self_evaluations_when_it_has_ended() -> None:
    found = recording("a", 0, Made(0.9, tokens=6, at={4: 0.2}, read_out=0.7))
    going_on, ended, whole = (found.score_at("staged", tokens) for tokens in (4, 8, None))
    assert going_on is not None
    assert (going_on.scorer, going_on.value, going_on.computed_tokens) == ("read_out", 0.7, 0)
    assert ended == whole == found.score_at("self_evaluation", None)
    asked_only = replace(found, scores=tuple(each for each in found.scores if each.scorer == "self_evaluation"))
    assert asked_only.score_at("staged", 4) is None


def test_a_question_is_told_by_its_tokens() -> None:
    assert question_digest([1, 2], [3]) == question_digest((1, 2), (3,))
    assert len({question_digest([1, 2], [3]), question_digest([1], [2, 3]), question_digest([1, 2], [4])}) == 3


def test_another_way_of_scoring_is_another_self_evaluation() -> None:
    assert question_digest([1], [2], "calibrated") != question_digest([1], [2])


def test_the_latest_is_the_one_scored_last_of_that_model() -> None:
    later = replace(ONE, setup=replace(SETUP, model="other"), scored_at=9.0)
    found = {"a": ONE, "b": later}
    assert latest(found, None) == later
    assert latest(found, "tiny") == ONE
    assert latest(found, "third") is None


def test_candidates_that_were_only_scored_are_told_from_those_that_were_sampled() -> None:
    rescored = replace(SETUP, sampled_by=SETUP)
    found = replace(ONE, setup=rescored, key=rescored.key(ONE.prompt, ONE.seed))
    assert found.key != ONE.key
    assert Recording.from_line(found.to_line()) == found


def test_a_line_of_the_format_before_is_nothing() -> None:
    plain = json.loads(ONE.to_line())
    for name in ("scorers", "prompt_ids", "token_ids", "logprobs", "scored_at"):
        del plain[name]
    del plain["setup"]["sampled_by"]
    assert Recording.from_line(json.dumps(plain)) is None


def test_a_beginning_has_the_tokens_and_their_log_probabilities() -> None:
    found = recording("a", 0, Made(0.5, tokens=6))
    assert (found.tokens, found.beginning(4).token_ids) == (6, (10, 11, 12, 13))
    assert found.beginning(4).logprobs == (-0.25,) * 4
    assert found.beginning(99).token_ids == found.token_ids
