"""Bootstrap intervals."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from adaptive.evaluation.statistics import Bootstrap, Estimate, quantile


def test_an_interval_holds_its_mean_and_is_the_same_for_the_same_seed() -> None:
    values = [float(place % 7) for place in range(50)]
    found = Bootstrap(50, resamples=300, seed=1).mean(values)
    assert found == Bootstrap(50, resamples=300, seed=1).mean(values)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Of 200 samples of 40 with mean 0.5; fewer than 176 covered has a chance of 1 in 2,000, were it 95 %."""
    source = random.Random(5)  # noqa: S311 -- an experiment
    covered = 0
    for trial in range(200):
        values = [float(source.random() < 0.5) for _ in range(40)]
        found = Bootstrap(40, resamples=200, seed=trial).mean(values)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.5 <= found.high
    assert covered >= 176


def test_a_ratio_is_of_the_sums_and_not_a_mean_of_ratios() -> None:
    found = Bootstrap(2, resamples=50).ratio([1.0, 8.0], [1.0, 9.0])
    assert found.value == 0.9


def test_a_ratio_without_a_denominator_is_no_number_and_has_no_interval() -> None:
    found = Bootstrap(2, resamples=50).ratio([1.0, 1.0], [0.0, 0.0])
    assert math.isnan(found.value)
    assert (found.low, found.high) == (None, None)


def test_a_ratio_that_most_resamples_do_not_define_has_no_interval() -> None:
    found = Bootstrap(2, resamples=200).ratio([1.0, 0.0], [1.0, 0.0])  # a quarter of them lack the first prompt
    assert found == Estimate(1.0, None, None)


def test_one_value_per_prompt_is_asked_for() -> None:
    with pytest.raises(ValueError, match="3 and 3 values for 2 prompts"):
        Bootstrap(2, resamples=1).mean([1.0, 2.0, 3.0])


def test_quantiles_lie_between_neighbours() -> None:
    assert [quantile([1.0, 2.0, 4.0], share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1.0, 1.5, 2.0, 3.0, 4.0]


def test_any_figure_has_an_interval_like_that_of_a_ratio() -> None:
    values = [0.0, 1.0, 1.0, 3.0, 5.0]
    bootstrap = Bootstrap(5, resamples=200)

    def mean(weights: Sequence[int]) -> float:
        return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)

    assert bootstrap.figure(mean) == bootstrap.mean(values)


def test_a_figure_that_too_few_resamples_define_has_no_interval() -> None:
    found = Bootstrap(4, resamples=200).figure(lambda weights: 1.0 if weights[0] else math.nan)
    assert (found.value, found.low, found.high) == (1.0, None, None)
    none = Bootstrap(4, resamples=200).figure(lambda _: math.nan)
    assert math.isnan(none.value)
    assert none.low is None
