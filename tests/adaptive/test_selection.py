"""Which candidate is the reply."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.selection import (
    Finalist,
    First,
    HighestScore,
    Majority,
    RewardModel,
    SelectionFailed,
    by_score,
    by_votes,
)

from .runs import probabilities

fields = st.lists(
    st.tuples(st.sampled_from("abc"), st.none() | probabilities, st.booleans(), st.integers(0, 9)),
    min_size=1,
    max_size=8,
).map(lambda rows: [Finalist(index, *row) for index, row in enumerate(rows)])


def finalist(index: int, text: str = "", score: float | None = None, *, complete: bool = True) -> Finalist:
    return Finalist(index, text, score, complete, tokens=5)


@given(fields, st.randoms(use_true_random=False))
def test_rankings_are_complete_and_do_not_depend_on_order(field: list[Finalist], rng: random.Random) -> None:
    shuffled = list(field)
    rng.shuffle(shuffled)
    for rank in (by_score, lambda each: by_votes(each, [one.text for one in each])):
        assert rank(shuffled) == rank(field)
        assert sorted(rank(field)) == list(range(len(field)))


@given(fields)
def test_a_complete_reply_comes_before_one_that_was_cut(field: list[Finalist]) -> None:
    complete = {each.index: each.complete for each in field}
    ranked = [complete[index] for index in by_score(field)]
    assert ranked == sorted(ranked, reverse=True)


async def test_the_highest_score_wins_and_ties_keep_the_earlier() -> None:
    field = [finalist(0, score=0.2), finalist(1, score=0.7), finalist(2, score=0.7), finalist(3)]
    assert await HighestScore().rank(field) == (1, 2, 0, 3)


def test_of_unscored_replies_that_were_cut_the_longest_wins() -> None:
    assert by_score([Finalist(0, "", None, False, 3), Finalist(1, "", None, False, 8)]) == (1, 0)


async def test_first_takes_the_earliest_complete_reply() -> None:
    assert await First().rank([finalist(0, complete=False), finalist(1), finalist(2)]) == (1, 2, 0)


async def test_most_votes_win_and_the_best_of_them_is_returned() -> None:
    field = [finalist(0, "x", 0.9), finalist(1, "y", 0.1), finalist(2, "y", 0.3), finalist(3, "", 1.0)]
    assert await Majority(lambda text: text or None).rank(field) == (2, 1, 0, 3)


async def test_answers_with_equal_votes_are_ordered_by_their_best_reply() -> None:
    field = [finalist(0, "x", 0.2), finalist(1, "y", 0.1), finalist(2, "x", 0.3), finalist(3, "y", 0.8)]
    assert await Majority(str).rank(field) == (3, 1, 2, 0)


async def test_a_reply_that_was_cut_does_not_vote() -> None:
    field = [finalist(0, "x"), finalist(1, "y", complete=False), finalist(2, "y", complete=False)]
    assert (await Majority(str).rank(field))[0] == 0


class Rewards:
    def __init__(self, *rewards: float) -> None:
        self.given = rewards
        self.replies: Sequence[Finalist] = ()

    async def rewards(self, replies: Sequence[Finalist]) -> tuple[float, ...]:
        self.replies = replies
        return self.given


async def test_the_highest_reward_wins_even_below_zero() -> None:
    rewards = Rewards(-5.0, -2.0, -3.0)
    assert await RewardModel(rewards).rank([finalist(0, "a"), finalist(1, "b"), finalist(2, "c")]) == (1, 2, 0)
    assert [each.text for each in rewards.replies] == ["a", "b", "c"]


@pytest.mark.parametrize("given_rewards", [(1.0,), (1.0, math.nan)])
async def test_rewards_that_make_no_sense_are_a_failure(given_rewards: tuple[float, ...]) -> None:
    with pytest.raises(SelectionFailed):
        await RewardModel(Rewards(*given_rewards)).rank([finalist(0), finalist(1)])
