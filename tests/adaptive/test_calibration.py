"""From raw scores to probabilities: which bucket, which features, what curve, and what is no map at all."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.calibration import (
    LARGEST_LOG_ODDS,
    LEAST_LOG_PROBABILITY,
    CalibrationError,
    CalibrationMap,
    Feature,
    LogProbabilitiesMissing,
    Reading,
)
from adaptive.candidate import Candidate, Partial, beginning
from adaptive.engine import GeneratedTokens, Sampling

from .calibrations import LOG_PROBABILITIES, STEEP, maps

STEEP_MAP = CalibrationMap.from_plain(STEEP)


def partial(tokens: int, *, final: bool = False, logprob: float | None = None) -> Partial:
    return Partial((7,) * tokens, () if logprob is None else (logprob,) * tokens, final=final)


@pytest.mark.parametrize(
    ("tokens", "final", "p"),
    [
        (0, False, 0.6),  # 0.5 * 2 + 0.25 is beyond the last knot
        (32, False, 0.6),
        (33, False, 0.1),
        (64, False, 0.1),
        (5000, False, 0.1),  # longer than any bucket: the last that is for responses that go on
        (5, True, 0.95),
        (5000, True, 0.95),
    ],
)
def test_the_bucket_is_that_of_the_length_or_of_those_that_have_ended(tokens: int, *, final: bool, p: float) -> None:
    assert STEEP_MAP.apply(2.0, partial(tokens, final=final)) == pytest.approx(p)


def test_between_the_knots_the_curve_is_straight_and_beyond_them_level() -> None:
    said = [STEEP_MAP.apply(log_odds, partial(1, final=True)) for log_odds in (-9.0, -2.0, -1.0, 0.0, 1.5, 2.0, 9.0)]
    assert said == pytest.approx([0.05, 0.05, 0.275, 0.5, 0.8375, 0.95, 0.95])


def test_one_knot_is_a_level_line() -> None:
    value = deepcopy(STEEP)
    value["buckets"][2]["knots"] = [[0.0, 0.3]]
    found = CalibrationMap.from_plain(value)
    assert {found.apply(log_odds, partial(1, final=True)) for log_odds in (-1.0, 0.0, 1.0)} == {0.3}


def test_a_score_that_ranks_below_chance_is_turned_round() -> None:
    low, high = (STEEP_MAP.apply(log_odds, partial(50)) for log_odds in (-0.5, 0.5))
    assert low > high


def test_every_feature_is_that_of_the_response_itself() -> None:
    reading = Reading.of(1.5, Partial((1, 2, 3), (-0.5, -2.5, -0.6)))
    assert [reading.value(feature) for feature in Feature] == pytest.approx([1.5, -1.2, -2.5, math.log(4)])


def test_before_the_first_token_there_is_nothing_unlikely() -> None:
    reading = Reading.of(0.0, Partial(()))
    assert [reading.value(feature) for feature in Feature] == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("log_odds", "taken"), [(math.inf, LARGEST_LOG_ODDS), (-math.inf, -LARGEST_LOG_ODDS)])
def test_an_impossible_label_is_no_infinite_feature(log_odds: float, taken: float) -> None:
    assert Reading.of(log_odds, partial(3)).value(Feature.LOG_ODDS) == taken


def test_a_masked_token_does_not_decide_the_mean() -> None:
    reading = Reading.of(0.0, Partial((1, 2), (-9999.0, 0.0)))
    assert reading.value(Feature.MEAN_LOG_PROBABILITY) == LEAST_LOG_PROBABILITY / 2
    assert reading.value(Feature.LEAST_LOG_PROBABILITY) == LEAST_LOG_PROBABILITY


def test_a_map_that_reads_log_probabilities_says_that_there_are_none() -> None:
    found = CalibrationMap.from_plain(LOG_PROBABILITIES)
    assert found.reads_log_probabilities
    assert found.apply(0.0, partial(5, final=True, logprob=-1.0)) == pytest.approx(0.4)
    assert found.apply(0.0, partial(1, logprob=-1.0)) == pytest.approx(0.25 + 0.01 * math.log(2))
    with pytest.raises(LogProbabilitiesMissing, match="carries no log-probabilities"):
        found.apply(0.0, partial(5))
    assert not STEEP_MAP.reads_log_probabilities


@given(maps())
def test_what_json_keeps_is_the_same_map(found: CalibrationMap) -> None:
    assert CalibrationMap.from_plain(json.loads(json.dumps(found.to_plain()))) == found


readings = st.builds(
    Reading,
    st.floats(allow_nan=False),
    st.integers(0, 2000),
    st.booleans(),
    st.floats(max_value=0.0, allow_nan=False),
    st.floats(max_value=0.0, allow_nan=False),
)


@given(maps(), readings)
def test_whatever_is_read_the_result_is_a_probability(found: CalibrationMap, reading: Reading) -> None:
    assert 0.0 <= found.probability(reading) <= 1.0


@given(maps(), readings, st.floats(0, 50))
def test_within_a_bucket_it_goes_with_the_log_odds_as_far_as_their_weight_says(
    found: CalibrationMap, reading: Reading, more: float
) -> None:
    higher = Reading(
        reading.log_odds + more,
        reading.tokens,
        reading.final,
        reading.mean_log_probability,
        reading.least_log_probability,
    )
    bucket = (
        found.final
        if reading.final
        else next(
            (each for each in found.partial if each.up_to is not None and each.up_to >= reading.tokens),
            found.partial[-1],
        )
    )
    weight = dict(zip(found.features, bucket.weights, strict=True)).get(Feature.LOG_ODDS, 0.0)
    gained = found.probability(higher) - found.probability(reading)
    assert gained * weight >= -1e-9
    if weight == 0:
        assert gained == 0


def changed(change: dict[str, Any], bucket: int | None = None) -> dict[str, Any]:
    value = deepcopy(STEEP)
    (value if bucket is None else value["buckets"][bucket]).update(change)
    return value


@pytest.mark.parametrize(
    ("value", "field", "problem"),
    [
        (7, "calibration", "must be an object"),
        (changed({"knots": []}), "calibration.knots", "is no field; the fields: features, buckets"),
        (changed({"features": "log_odds"}), "calibration.features", "must be a list of some of log_odds, mean_log_pro"),
        (changed({"features": []}), "calibration.features", "must be a list"),
        (changed({"features": ["length"]}), "calibration.features[0]", "is 'length'; the features: log_odds"),
        (changed({"features": [["log_odds"]]}), "calibration.features[0]", "is ['log_odds']"),
        (changed({"features": ["log_odds", "log_odds"]}), "calibration.features[1]", "for the second time"),
        (changed({"buckets": {}}), "calibration.buckets", "must be a list of buckets"),
        (changed({"buckets": STEEP["buckets"][:2]}), "calibration.buckets", "has 0 with final: true"),
        (changed({"buckets": STEEP["buckets"] + STEEP["buckets"][2:]}), "calibration.buckets", "has 2 with final"),
        (changed({"buckets": STEEP["buckets"][2:]}), "calibration.buckets", "has none with up_to"),
        (changed({"buckets": STEEP["buckets"][::-1]}), "calibration.buckets[1]", "does not come in order"),
        (changed({"up_to": 32}, 1), "calibration.buckets[1]", "does not come in order"),
        (changed({"buckets": [7]}), "calibration.buckets[0]", "must be an object with up_to or final"),
        (changed({"uptown": 3}, 0), "calibration.buckets[0].uptown", "is no field"),
        (changed({"up_to": None}, 0), "calibration.buckets[0].up_to", "is None; it is a whole number"),
        (changed({"up_to": True}, 0), "calibration.buckets[0].up_to", "is True"),
        (changed({"up_to": -1}, 0), "calibration.buckets[0].up_to", "is -1"),
        (changed({"up_to": 7}, 2), "calibration.buckets[2].up_to", "stands beside final: true"),
        (changed({"final": 1}, 2), "calibration.buckets[2].final", "is 1; it is true, or left out"),
        (changed({"weights": []}, 1), "calibration.buckets[1].weights", "must be a list of 1 numbers"),
        (changed({"weights": ["1"]}, 1), "calibration.buckets[1].weights[0]", "is '1'; it must be a number"),
        (changed({"weights": [math.nan]}, 1), "calibration.buckets[1].weights[0]", "is nan"),
        (changed({"weights": [10**400]}, 1), "calibration.buckets[1].weights[0]", "is 1000"),
        (changed({"bias": math.inf}, 1), "calibration.buckets[1].bias", "is inf"),
        (changed({"bias": False}, 1), "calibration.buckets[1].bias", "is False"),
        (changed({"knots": []}, 0), "calibration.buckets[0].knots", "at least one pair"),
        (changed({"knots": [[1.0]]}, 0), "calibration.buckets[0].knots[0]", "must be a pair"),
        (changed({"knots": [[1.0, None]]}, 0), "calibration.buckets[0].knots[0]", "is None"),
        (changed({"knots": [[1.0, 1.5]]}, 0), "calibration.buckets[0].knots[0]", "has the probability 1.5"),
        (changed({"knots": [[1, 0.5], [1, 0.6]]}, 0), "calibration.buckets[0].knots[1]", "does not come in order"),
        (changed({"knots": [[1, 0.5], [2, 0.4]]}, 0), "calibration.buckets[0].knots[1]", "p does not fall"),
    ],
)
def test_what_is_wrong_is_named_with_the_field_and_the_remedy(value: Any, field: str, problem: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        CalibrationMap.from_plain(value)
    assert caught.value.field == field
    assert problem in caught.value.problem


# What a partial is that has ended.


def step(*token_ids: int, finish_reason: str | None = None) -> GeneratedTokens:
    return GeneratedTokens(token_ids, finish_reason=finish_reason)


@pytest.mark.parametrize(
    ("steps", "tokens", "final"),
    [
        ([], None, False),
        ([step(1, 2)], None, False),
        ([step(1, 2)], 2, False),
        ([step(1, 2), step(3, finish_reason="stop")], 2, False),
        ([step(1, 2), step(3, finish_reason="stop")], 3, True),
        ([step(1, 2), step(finish_reason="length")], 2, True),
        ([step(1, 2), step(3, finish_reason="stop")], None, True),
        ([step(finish_reason="stop")], 0, True),
    ],
)
def test_the_whole_of_a_candidate_that_has_ended_is_final(
    steps: list[GeneratedTokens], tokens: int | None, *, final: bool
) -> None:
    assert beginning(steps, tokens).final is final
    candidate = Candidate(0, 0, Sampling(0, 1.0, 1, 10), drawn_s=0.0)
    for each in steps:
        candidate.grow(each, 0.0)
    assert candidate.record().whole.final is beginning(steps).final
    if tokens is not None:
        assert candidate.beginning(tokens).final is final
