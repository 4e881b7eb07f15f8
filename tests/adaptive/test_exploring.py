"""A full best-of-N that was really run, against the run that it measures."""

from __future__ import annotations

import pytest

from adaptive.engine import EngineFailed
from adaptive.exploring import NotExhaustive, explored, final_score, full_scores
from adaptive.policy import Checkpoint, Mode, Policy
from adaptive.seeds import candidate_seed, exploration_seed

from .runs import constant, make_engine, play, script

ADAPTIVE = Policy(n_max=3, threshold=0.5, checkpoints=())
SCORER = "self_evaluation"


def test_regret_and_savings_are_those_of_the_two_runs() -> None:
    answered = play(make_engine([script(0, 6)], constant(0.6)), ADAPTIVE).outcome
    full = play(make_engine([script(c, 10) for c in range(3)], constant(0.2, 0.9, 0.4)), ADAPTIVE.exhaustive()).outcome
    scores = full_scores(full.trace.candidates, 3, SCORER)
    assert scores == pytest.approx((0.2, 0.9, 0.4))
    found = explored(answered, 0.6, full.spend, scores)
    assert found.returned == 0.6
    assert found.best == pytest.approx(0.9)
    assert found.regret == pytest.approx(0.3)
    assert found.savings.full_tokens == 30
    assert found.savings.spent_tokens + found.savings.scoring_cost == 6 + 2
    assert (found.savings.full_engine_s, found.savings.spent_engine_s) == (30, 6)


def test_a_reply_that_was_scored_in_full_has_a_final_score_and_one_that_was_cut_has_none() -> None:
    whole = play(make_engine([script(0, 6)], constant(0.6)), ADAPTIVE).outcome.choices[0]
    score = final_score(whole, SCORER)
    assert score is not None
    assert score.value == pytest.approx(0.6)
    assert final_score(whole, "group_confidence") is None
    policy = Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=(Checkpoint(2, 1.0),), deadline_ms=3500)
    cut = play(make_engine([script(c, 9) for c in range(2)]), policy).outcome.choices[0]
    assert cut.score is not None
    assert final_score(cut, SCORER) is None


def test_a_run_that_lost_a_candidate_is_no_full_best_of_n_and_says_why() -> None:
    scripts = [script(0, 6), script(1, 5, failure=EngineFailed("reset")), script(2, 6)]
    records = play(make_engine(scripts), ADAPTIVE.exhaustive()).outcome.trace.candidates
    with pytest.raises(NotExhaustive, match="2 of 3 candidates ended: reset"):
        full_scores(records, 3, SCORER)


def test_a_run_that_another_scorer_judged_is_no_full_best_of_n() -> None:
    engine = make_engine([script(c, 6) for c in range(3)], scoring_failures=[EngineFailed("no room")])
    outcome = play(engine, ADAPTIVE.exhaustive()).outcome
    assert outcome.scorer == "mean_log_probability"
    with pytest.raises(NotExhaustive, match="0 of 3 candidates were scored by self_evaluation"):
        full_scores(outcome.trace.candidates, 3, SCORER)


@pytest.mark.parametrize(
    ("policy", "choices", "saves"),
    [
        (Policy(), 1, True),
        (Policy(checkpoints=()), 1, True),
        (Policy(mode=Mode.BEST_OF_N), 1, True),
        (Policy(mode=Mode.BEST_OF_N, checkpoints=()), 1, False),
        (Policy(mode=Mode.OFF), 1, False),
        (Policy(n_max=2), 2, False),
        (Policy(n_max=3), 2, True),
    ],
)
def test_a_policy_may_save_where_it_may_draw_fewer_or_prune(policy: Policy, choices: int, saves: bool) -> None:
    assert policy.may_save(choices) is saves


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 - 1, 2**70])
def test_an_exploration_draws_none_of_the_requests_own_candidates_and_always_the_same(seed: int) -> None:
    own = {candidate_seed(seed, index) for index in range(64)}
    again = exploration_seed(seed)
    assert again == exploration_seed(seed)
    assert 0 <= again < 2**63
    assert not own & {candidate_seed(again, index) for index in range(64)}
