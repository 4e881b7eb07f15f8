"""Self-evaluation turns two log-probabilities into a score, whatever their size."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.self_evaluation import LITERAL_QUESTION, SelfEvaluation, self_evaluate

logprobs = st.floats(min_value=-1e6, max_value=0.0) | st.just(-math.inf)


def test_the_score_is_the_share_of_the_win_or_tie_label() -> None:
    score = self_evaluate(math.log(0.3), math.log(0.1))
    assert score.p_win_or_tie == pytest.approx(0.75)
    assert score.label_mass == pytest.approx(0.4)


def test_the_log_odds_are_exact_where_the_share_rounds_to_one() -> None:
    score = self_evaluate(-0.5, -60.0)
    assert (score.p_win_or_tie, score.log_odds) == (1.0, 59.5)
    assert self_evaluate(-math.inf, -1.0).log_odds == -math.inf


def test_labels_far_below_zero_still_have_a_ratio() -> None:
    score = self_evaluate(-2000.0, -2000.0 - math.log(3))
    assert score.p_win_or_tie == pytest.approx(0.75)
    assert score.label_mass == 0.0


def test_two_impossible_labels_say_nothing_either_way() -> None:
    assert self_evaluate(-math.inf, -math.inf) == SelfEvaluation(0.5, 0.0, log_odds=0.0)


@given(logprobs, logprobs)
def test_both_numbers_lie_between_zero_and_one(win_or_tie: float, loss: float) -> None:
    score = self_evaluate(win_or_tie, loss)
    assert 0.0 <= score.p_win_or_tie <= 1.0
    assert 0.0 <= score.label_mass <= 1.0


@given(logprobs, logprobs)
def test_exchanging_the_labels_exchanges_the_chances(one: float, other: float) -> None:
    assert self_evaluate(one, other).p_win_or_tie + self_evaluate(other, one).p_win_or_tie == pytest.approx(1.0)


@given(st.floats(min_value=-50.0, max_value=0.0), st.floats(min_value=0.0, max_value=50.0), logprobs)
def test_a_likelier_win_or_tie_label_never_lowers_the_score(lower: float, more: float, loss: float) -> None:
    higher = min(0.0, lower + more)
    assert self_evaluate(higher, loss).p_win_or_tie >= self_evaluate(lower, loss).p_win_or_tie


@pytest.mark.parametrize("wrong", [math.nan, 0.5, math.inf])
def test_what_is_no_log_probability_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="log-probability"):
        self_evaluate(wrong, -1.0)
    with pytest.raises(ValueError, match="log-probability"):
        self_evaluate(-1.0, wrong)


def test_no_is_the_answer_that_speaks_for_the_response() -> None:
    assert "started over?" in LITERAL_QUESTION.text
    assert (LITERAL_QUESTION.win_or_tie, LITERAL_QUESTION.loss) == (("No",), ("Yes",))
