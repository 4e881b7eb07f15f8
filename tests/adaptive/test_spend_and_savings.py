"""What a run cost, and what it saved."""

from __future__ import annotations

import json

import pytest

from adaptive.candidate import Fate
from adaptive.engine import EngineFailed
from adaptive.policy import Checkpoint, Mode, Policy
from adaptive.savings import estimated, measured, regret

from .runs import Played, constant, make_engine, play, script

PRUNED = Policy(mode=Mode.BEST_OF_N, n_max=4, checkpoints=(Checkpoint(2, 0.5),))


@pytest.fixture(scope="module")
def played() -> Played:
    """Four candidates of 10, 8, 10, 10 tokens; two pruned at 2 tokens; 6 scores of one computed token each."""
    engine = make_engine([script(0, 10), script(1, 8), script(2, 10), script(3, 10)], constant(0.8, 0.9, 0.2, 0.1))
    return play(engine, PRUNED)


def test_tokens_and_candidates_are_counted_by_fate(played: Played) -> None:
    spend = played.outcome.spend
    assert (spend.tokens[Fate.RETURNED], spend.tokens[Fate.FINISHED], spend.tokens[Fate.PRUNED]) == (8, 10, 4)
    assert (spend.candidates[Fate.PRUNED], spend.candidates[Fate.FAILED], spend.drawn) == (2, 0, 4)
    assert spend.generated_tokens == 22


def test_scoring_is_counted_with_the_label_tokens_it_read(played: Played) -> None:
    spend = played.outcome.spend
    assert (spend.scores, spend.scoring_calls, spend.scoring_tokens) == (6, 3, 12)


def test_savings_are_what_is_left_of_full_best_of_n_after_everything_spent(played: Played) -> None:
    saved = played.outcome.savings
    assert saved.full_tokens == 10 + 8 + 2 * 9
    assert saved.saved_tokens == 36 - 22 - 12
    assert saved.saved_share == pytest.approx(2 / 36)
    assert saved.estimated
    cheaper = estimated(played.outcome.trace.candidates, played.outcome.spend, 4, prefill_weight=0.25)
    assert cheaper.saved_tokens == 36 - 22 - 3


def test_candidates_that_were_never_drawn_count_as_long_as_the_mean() -> None:
    played = play(make_engine([script(0, 6)], constant(0.95)), Policy(n_max=8, checkpoints=()))
    assert played.outcome.savings.full_tokens == 48


def test_a_candidate_that_was_cut_counts_for_at_least_what_it_had() -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=(), deadline_ms=10_500)
    played = play(make_engine([script(0, 20), script(1, 3)]), policy)
    assert played.outcome.savings.full_tokens == 3 + 10


def test_lost_candidates_are_spent_and_save_nothing() -> None:
    scripts = [script(0, 6), script(1, 5, failure=EngineFailed("lost"))]
    played = play(make_engine(scripts), Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=()))
    assert (played.outcome.savings.full_tokens, played.outcome.savings.spent_tokens) == (12, 11)


def test_measured_savings_rest_on_a_run_and_not_on_assumptions(played: Played) -> None:
    full = play(make_engine([script(c, 10) for c in range(4)], score_s=3.0), PRUNED.exhaustive())
    saved = measured(played.outcome.spend, full.outcome.spend)
    assert (saved.full_tokens, saved.estimated) == (40, False)
    assert saved.full_engine_s == 4 * 10
    assert saved.spent_engine_s == played.outcome.spend.engine_s


def test_engine_seconds_are_those_of_every_candidate_and_of_every_scoring_call_once() -> None:
    engine = make_engine(
        [script(0, 10), script(1, 8, every_s=2.0), script(2, 10)], constant(0.8, 0.9, 0.1), score_s=0.5
    )
    spend = play(engine, Policy(mode=Mode.BEST_OF_N, n_max=3, checkpoints=(Checkpoint(2, 0.5),))).outcome.spend
    # The checkpoint is reached by the slowest at 4 s; its score is there half a second later, and stops the last.
    assert spend.candidate_s == 10 + 16 + 4.5
    assert spend.scoring_s == 3 * 0.5
    assert spend.engine_s == 32


def test_engine_seconds_of_full_best_of_n_are_estimated_as_its_tokens_are(played: Played) -> None:
    saved = played.outcome.savings
    assert saved.full_engine_s == 10 + 8 + 2 * 9
    assert saved.spent_engine_s == 10 + 8 + 2 * 2
    assert saved.saved_engine_s == 14
    cut = play(make_engine([script(0, 6)], constant(0.95), score_s=2.0), Policy(n_max=8, checkpoints=()))
    assert (cut.outcome.savings.full_engine_s, cut.outcome.savings.spent_engine_s) == (48, 8)


def test_a_failed_scoring_call_took_its_time_too() -> None:
    engine = make_engine([script(c, 4) for c in range(2)], score_s=3.0, scoring_failures=[EngineFailed("no room")])
    spend = play(engine, Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=())).outcome.spend
    assert (spend.scoring_s, spend.scoring_tokens) == (3.0, 0)


def test_regret_is_never_negative() -> None:
    assert regret(0.5, [0.1, 0.75]) == 0.25
    assert regret(0.9, [0.1, 0.7]) == 0.0


def test_a_trace_is_json_and_holds_what_the_candidates_wrote_only_if_asked(played: Played) -> None:
    trace = played.outcome.trace
    plain = json.loads(json.dumps(trace.to_plain(with_text=True)))
    assert plain["candidates"][1]["text"].startswith("2000 2001 ")
    assert [each["fate"] for each in plain["candidates"]] == ["finished", "returned", "pruned", "pruned"]
    assert [each["decision"] for each in plain["decisions"]] == ["drew", "pruned", "stopped", "picked"]
    assert plain["policy"]["checkpoints"] == [{"tokens": 2, "keep": 0.5}]
    assert plain["candidates"][2]["scores"][0]["value"] == pytest.approx(0.2)
    assert "text" not in trace.to_plain(with_text=False)["candidates"][1]
