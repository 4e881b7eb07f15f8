"""The loop, on scripts whose timing is exact."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.annealing import Annealing
from adaptive.best_of_n import BestOfN
from adaptive.calibration import CalibrationMap
from adaptive.candidate import Fate
from adaptive.clock import LoopClock
from adaptive.committing import CommitReason
from adaptive.engine import EngineBusy, EngineFailed, EngineRejected, GeneratedTokens, Sampling, TokenIds
from adaptive.events import Committed, Delta, Event
from adaptive.limits import Ceiling, LoadShedding
from adaptive.policy import AtDeadline, Checkpoint, Mode, Policy, Streaming
from adaptive.run import Request
from adaptive.scoring import (
    GroupConfidenceScorer,
    MeanLogProbabilityScorer,
    ReadOutScorer,
    SelfEvaluationScorer,
    StagedScorer,
)
from adaptive.scripted import Script, ScriptedEngine, reply
from adaptive.seeds import candidate_seed
from adaptive.selection import First, Majority, RewardModel, SelectionFailed
from adaptive.stopping import StopReason
from adaptive.trace import Drew, Pruned, SettledOn, Stopped
from adaptive.virtual_time import run_virtually

from .calibrations import LOG_PROBABILITIES
from .runs import LABELS, PROMPT, QUESTION, Played, constant, make_engine, make_run, play, script, tokens_of

ADAPTIVE = Policy(mode=Mode.ADAPTIVE, n_max=8, threshold=0.9, checkpoints=())
BEST_OF_4 = Policy(mode=Mode.BEST_OF_N, n_max=4, checkpoints=())


shares = st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9])


def read_out(said: Script, p_win_or_tie: float) -> Script:
    """Return it with a read-out at every token."""
    reading = (math.log(p_win_or_tie), math.log(1 - p_win_or_tie))
    steps = [
        replace(step, tokens=replace(step.tokens, readouts=(reading,) * len(step.tokens.token_ids)))
        for step in said.steps
    ]
    return replace(said, steps=tuple(steps))


def pruned_at(tokens: int, keep: float, mode: Mode = Mode.BEST_OF_N, n_max: int = 4) -> Policy:
    return Policy(mode=mode, n_max=n_max, checkpoints=(Checkpoint(tokens, keep),))


def batches(played: Played) -> list[int]:
    return [len(each.candidates) for each in played.outcome.trace.decisions if isinstance(each, Drew)]


def prunings(played: Played) -> list[Pruned]:
    return [each for each in played.outcome.trace.decisions if isinstance(each, Pruned)]


def streamed_tokens(events: list[tuple[float, Event]], choice: int = 0) -> TokenIds:
    deltas = [event for _, event in events if isinstance(event, Delta) and event.choice == choice]
    return tuple(token for delta in deltas for token in delta.tokens.token_ids)


# Adaptive sampling.


def test_one_candidate_is_drawn_when_it_reaches_the_threshold() -> None:
    played = play(make_engine([script(0, 5)], constant(0.95)), ADAPTIVE)
    assert played.outcome.reason is StopReason.THRESHOLD
    assert played.outcome.spend.drawn == 1
    assert played.outcome.choices[0].token_ids == tokens_of(0, 5)


def test_below_the_threshold_batches_double_up_to_n_max() -> None:
    played = play(make_engine([script(c, 3) for c in range(8)], lambda c, _: c / 10), ADAPTIVE)
    assert batches(played) == [1, 1, 2, 4]
    assert played.outcome.reason is StopReason.N_MAX
    assert played.returned == 7


def test_a_good_candidate_stops_its_siblings_at_once() -> None:
    scripts = [script(0, 2), script(1, 2), script(2, 4), script(3, 50)]
    played = play(make_engine(scripts, constant(0.1, 0.2, 0.95, 0.99)), ADAPTIVE)
    assert (played.returned, played.outcome.reason) == (2, StopReason.THRESHOLD)
    assert played.engine.aborted == {3: 8.0}
    assert played.took_s == 8.0


def test_a_high_score_at_a_checkpoint_does_not_stop_sampling_when_the_candidate_ends() -> None:
    """Only its final score may: what it looked like half way is no judgement of what it became."""
    scripts = [script(0, 3), script(1, 2), script(2, 4)]

    def score(candidate: int, tokens: int) -> float:
        return 0.95 if (candidate, tokens) == (2, 2) else 0.1 * (candidate + 1)

    policy = Policy(n_max=3, batch_growth=3, checkpoints=(Checkpoint(2, 0.5),))
    played = play(make_engine(scripts, score), policy)
    assert played.outcome.reason is StopReason.N_MAX
    assert played.outcome.choices[0].scores[-1].value == pytest.approx(0.3)


def test_later_candidates_are_drawn_at_annealed_temperatures_and_derived_seeds() -> None:
    policy = Policy(mode=Mode.ADAPTIVE, n_max=3, checkpoints=(), annealing=Annealing(start=1.0, end=0.0, rate=0.5))
    played = play(make_engine([script(c, 1) for c in range(3)]), policy, seed=7)
    assert [each.temperature for each in played.engine.drawn] == [1.0, 0.5, 0.25]
    assert [each.seed for each in played.engine.drawn] == [7, candidate_seed(7, 1), candidate_seed(7, 2)]


def test_candidates_of_best_of_n_are_drawn_together_at_the_same_temperature() -> None:
    played = play(make_engine([script(c, 2) for c in range(4)]), BEST_OF_4)
    assert batches(played) == [4]
    assert {each.temperature for each in played.engine.drawn} == {1.0}
    assert played.took_s == 2.0


def test_every_candidate_is_drawn_from_exactly_the_same_prompt_tokens() -> None:
    assert set(play(make_engine([script(c, 2) for c in range(4)]), BEST_OF_4).engine.prompts) == {PROMPT}


def test_a_policy_that_is_off_draws_one_candidate_and_scores_nothing() -> None:
    played = play(make_engine([script(0, 3)]), Policy(mode=Mode.OFF))
    assert (played.outcome.spend.drawn, played.engine.scored) == (1, [])
    assert played.engine.drawn[0].top_logprobs is None


# Scoring and pruning.


def test_all_candidates_due_at_a_checkpoint_are_scored_in_one_call() -> None:
    played = play(make_engine([script(c, 6) for c in range(4)], constant(0.4, 0.3, 0.2, 0.1)), pruned_at(3, 0.5))
    assert played.engine.scored[0] == tuple(PROMPT + tokens_of(c, 3) + QUESTION for c in range(4))


def test_a_checkpoint_keeps_the_best_share_and_aborts_the_others_upstream() -> None:
    played = play(make_engine([script(c, 6) for c in range(4)], constant(0.1, 0.4, 0.3, 0.2)), pruned_at(3, 0.5))
    assert prunings(played)[0].pruned == (0, 3)
    assert played.engine.aborted == {0: 3.0, 3: 3.0}
    assert played.outcome.spend.tokens[Fate.PRUNED] == 6
    assert played.returned == 1


def test_candidates_grow_on_while_they_are_scored_and_are_pruned_when_the_scores_arrive() -> None:
    engine = make_engine([script(c, 10) for c in range(2)], constant(0.1, 0.4), score_s=4.5)
    played = play(engine, pruned_at(3, 0.5, n_max=2))
    assert engine.aborted == {0: 7.5}
    assert played.outcome.trace.candidates[0].tokens == 7
    assert played.took_s == 10.0
    assert [score.tokens for score in played.outcome.trace.candidates[0].scores] == [3]


def test_a_candidate_that_ended_while_it_was_scored_stays_in_the_running() -> None:
    engine = make_engine([script(0, 4), script(1, 20)], constant(0.1, 0.4), score_s=5.0)
    played = play(engine, pruned_at(3, 0.5, n_max=2))
    assert prunings(played)[0].pruned == ()
    assert played.outcome.trace.candidates[0].fate is Fate.FINISHED


def test_at_a_checkpoint_the_calibration_is_that_of_its_length_and_at_the_end_that_of_ended_replies() -> None:
    turned = {"up_to": 9, "weights": [-1.0], "bias": 0.0, "knots": [[-4.0, 0.0], [4.0, 1.0]]}
    kept = {"final": True, "weights": [1.0], "bias": 0.0, "knots": [[-4.0, 0.0], [4.0, 1.0]]}
    calibration = CalibrationMap.from_plain({"features": ["log_odds"], "buckets": [turned, kept]})
    engine = make_engine([script(c, 6) for c in range(4)], constant(0.1, 0.4, 0.3, 0.2))
    scorer = SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS, calibration=calibration)
    played = play(engine, pruned_at(3, 0.5), scorers=[scorer])
    assert prunings(played)[0].pruned == (1, 2)
    assert played.returned == 3


def test_staged_prunes_by_what_the_streams_carry_and_asks_once_of_those_that_have_ended() -> None:
    engine = make_engine(
        [read_out(script(c, 6), p) for c, p in enumerate((0.3, 0.9, 0.1, 0.8))], constant(1, 0.4, 1, 0.6)
    )
    asking = SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS)
    played = play(engine, pruned_at(3, 0.5), scorers=[StagedScorer(ReadOutScorer(LABELS), asking)])
    (pruning,) = prunings(played)
    assert pruning.pruned == (0, 2)
    assert pruning.scores == pytest.approx((0.3, 0.9, 0.1, 0.8))
    assert engine.aborted == {0: 3.0, 2: 3.0}
    assert engine.scored == [tuple(PROMPT + tokens_of(c, 6) + QUESTION for c in (1, 3))]
    assert played.returned == 3
    assert [call.computed_tokens for call in played.outcome.trace.scoring] == [0, 2]
    assert {sampling.readout_ids for sampling in engine.drawn} == {LABELS.ids}


@given(st.lists(st.tuples(st.integers(1, 9), shares, shares), min_size=2, max_size=6), st.integers(1, 8), shares)
def test_staged_never_asks_of_what_goes_on(
    candidates: list[tuple[int, float, float]], checkpoint: int, threshold: float
) -> None:
    scripts = [read_out(script(c, count), p) for c, (count, p, _) in enumerate(candidates)]
    engine = make_engine(scripts, constant(*(score for _, _, score in candidates)), score_s=0.5)
    asking = SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS)
    policy = replace(pruned_at(checkpoint, 0.5, Mode.ADAPTIVE, len(candidates)), threshold=threshold)
    played = play(engine, policy, scorers=[StagedScorer(ReadOutScorer(LABELS), asking)])
    assert not played.outcome.degradations
    whole = {PROMPT + tokens_of(c, count) + QUESTION for c, (count, _, _) in enumerate(candidates)}
    asked = [sequence for call in engine.scored for sequence in call]
    assert set(asked) <= whole
    assert len(set(asked)) == len(asked)
    for record, (_, p, score) in zip(played.outcome.trace.candidates, candidates, strict=False):
        assert [each.value for each in record.scores] == pytest.approx(
            [score if each.final else p for each in record.scores]
        )


def test_log_probabilities_are_asked_for_where_the_calibration_reads_them() -> None:
    engine = make_engine([script(c, 3) for c in range(2)])
    calibration = CalibrationMap.from_plain(LOG_PROBABILITIES)
    scorer = SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS, calibration=calibration)
    play(engine, BEST_OF_4, scorers=[scorer])
    assert {sampling.top_logprobs for sampling in engine.drawn} == {0}


def test_a_sibling_that_ended_before_the_checkpoint_competes_with_its_final_score() -> None:
    engine = make_engine([script(0, 2), script(1, 9), script(2, 9)], constant(0.9, 0.3, 0.4))
    played = play(engine, pruned_at(5, 0.5, n_max=3))
    assert prunings(played)[0].compared == (0, 1, 2)
    assert prunings(played)[0].pruned == (1,)


def test_the_next_checkpoint_waits_for_the_scores_of_the_one_before() -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=4, checkpoints=(Checkpoint(2, 0.5), Checkpoint(4, 0.5)))
    engine = make_engine([script(c, 12) for c in range(4)], constant(0.1, 0.2, 0.3, 0.4), score_s=5.0)
    played = play(engine, policy)
    assert [(each.checkpoint, each.pruned, each.at_s) for each in prunings(played)] == [
        (2, (0, 1), 7.0),
        (4, (2,), 12.0),
    ]


def test_scores_of_a_batch_that_was_lost_meanwhile_decide_nothing_in_the_next() -> None:
    policy = Policy(mode=Mode.ADAPTIVE, n_max=4, threshold=0.9, checkpoints=(Checkpoint(2, 0.5),))
    scripts = [script(0, 3, failure=EngineFailed("lost")), script(1, 9)]
    engine = make_engine(scripts, constant(0.1, 0.95), score_s=5.5)
    played = play(engine, policy, stream=True)
    assert [call.answered_s for call in played.outcome.trace.scoring] == [7.5, 10.5]
    assert [(each.compared, each.at_s) for each in prunings(played)] == [((1,), 10.5)]


def test_a_checkpoint_at_which_nothing_can_be_decided_costs_nothing() -> None:
    policy = Policy(mode=Mode.ADAPTIVE, n_max=2, threshold=0.9, checkpoints=(Checkpoint(2, 0.5),))
    played = play(make_engine([script(0, 6)], constant(0.95)), policy)
    assert played.engine.scored == [((*PROMPT, *tokens_of(0, 6), *QUESTION),)]


def test_the_last_candidate_is_not_scored_where_nothing_depends_on_it() -> None:
    played = play(make_engine([script(c, 6) for c in range(4)], constant(0.1, 0.4, 0.3, 0.2)), pruned_at(3, 0.01))
    assert len(played.engine.scored) == 1
    assert played.returned == 1


def test_a_replacement_is_drawn_when_the_only_survivor_is_lost() -> None:
    scripts = [script(0, 4, failure=EngineFailed("gone")), script(1, 9), script(2, 9)]
    played = play(make_engine(scripts, constant(0.9, 0.1, 0.2)), pruned_at(3, 0.5, n_max=2))
    fates = [each.fate for each in played.outcome.trace.candidates]
    assert fates == [Fate.FAILED, Fate.PRUNED, Fate.RETURNED]


def test_users_with_opposite_constitutions_get_different_winners_from_the_same_candidates() -> None:
    brief, thorough = (11,), (12,)

    def judge(sequence: TokenIds) -> float:
        long = len(sequence) > 6
        return 0.9 if long == (sequence[0] == thorough[0]) else 0.1

    def winner(prompt: TokenIds) -> int:
        clock = LoopClock()
        engine = ScriptedEngine([script(0, 2), script(1, 9)], clock, judge=judge)
        scorer = SelfEvaluationScorer(engine, prompt, QUESTION, LABELS)
        request = Request(prompt, max_tokens=100, temperature=1.0, seed=1)
        policy = Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=())
        run = BestOfN(request, policy, engine=engine, scorers=[scorer], clock=clock)
        return run_virtually(run.run()).choices[0].index

    assert (winner(brief), winner(thorough)) == (0, 1)


# Limits.


def test_the_token_budget_is_given_to_the_engine_and_never_exceeded() -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=4, checkpoints=(), token_budget=22)
    played = play(make_engine([script(c, 50) for c in range(4)], constant(0.1, 0.9, 0.2, 0.3)), policy)
    assert [each.max_tokens for each in played.engine.drawn] == [5, 5, 5, 5]
    assert played.outcome.spend.generated_tokens == 20
    assert (played.returned, played.outcome.choices[0].complete) == (1, False)


def test_no_candidate_is_drawn_that_the_budget_would_cut_short() -> None:
    policy = Policy(mode=Mode.ADAPTIVE, n_max=8, checkpoints=(), token_budget=25)
    played = play(make_engine([script(c, 10) for c in range(8)]), policy)
    assert (batches(played), played.outcome.reason) == ([1, 1], StopReason.BUDGET)
    assert played.outcome.choices[0].complete


def test_at_the_deadline_a_complete_candidate_is_preferred_to_a_better_one_that_is_cut() -> None:
    policy = Policy(mode=Mode.ADAPTIVE, n_max=8, checkpoints=(), deadline_ms=5500)
    played = play(make_engine([script(0, 3), script(1, 30)], constant(0.2, 0.8)), policy)
    assert (played.returned, played.outcome.reason, played.took_s) == (0, StopReason.DEADLINE, 5.5)
    assert played.outcome.degradations == ()
    assert played.engine.aborted == {1: 5.5}


def test_at_the_deadline_the_best_so_far_is_returned_as_it_stands() -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=(Checkpoint(2, 1.0),), deadline_ms=4500)
    played = play(make_engine([script(0, 30), script(1, 30)], constant(0.2, 0.8)), policy)
    assert played.outcome.choices[0].token_ids == tokens_of(1, 4)
    assert played.took_s == 4.5
    assert not played.outcome.choices[0].complete


def test_a_deadline_before_the_first_token_returns_an_empty_reply_and_no_error() -> None:
    played = play(make_engine([script(0, 3)]), Policy(checkpoints=(), deadline_ms=500))
    assert (played.outcome.choices[0].tokens, played.outcome.reason) == (0, StopReason.DEADLINE)


def test_with_at_deadline_finish_the_best_so_far_alone_goes_on_to_its_end() -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=(), deadline_ms=2500, at_deadline=AtDeadline.FINISH)
    played = play(make_engine([script(0, 6), script(1, 6)]), policy)
    assert played.outcome.choices[0].complete
    assert (played.took_s, played.engine.aborted) == (6.0, {1: 2.5})
    assert {at for at, _ in played.events} == {6.0}


def test_with_at_deadline_finish_a_complete_candidate_is_returned_at_once() -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=(), deadline_ms=4500, at_deadline=AtDeadline.FINISH)
    played = play(make_engine([script(0, 30), script(1, 4)], constant(0.9, 0.1)), policy)
    assert (played.returned, played.took_s) == (1, 4.5)


def test_what_arrives_after_a_candidate_was_stopped_changes_nothing() -> None:
    played = play(make_engine([script(0, 5)]), Policy(checkpoints=(), deadline_ms=5000))
    assert (played.outcome.choices[0].tokens, played.outcome.choices[0].complete) == (4, False)


def test_a_reply_as_long_as_the_client_allows_is_complete() -> None:
    played = play(make_engine([script(0, 9)], constant(0.95)), ADAPTIVE, max_tokens=3)
    assert (played.outcome.choices[0].finish_reason, played.outcome.choices[0].complete) == ("length", True)
    assert played.outcome.reason is StopReason.THRESHOLD


def test_a_reply_cut_by_the_budget_does_not_reach_the_threshold() -> None:
    policy = Policy(mode=Mode.ADAPTIVE, checkpoints=(), token_budget=10)
    played = play(make_engine([script(0, 9), script(1, 9)], constant(0.95, 0.95)), policy, choices=2)
    assert [each.tokens for each in played.outcome.choices] == [5, 5]
    assert not any(each.complete for each in played.outcome.choices)
    assert played.outcome.reason is StopReason.BUDGET


def test_under_a_ceiling_of_one_candidates_are_drawn_one_after_another() -> None:
    ceiling = Ceiling(total=1, per_holder=1)
    policy = Policy(mode=Mode.ADAPTIVE, n_max=3, checkpoints=())
    played = play(make_engine([script(c, 3) for c in range(3)]), policy, slots=ceiling.slots("ada"))
    assert (batches(played), played.engine.most_running) == ([1, 1, 1], 1)


class SlowToClose(ScriptedEngine):
    """An engine whose streams go on for a second after their last step."""

    async def generate(self, prompt: TokenIds, sampling: Sampling) -> AsyncGenerator[GeneratedTokens, None]:
        async for step in super().generate(prompt, sampling):
            yield step
        await asyncio.sleep(1)


def test_a_slot_is_free_again_only_when_the_stream_is_closed() -> None:
    engine = SlowToClose([script(c, 3) for c in range(2)], LoopClock())
    ceiling = Ceiling(total=1, per_holder=1)
    policy = Policy(mode=Mode.ADAPTIVE, n_max=2, checkpoints=())
    played = play(engine, policy, slots=ceiling.slots("ada"))
    assert [each.drawn_s for each in played.outcome.trace.candidates] == [0.0, 4.0]


def test_a_replacement_waits_for_a_slot() -> None:
    ceiling = Ceiling(total=1, per_holder=1)
    engine = make_engine([script(0, 2, failure=EngineFailed("lost")), script(1, 3)])
    clock = LoopClock()

    async def main() -> tuple[float, int]:
        run = asyncio.create_task(make_run(engine, ADAPTIVE, slots=ceiling.slots("ada")).run())
        await clock.sleep(1)
        other = asyncio.create_task(ceiling.take_first("bob"))
        await other
        assert clock.now() == 2
        await clock.sleep(5)
        ceiling.give_back("bob")
        outcome = await run
        return outcome.trace.candidates[1].drawn_s, outcome.choices[0].index

    assert run_virtually(main()) == (7.0, 1)


def test_the_ceiling_on_concurrent_candidates_holds_and_is_given_back() -> None:
    ceiling = Ceiling(total=3, per_holder=2)
    played = play(make_engine([script(c, 3) for c in range(4)]), BEST_OF_4, slots=ceiling.slots("ada"))
    assert (batches(played), played.outcome.reason) == ([2], StopReason.CEILING)
    assert ceiling.in_use == 0


def test_a_deep_queue_shrinks_the_policy_to_one_candidate() -> None:
    shedding = LoadShedding(low=1, high=4)
    played = play(make_engine([script(0, 3)]), ADAPTIVE, allowed=lambda n_max: shedding.allowed(n_max, 10))
    assert (played.outcome.spend.drawn, played.outcome.reason) == (1, StopReason.LOAD)


# Faults.


def test_one_candidate_failing_does_not_fail_the_run() -> None:
    scripts = [script(0, 2, failure=EngineFailed("reset")), *(script(c, 4) for c in (1, 2, 3))]
    played = play(make_engine(scripts, constant(0.9, 0.1, 0.3, 0.2)), BEST_OF_4)
    assert played.returned == 2
    assert played.outcome.trace.candidates[0].error == "reset"


def test_a_busy_engine_means_no_more_draws_and_the_best_so_far_is_returned() -> None:
    scripts = [script(0, 3), script(1, 0, failure=EngineBusy("queue full"))]
    played = play(make_engine(scripts, constant(0.2, 0.9)), ADAPTIVE)
    assert (played.returned, played.outcome.reason, batches(played)) == (0, StopReason.ENGINE_BUSY, [1, 1])


def test_a_busy_engine_with_nothing_to_return_is_said_to_be_busy() -> None:
    with pytest.raises(EngineBusy, match="queue full"):
        play(make_engine([script(0, 0, failure=EngineBusy("queue full"))]), ADAPTIVE)


def test_a_dead_engine_is_asked_twice_and_no_more() -> None:
    engine = make_engine([script(c, 1, failure=EngineFailed("down")) for c in range(8)])
    with pytest.raises(EngineFailed, match="down"):
        play(engine, ADAPTIVE)
    assert len(engine.drawn) == 2


def test_a_request_that_the_engine_rejects_as_wrong_is_not_sent_again() -> None:
    engine = make_engine([script(0, 0, failure=EngineRejected("max_tokens is too large"))])
    with pytest.raises(EngineRejected, match="too large"):
        play(engine, ADAPTIVE)
    assert len(engine.drawn) == 1


def test_one_rejected_candidate_fails_neither_the_run_nor_its_siblings() -> None:
    scripts = [script(0, 4), script(1, 0, failure=EngineRejected("too hot")), script(2, 4), script(3, 4)]
    played = play(make_engine(scripts, constant(0.1, 0.9, 0.3, 0.2)), ADAPTIVE)
    assert (played.returned, batches(played), played.outcome.reason) == (0, [1, 1], StopReason.ENGINE_FAILED)
    together = play(make_engine(scripts, constant(0.1, 0.9, 0.3, 0.2)), BEST_OF_4)
    assert together.returned == 2


def test_an_engine_that_dies_after_one_candidate_finished_still_answers() -> None:
    scripts = [script(0, 2), *(script(c, 3, failure=EngineFailed("down")) for c in (1, 2, 3))]
    played = play(make_engine(scripts), BEST_OF_4)
    assert played.outcome.choices[0].token_ids == tokens_of(0, 2)


def test_an_engine_that_dies_between_two_batches_is_not_asked_for_all_that_the_policy_allows() -> None:
    scripts = [script(0, 3), *(script(c, 0, failure=EngineFailed("down")) for c in range(1, 16))]
    played = play(make_engine(scripts, constant(*[0.1] * 16)), Policy(mode=Mode.ADAPTIVE, n_max=16, checkpoints=()))
    assert (played.returned, batches(played)) == (0, [1, 1, 2])
    assert played.outcome.reason is StopReason.ENGINE_FAILED


def test_a_stream_that_ends_without_a_finish_reason_is_a_lost_candidate() -> None:
    engine = ScriptedEngine([reply(tokens_of(0, 2), finish_reason=None)], LoopClock())
    with pytest.raises(EngineFailed, match="finish reason"):
        play(engine, BEST_OF_4)


def test_when_scoring_fails_the_mean_log_probability_takes_over_and_nothing_more_is_drawn() -> None:
    engine = make_engine([script(c, 3) for c in range(8)], scoring_failures=[EngineFailed("no such route")])
    played = play(engine, ADAPTIVE)
    degraded = played.outcome.degradations[0]
    assert (degraded.failed, degraded.instead) == ("self_evaluation", "mean_log_probability")
    assert degraded.cause == "no such route"
    assert (played.outcome.scorer, played.outcome.reason) == ("mean_log_probability", StopReason.UNSCORED)
    assert played.outcome.spend.drawn == 1


def test_when_scoring_fails_at_a_checkpoint_the_next_scorer_prunes_there() -> None:
    engine = ScriptedEngine(
        [reply(tokens_of(c, 8), logprob=-1.0 / (c + 1)) for c in range(4)],
        LoopClock(),
        scoring_failures=[EngineFailed("down")],
    )
    played = play(engine, pruned_at(3, 0.5))
    assert prunings(played)[0].pruned == (0, 1)
    assert played.returned == 3


def test_after_a_fallback_all_that_have_ended_are_judged_anew_by_the_new_scorer() -> None:
    engine = ScriptedEngine(
        [reply(tokens_of(c, 3 + c), logprob=-1.0 / (c + 1)) for c in range(3)],
        LoopClock(),
        scoring_failures=[None, EngineFailed("down")],
    )
    played = play(engine, Policy(mode=Mode.BEST_OF_N, n_max=3, checkpoints=()))
    assert played.returned == 2
    assert [score.scorer for score in played.outcome.trace.candidates[0].scores] == [
        "self_evaluation",
        "mean_log_probability",
    ]


def test_two_calls_that_fail_together_are_one_failure_of_the_scorer() -> None:
    failures = [EngineFailed("down"), EngineFailed("down")]
    engine = make_engine([script(0, 2), script(1, 3)], score_s=5.0, scoring_failures=failures)
    played = play(engine, Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=()))
    assert len(played.outcome.degradations) == 1
    assert played.outcome.scorer == "mean_log_probability"


def test_scores_of_a_scorer_that_has_failed_since_are_not_used() -> None:
    engine = make_engine(
        [script(c, 6) for c in range(3)], constant(0.5, 0.9, 0.1), scoring_failures=[None, EngineFailed("down")]
    )
    scorer = SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS)
    played = play(engine, pruned_at(3, 0.6, n_max=3), scorers=[scorer])
    assert (played.returned, played.outcome.scorer) == (0, "none")


def test_an_engine_too_busy_to_score_is_asked_for_nothing_more() -> None:
    engine = make_engine([script(c, 3) for c in range(8)], scoring_failures=[EngineBusy("queue full")])
    assert play(engine, ADAPTIVE).outcome.reason is StopReason.ENGINE_BUSY


def test_when_every_scorer_fails_the_first_candidate_is_returned_and_the_mode_is_named() -> None:
    engine = make_engine([script(c, 3) for c in range(4)])
    played = play(engine, BEST_OF_4, scorers=[GroupConfidenceScorer()])
    assert (played.returned, played.outcome.scorer) == (0, "none")


def test_a_model_that_does_not_answer_the_question_is_not_believed() -> None:
    engine = make_engine([script(c, 3) for c in range(4)], label_mass=0.0001)
    assert play(engine, BEST_OF_4).outcome.scorer == "mean_log_probability"


def test_cancelling_a_run_aborts_every_candidate_and_leaves_no_task() -> None:
    engine = make_engine([script(c, 50) for c in range(4)], score_s=100.0)
    run = make_run(engine, pruned_at(3, 0.5))

    async def main() -> tuple[int, float]:
        task = asyncio.create_task(run.run())
        await asyncio.sleep(5.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(asyncio.all_tasks()), asyncio.get_running_loop().time()

    assert run_virtually(main()) == (1, 5.5)
    assert engine.aborted == dict.fromkeys(range(4), 5.5)
    assert {each.fate for each in run.trace().candidates} == {Fate.ABORTED}
    assert [call.error for call in run.trace().scoring] == ["not waited for"]


def test_a_run_that_is_over_is_freed_without_the_garbage_collector() -> None:
    async def main() -> bool:
        engine = make_engine([script(c, 6) for c in range(4)], constant(0.1, 0.2, 0.3, 0.4))
        run = make_run(engine, pruned_at(3, 0.5))
        freed = weakref.ref(engine)
        assert (await run.run()).spend.candidates[Fate.PRUNED] == 2
        del run, engine
        return freed() is None

    gc.disable()
    try:
        assert run_virtually(main())
    finally:
        gc.enable()


def test_a_run_cancelled_before_its_first_step_gives_its_slots_back() -> None:
    ceiling = Ceiling(total=8, per_holder=8)
    run = make_run(make_engine([script(c, 50) for c in range(4)]), BEST_OF_4, slots=ceiling.slots("ada"))

    async def main() -> int:
        task = asyncio.create_task(run.run())
        await asyncio.sleep(0)
        assert ceiling.in_use == 4
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return ceiling.in_use

    assert run_virtually(main()) == 0


# Several choices and other selectors.


def test_the_n_best_are_returned_best_first_and_streamed_in_that_order() -> None:
    played = play(
        make_engine([script(c, 3) for c in range(4)], constant(0.1, 0.4, 0.2, 0.3)), BEST_OF_4, choices=2, stream=True
    )
    assert [each.index for each in played.outcome.choices] == [1, 3]
    assert [streamed_tokens(played.events, choice) for choice in (0, 1)] == [tokens_of(1, 3), tokens_of(3, 3)]


def test_adaptive_sampling_for_two_choices_stops_when_two_are_good_enough() -> None:
    scores = constant(0.95, 0.1, 0.96, 0.2)
    played = play(make_engine([script(c, 3) for c in range(4)], scores), ADAPTIVE, choices=2)
    assert [each.index for each in played.outcome.choices] == [2, 0]
    assert (batches(played), played.outcome.reason) == ([2, 2], StopReason.THRESHOLD)


def test_pruning_leaves_as_many_candidates_as_the_client_wants_back() -> None:
    played = play(make_engine([script(c, 6) for c in range(4)]), pruned_at(3, 0.01), choices=3)
    assert len(played.outcome.choices) == 3


def test_a_majority_is_found_without_a_single_score_when_none_can_be_had() -> None:
    scripts = [reply([100 + vote, candidate]) for candidate, vote in enumerate((1, 2, 2, 1))]
    engine = ScriptedEngine(scripts, LoopClock())
    played = play(engine, BEST_OF_4, scorers=(), selector=Majority(lambda text: text.split()[0]))
    assert played.returned == 0


class Rewards:
    asked = False

    def __init__(self, rewards: list[float] | None, takes_s: float = 0.0) -> None:
        self._rewards = rewards
        self._takes_s = takes_s

    async def rewards(self, replies: object) -> list[float]:
        self.asked = True
        await asyncio.sleep(self._takes_s)
        if self._rewards is None:
            raise SelectionFailed("reward model is away")
        return self._rewards


def test_a_reward_model_picks_without_buying_final_scores() -> None:
    engine = make_engine([script(c, 3) for c in range(4)])
    played = play(engine, BEST_OF_4, selector=RewardModel(Rewards([0.1, -3.0, 7.0, 2.0])))
    assert (played.returned, played.outcome.selector, engine.scored) == (2, "reward_model", [])


def test_a_failing_reward_model_gives_way_to_the_scores_and_is_named() -> None:
    engine = make_engine([script(c, 3) for c in range(4)], constant(0.1, 0.4, 0.9, 0.2))
    played = play(engine, BEST_OF_4, selector=RewardModel(Rewards(None)))
    assert (played.returned, played.outcome.selector) == (2, "self_evaluation")
    assert [(each.part, each.cause) for each in played.outcome.degradations] == [("selector", "reward model is away")]
    assert [len(call) for call in engine.scored] == [4]


def test_where_reward_model_and_scorer_fail_the_next_scorer_judges() -> None:
    failures = [EngineFailed("no room")]
    scripts = [reply(tokens_of(c, 3), logprob=logprob) for c, logprob in enumerate((-2.0, -0.1, -1.0, -3.0))]
    engine = make_engine(scripts, scoring_failures=failures)
    played = play(engine, BEST_OF_4, selector=RewardModel(Rewards(None)))
    assert (played.returned, played.outcome.scorer) == (1, "mean_log_probability")
    assert [each.part for each in played.outcome.degradations] == ["selector", "scorer"]


def test_scores_that_a_failed_reward_model_makes_needed_do_not_outlast_the_deadline() -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=(), deadline_ms=5000)
    engine = make_engine([script(c, 3) for c in range(2)], constant(0.1, 0.9), score_s=60.0)
    played = play(engine, policy, selector=RewardModel(Rewards(None, takes_s=1.0)))
    assert (played.took_s, played.returned) == (5.0, 0)


@pytest.mark.parametrize("deadline_s", [1.5, 4.0])
def test_a_reward_model_does_not_outlast_the_deadline(deadline_s: float) -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=(), deadline_ms=int(deadline_s * 1000))
    engine = make_engine([script(c, 3) for c in range(2)])
    rewards = Rewards([1.0, 2.0], takes_s=60.0)
    played = play(engine, policy, selector=RewardModel(rewards))
    assert played.took_s == deadline_s
    assert rewards.asked is (deadline_s == 4.0)
    assert "deadline" in played.outcome.degradations[0].cause
    assert engine.scored == []


def test_the_first_selector_neither_scores_nor_prefers() -> None:
    engine = make_engine([script(c, 3) for c in range(4)], constant(0.1, 0.9, 0.9, 0.9))
    played = play(engine, BEST_OF_4, selector=First())
    assert (played.returned, engine.scored) == (0, [])


def test_a_free_scorer_prunes_without_a_call() -> None:
    engine = ScriptedEngine([reply(tokens_of(c, 8), logprob=-1.0 / (c + 1)) for c in range(4)], LoopClock())
    played = play(engine, pruned_at(3, 0.25), scorers=[MeanLogProbabilityScorer()])
    assert (played.returned, engine.scored) == (3, [])
    assert played.outcome.spend.scoring_tokens == 0


# Streaming.


def commits(played: Played) -> list[Committed]:
    return [event for _, event in played.events if isinstance(event, Committed)]


def test_tokens_flow_as_soon_as_one_candidate_is_left_those_held_back_at_once() -> None:
    engine = make_engine([script(0, 6), script(1, 6)], constant(0.1, 0.4))
    played = play(engine, pruned_at(3, 0.5, n_max=2), stream=True)
    assert commits(played) == [Committed(choice=0, candidate=1, held_back=3, at_s=3.0)]
    assert [at for at, _ in played.events] == [3.0, 3.0, 3.0, 3.0, 4.0, 5.0, 6.0]
    assert streamed_tokens(played.events) == tokens_of(1, 6)


def test_a_candidate_at_the_threshold_at_a_checkpoint_is_streamed_and_its_siblings_stopped() -> None:
    policy = Policy(mode=Mode.ADAPTIVE, n_max=8, threshold=0.9, checkpoints=(Checkpoint(2, 0.5),))
    played = play(make_engine([script(0, 6)], constant(0.95)), policy, stream=True)
    assert commits(played)[0].at_s == 2.0
    assert played.outcome.reason is StopReason.THRESHOLD
    assert len(played.engine.scored) == 1


def test_best_of_n_commits_to_no_candidate_for_its_score() -> None:
    engine = make_engine([script(c, 6) for c in range(4)], constant(0.1, 0.95, 0.2, 0.96))
    played = play(engine, pruned_at(3, 0.5), stream=True)
    assert commits(played) == [Committed(choice=0, candidate=3, held_back=6, at_s=6.0)]


def test_commit_at_bounds_the_wait_with_the_best_so_far() -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=3, checkpoints=(Checkpoint(2, 0.9),), commit_at=4)
    played = play(make_engine([script(c, 9) for c in range(3)], constant(0.1, 0.5, 0.3)), policy, stream=True)
    assert commits(played) == [Committed(choice=0, candidate=1, held_back=4, at_s=4.0)]
    assert [each.reason for each in played.outcome.trace.decisions if isinstance(each, SettledOn)] == [
        CommitReason.COMMIT_AT
    ]
    assert played.took_s == 9.0
    # All were drawn, but it is the commitment that stopped two of them.
    assert played.outcome.reason is StopReason.COMMIT_AT
    assert [each.reason for each in played.outcome.trace.decisions if isinstance(each, Stopped)] == [
        StopReason.COMMIT_AT
    ]


def test_scores_that_arrive_after_the_choice_decide_nothing() -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=(Checkpoint(2, 0.5),), commit_at=4)
    engine = make_engine([script(c, 12) for c in range(2)], constant(0.1, 0.9), score_s=5.0)
    played = play(engine, policy, stream=True)
    assert (played.returned, prunings(played)) == (0, [])
    assert played.outcome.choices[0].scores[0].value == pytest.approx(0.1)


def test_a_single_candidate_is_streamed_from_its_first_token() -> None:
    played = play(make_engine([script(0, 3)]), Policy(n_max=1), stream=True)
    assert [at for at, _ in played.events] == [0.0, 1.0, 2.0, 3.0]


def test_streaming_whole_gives_nothing_before_the_reply_is_complete() -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=(Checkpoint(2, 0.5),), streaming=Streaming.WHOLE)
    played = play(make_engine([script(0, 6), script(1, 6)]), policy, stream=True)
    assert {at for at, _ in played.events} == {6.0}


def test_a_streamed_candidate_that_fails_cannot_be_replaced() -> None:
    scripts = [script(0, 9, failure=EngineFailed("reset")), script(1, 9)]
    engine = make_engine(scripts, constant(0.9, 0.1))
    with pytest.raises(EngineFailed, match="reset"):
        play(engine, pruned_at(3, 0.5, n_max=2), stream=True)
    assert len(engine.drawn) == 2
