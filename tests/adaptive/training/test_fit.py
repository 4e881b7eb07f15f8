"""Fitted maps against a truth that is known."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive.calibration import CalibrationMap, Feature, LogProbabilitiesMissing, Reading
from adaptive.training.fit import LEAST_P, UP_TO, Fit, Method, fit
from adaptive.training.scored import Scored

from .scores import scored


def fitted(examples: Sequence[Scored], **how: Any) -> Fit:
    readings = [example.reading for example in examples]
    return fit(readings, [example.win_or_tie for example in examples], [example.prompt for example in examples], **how)


def worst(calibration: CalibrationMap, examples: Sequence[Scored]) -> float:
    """Return the largest distance from the truth."""
    return max(abs(calibration.probability(example.reading) - example.win_or_tie) for example in examples)


def test_too_sure_a_score_is_brought_back_to_the_truth_by_each_bucket_in_its_own_way() -> None:
    def said(quality: float, reading: Reading) -> float:
        return 4 * quality + 1 if reading.final else 2 * quality if reading.tokens > 48 else -quality

    found = fitted(scored(40, log_odds=said), method=Method.TEMPERATURE)
    assert worst(found.calibration, scored(20, seed=9, log_odds=said)) < 0.02
    of = {bucket.up_to: bucket.weights[0] for bucket in (*found.calibration.partial, found.calibration.final)}
    assert of[16] == pytest.approx(-1, abs=0.05)
    assert of[96] == pytest.approx(0.5, abs=0.05)
    assert of[None] == pytest.approx(0.25, abs=0.02)
    assert found.calibration.features == (Feature.LOG_ODDS,)


def test_a_score_that_says_nothing_at_some_length_is_not_turned_round_there_by_chance() -> None:
    source = random.Random(4)  # noqa: S311 -- a test's data, no secret

    def said(quality: float, reading: Reading) -> float:
        return source.gauss(0, 1) if reading.tokens == 70 else quality

    turned = 0
    for seed in range(12):
        found = fitted(scored(30, seed=seed, coins=True, log_odds=said), method=Method.TEMPERATURE)
        of = {bucket.up_to: bucket.weights[0] for bucket in found.calibration.partial}
        assert of[48] > 0.5
        turned += of[96] < 0
        pooled = {bucket.up_to: bucket.pooled for bucket in found.buckets}
        assert pooled[96] == (of[96] > 0.4)  # that of all lengths; its own is near 0
    assert turned <= 1  # two standard errors


def test_coins_are_as_good_a_target_as_their_chances() -> None:
    found = fitted(scored(400, coins=True, log_odds=lambda quality, _: 3 * quality), method=Method.TEMPERATURE)
    assert worst(found.calibration, scored(20, seed=9, log_odds=lambda quality, _: 3 * quality)) < 0.1


def test_a_feature_that_carries_the_signal_is_found_where_the_score_has_none() -> None:
    source = random.Random(3)  # noqa: S311 -- a test's data, no secret
    examples = scored(60, log_odds=lambda *_: source.gauss(0, 1))
    found = fitted(examples)
    assert found.method is not Method.TEMPERATURE
    assert found.brier[found.method] < 0.5 * found.brier[Method.TEMPERATURE]
    assert found.brier[found.method] == min(found.brier.values())
    assert Feature.MEAN_LOG_PROBABILITY in found.calibration.features


def test_a_curve_that_is_no_sigmoid_takes_the_isotonic_fit() -> None:
    def bent(quality: float, _: Reading) -> float:
        return quality if quality < 0 else quality / 8

    examples = scored(80, log_odds=bent)
    found = fitted(examples, features=(Feature.LOG_ODDS,))
    assert (found.method, found.chosen) == (Method.ISOTONIC, True)
    straight = fitted(examples, features=(Feature.LOG_ODDS,), method=Method.TEMPERATURE)
    assert (straight.method, straight.chosen, straight.brier) == (Method.TEMPERATURE, False, {})
    held = scored(20, seed=9, log_odds=bent)
    off = [
        sum(abs(each.calibration.probability(example.reading) - example.win_or_tie) for example in held)
        for each in (found, straight)
    ]
    assert off[0] < 0.5 * off[1]


def test_little_data_takes_the_simplest_way() -> None:
    source = random.Random(1)  # noqa: S311 -- a test's data, no secret
    examples = scored(6, answers=2, coins=True, cuts=(), log_odds=lambda quality, _: quality + source.gauss(0, 1))
    found = fitted(examples, features=(Feature.LOG_ODDS,))
    assert found.method is Method.TEMPERATURE
    # The same two numbers, so the same score: of equals the simplest. A curve through a dozen coins is worse than both.
    assert found.brier[Method.TEMPERATURE] == found.brier[Method.LOGISTIC] < found.brier[Method.ISOTONIC]


def test_the_choice_is_that_of_unseen_prompts_and_no_prompt_is_on_both_sides() -> None:
    # The score is the prompt's name: within a prompt it says everything, of another one nothing.
    source = random.Random(5)  # noqa: S311 -- a test's data, no secret
    examples = []
    for prompt in range(60):
        key, came = source.gauss(0, 3), float(source.random() < 0.5)
        reading = Reading(key, 10, final=True, mean_log_probability=-1.0, least_log_probability=-1.0)
        examples += [Scored(f"p{prompt}", "x", answer, reading, came, came > 0.5) for answer in range(20)]
    found = fitted(examples)
    assert min(found.brier.values()) > 0.24  # always saying a half has 0.25


@pytest.mark.parametrize("method", list(Method))
def test_a_bucket_of_little_data_takes_that_of_all_lengths_and_the_fit_says_so(method: Method) -> None:
    few = scored(4, seed=2, cuts=(300,), log_odds=lambda *_: 0.0)  # too few prompts at that length
    found = fitted(scored(40, cuts=(8,)) + [each for each in few if not each.reading.final], method=method)
    pooled = {bucket.up_to: bucket.pooled for bucket in found.buckets}
    assert pooled == {16: False, 48: True, 96: True, 192: True, 384: True, None: False}
    assert next(bucket for bucket in found.buckets if bucket.up_to == 384).examples == 32
    maps = {bucket.up_to: (bucket.weights, bucket.bias) for bucket in found.calibration.partial}
    assert maps[48] == maps[384] != maps[16]


@pytest.mark.parametrize("method", list(Method))
def test_knots_are_few_they_rise_and_nothing_is_ever_certain(method: Method) -> None:
    found = fitted(scored(60), method=method).calibration
    assert [bucket.up_to for bucket in found.partial] == list(UP_TO)
    for bucket in (*found.partial, found.final):
        assert 2 <= len(bucket.knots) <= 32
        ps = [p for _, p in bucket.knots]
        assert all(p < above for p, above in itertools.pairwise(ps))
        assert LEAST_P <= ps[0] < ps[-1] <= 1 - LEAST_P


@pytest.mark.parametrize("method", list(Method))
def test_candidates_that_the_score_tells_apart_are_told_apart_after_it(method: Method) -> None:
    found = fitted(scored(40, coins=True), method=method, features=(Feature.LOG_ODDS,)).calibration
    scores = [found.probability(Reading(x / 4, 350, final=True)) for x in range(-100, 101)]
    assert all(score < above for score, above in itertools.pairwise(scores))


@settings(max_examples=5, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(list(Method)))
def test_the_order_of_the_examples_does_not_matter(source: random.Random, method: Method) -> None:
    examples = scored(8, cuts=(8,))
    again = list(examples)
    source.shuffle(again)
    assert fitted(again, method=method) == fitted(examples, method=method)


@pytest.mark.parametrize("method", [None, *Method])
@pytest.mark.parametrize("came", [0.0, 1.0])
def test_targets_that_are_all_the_same_are_believed_as_far_as_a_map_may(method: Method | None, came: float) -> None:
    examples = [
        Scored(each.prompt, "x", each.answer, each.reading, came, passed=True)
        for each in scored(30, cuts=(8,), log_odds=lambda *_: math.inf)
    ]
    found = fitted(examples, method=method).calibration
    assert found.probability(examples[0].reading) == pytest.approx(came, abs=0.004)


def test_temperature_needs_no_log_probabilities_and_the_others_say_that_they_do() -> None:
    bare = [Reading(0.1 * place, 10, final=True) for place in range(40)]
    targets, prompts = [place / 40 for place in range(40)], [f"p{place}" for place in range(40)]
    assert not fit(bare, targets, prompts, method=Method.TEMPERATURE).calibration.reads_log_probabilities
    assert fit(bare, targets, prompts, features=(Feature.LOG_ODDS, Feature.LOG_TOKENS)).brier
    with pytest.raises(LogProbabilitiesMissing):
        fit(bare, targets, prompts)


@pytest.mark.parametrize(
    ("targets", "prompts", "said"),
    [
        ([0.5], ["a", "b"], "2 readings, 1 targets"),
        ([0.5, 0.5], ["a", "a"], "two prompts"),
        ([0.5, 1.5], "ab", "0 and 1"),
    ],
)
def test_what_nothing_can_be_fitted_to_is_refused(targets: list[float], prompts: Sequence[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit([Reading(0.0, 1, final=True)] * 2, targets, list(prompts))


def test_the_report_says_what_was_chosen_and_why() -> None:
    plain = fitted(scored(30, cuts=(8,))).to_plain()
    assert plain["chosen_by"] == "cross-validated Brier score"
    assert set(plain["brier"]) == {"temperature", "logistic", "isotonic"}
    assert plain["buckets"][-1] == {"final": True, "examples": 240, "prompts": 30, "pooled": False}
