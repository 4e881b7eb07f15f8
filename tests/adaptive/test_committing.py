"""When a streaming client can be given a candidate that is still being generated."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from adaptive.committing import Commit, CommitReason, Contender, best_so_far, commit

from .runs import probabilities

fields = st.lists(st.tuples(st.integers(0, 50), st.none() | probabilities, st.booleans()), min_size=1, max_size=8).map(
    lambda rows: [Contender(index, *row) for index, row in enumerate(rows)]
)


def contender(index: int, tokens: int = 10, score: float | None = None, *, running: bool = True) -> Contender:
    return Contender(index, tokens, score, running)


def test_one_left_is_settled_on_only_if_no_other_will_be_drawn() -> None:
    one = [contender(3)]
    assert commit(one, more_to_come=False, threshold=None, commit_at=None) == Commit(3, CommitReason.ONE_LEFT)
    assert commit(one, more_to_come=True, threshold=None, commit_at=None) is None


def test_a_score_at_the_threshold_settles_it() -> None:
    field = [contender(0, score=0.89), contender(1, score=0.9)]
    assert commit(field, more_to_come=True, threshold=0.9, commit_at=None) == Commit(1, CommitReason.CLEAR)
    assert commit(field, more_to_come=True, threshold=None, commit_at=None) is None


def test_commit_at_takes_the_best_so_far_once_any_running_candidate_is_there() -> None:
    field = [contender(0, 9, 0.2), contender(1, 4, 0.6)]
    assert commit(field, more_to_come=True, threshold=0.9, commit_at=9) == Commit(1, CommitReason.COMMIT_AT)
    assert commit(field, more_to_come=True, threshold=0.9, commit_at=10) is None


def test_even_the_lowest_score_is_better_than_none() -> None:
    assert best_so_far([contender(0), contender(1, score=0.0)]).index == 1


def test_nobody_is_settled_on_when_nobody_is_there() -> None:
    assert commit([], more_to_come=False, threshold=0.0, commit_at=1) is None


@given(fields, st.randoms(use_true_random=False))
def test_the_best_so_far_has_a_score_if_any_has_and_does_not_depend_on_order(
    field: list[Contender], rng: random.Random
) -> None:
    best = best_so_far(field)
    scored = [each for each in field if each.score is not None]
    if scored:
        assert best.score == max(each.score for each in scored if each.score is not None)
    assert all(other.index >= best.index for other in field if other.score == best.score)
    shuffled = list(field)
    rng.shuffle(shuffled)
    assert best_so_far(shuffled) == best
