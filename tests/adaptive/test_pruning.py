"""Who goes on after a checkpoint."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.pruning import Standing, kept, prune, reached

from .runs import probabilities, shares

fields = st.lists(st.tuples(probabilities, st.booleans()), max_size=20).map(
    lambda pairs: [Standing(index, score, running) for index, (score, running) in enumerate(pairs)]
)


@given(fields, shares, st.integers(min_value=1, max_value=4), st.randoms(use_true_random=False))
def test_pruning_ignores_the_order_of_the_candidates(
    field: list[Standing], keep: float, least: int, rng: random.Random
) -> None:
    shuffled = list(field)
    rng.shuffle(shuffled)
    assert prune(shuffled, keep, least) == prune(field, keep, least)


@given(fields, shares)
def test_pruning_never_takes_the_last_candidate(field: list[Standing], keep: float) -> None:
    assert len(prune(field, keep)) < max(1, len(field))


@given(fields, shares, st.integers(min_value=1, max_value=4))
def test_only_running_candidates_are_pruned_and_none_better_than_one_that_goes_on(
    field: list[Standing], keep: float, least: int
) -> None:
    pruned = set(prune(field, keep, least))
    going_on = [each for each in field if each.running and each.index not in pruned]
    for each in field:
        if each.index in pruned:
            assert each.running
            assert all(other.score >= each.score for other in going_on)
    assert len(field) - len(pruned) >= min(least, len(field))


def test_on_a_tie_the_earlier_goes_on() -> None:
    assert prune([Standing(2, 0.5, True), Standing(0, 0.5, True), Standing(1, 0.5, True)], 0.34) == (2,)
    assert prune([Standing(1, 0.5, True), Standing(0, 0.5, True)], 0.5) == (1,)


def test_one_that_ended_takes_a_place_among_the_best_and_is_never_stopped() -> None:
    field = [Standing(0, 0.9, False), Standing(1, 0.5, True), Standing(2, 0.1, False)]
    assert prune(field, 0.3) == (1,)


@pytest.mark.parametrize(
    ("compared", "keep", "expected"), [(8, 0.5, 4), (3, 0.5, 2), (100, 0.07, 7), (1, 0.1, 1), (0, 0.5, 0), (4, 1.0, 4)]
)
def test_the_share_is_rounded_up(compared: int, keep: float, expected: int) -> None:
    assert kept(compared, keep) == expected


def test_a_checkpoint_is_reached_when_the_slowest_is_there() -> None:
    assert reached(64, [64, 200])
    assert not reached(64, [63, 200])
