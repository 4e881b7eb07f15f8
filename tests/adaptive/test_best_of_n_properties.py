"""What holds for every run, whatever the policy, the replies, their timing and the faults."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptive.candidate import Fate
from adaptive.engine import EngineError
from adaptive.events import Committed, Delta
from adaptive.policy import AtDeadline, Mode, Policy
from adaptive.trace import Drew, Pruned

from .runs import Played, constant, make_engine, play, policies, scripted_runs

if TYPE_CHECKING:
    from adaptive.scripted import Script, ScriptedEngine

Runs = tuple["tuple[Script, ...]", tuple[float, ...], float, tuple[EngineError | None, ...]]
runs = settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])


def engine_of(run: Runs) -> ScriptedEngine:
    scripts, scores, score_s, failures = run
    return make_engine(scripts, constant(*scores), score_s=score_s, scoring_failures=failures)


def attempt(run: Runs, policy: Policy, *, stream: bool, choices: int) -> tuple[Played | None, ScriptedEngine]:
    """Return the run, None for one that ended in an error of the engine's, and its engine."""
    engine = engine_of(run)
    try:
        return play(engine, policy, stream=stream, choices=choices), engine
    except EngineError:
        return None, engine


every_run = given(run=scripted_runs(), policy=policies, stream=st.booleans(), choices=st.integers(1, 3))


@runs
@every_run
def test_spend_never_exceeds_the_policy(run: Runs, policy: Policy, stream: bool, choices: int) -> None:
    played, engine = attempt(run, policy, stream=stream, choices=choices)
    most = policy.candidates(choices)
    assert engine.most_running <= most
    if played is None:
        return
    spend = played.outcome.spend
    assert spend.drawn - spend.candidates[Fate.FAILED] <= most
    if policy.token_budget is not None:
        assert spend.generated_tokens <= policy.token_budget
    if policy.deadline_ms is not None and policy.at_deadline is AtDeadline.CUT:
        assert played.took_s <= policy.deadline_ms / 1000 + 1e-9


@runs
@every_run
def test_nothing_is_drawn_once_the_engine_has_said_that_the_request_is_wrong(
    run: Runs, policy: Policy, stream: bool, choices: int
) -> None:
    played, _ = attempt(run, policy, stream=stream, choices=choices)
    if played is None:
        return
    trace = played.outcome.trace
    refused = [each.ended_s for each in trace.candidates if each.error == "wrong" and each.ended_s is not None]
    if refused:
        # In the same moment another's last token may have come first, and with it the decision to draw.
        assert all(each.at_s <= min(refused) for each in trace.decisions if isinstance(each, Drew))


@runs
@every_run
def test_nothing_is_left_running_and_every_candidate_has_a_fate(
    run: Runs, policy: Policy, stream: bool, choices: int
) -> None:
    played, engine = attempt(run, policy, stream=stream, choices=choices)
    assert engine.running == set()
    assert not any(math.isnan(at) for at in engine.aborted.values())
    if played is None:
        return
    fates = [candidate.fate for candidate in played.outcome.trace.candidates]
    assert Fate.RUNNING not in fates
    assert fates.count(Fate.RETURNED) == len(played.outcome.choices) >= 1
    # Not the other way round: a candidate may come to its end upstream in the very moment in which it is stopped here.
    assert set(engine.aborted) <= {
        each.index
        for each in played.outcome.trace.candidates
        if each.fate in {Fate.PRUNED, Fate.ABORTED} or (each.fate is Fate.RETURNED and each.finish_reason is None)
    }


@runs
@every_run
def test_the_events_are_the_returned_candidates_tokens_once_and_in_order(
    run: Runs, policy: Policy, stream: bool, choices: int
) -> None:
    played, _ = attempt(run, policy, stream=stream, choices=choices)
    if played is None:
        return
    for choice, candidate in enumerate(played.outcome.choices):
        committed = [e for _, e in played.events if isinstance(e, Committed) and e.choice == choice]
        assert [each.candidate for each in committed] == [candidate.index]
        deltas = [e.tokens for _, e in played.events if isinstance(e, Delta) and e.choice == choice]
        assert tuple(deltas) == candidate.steps


@runs
@every_run
def test_the_same_recorded_run_gives_the_same_decisions(run: Runs, policy: Policy, stream: bool, choices: int) -> None:
    first, _ = attempt(run, policy, stream=stream, choices=choices)
    second, _ = attempt(run, policy, stream=stream, choices=choices)
    assert (first and first.outcome) == (second and second.outcome)
    assert (first and first.events) == (second and second.events)


@runs
@every_run
def test_pruning_always_leaves_a_candidate(run: Runs, policy: Policy, stream: bool, choices: int) -> None:
    played, _ = attempt(run, policy, stream=stream, choices=choices)
    if played is None:
        return
    for decision in played.outcome.trace.decisions:
        if isinstance(decision, Pruned):
            assert set(decision.pruned) < set(decision.compared)


@runs
@given(run=scripted_runs(), policy=policies)
def test_a_run_fails_only_if_every_candidate_was_lost(run: Runs, policy: Policy) -> None:
    engine = engine_of(run)
    try:
        play(engine, policy)
    except EngineError:
        scripts = run[0]
        assert all(
            scripts[sampling.candidate].failure or sampling.candidate in engine.aborted for sampling in engine.drawn
        )


@runs
@given(run=scripted_runs(), policy=policies)
def test_temperatures_and_seeds_are_those_of_the_schedule(run: Runs, policy: Policy) -> None:
    _, engine = attempt(run, policy, stream=False, choices=1)
    assert len({sampling.seed for sampling in engine.drawn}) == len(engine.drawn)
    low, high = sorted((policy.annealing.start, policy.annealing.end))
    for sampling in engine.drawn:
        if policy.mode is Mode.ADAPTIVE:
            assert low <= sampling.temperature <= high
        else:
            assert sampling.temperature == 1.0


@runs
@given(run=scripted_runs(), policy=policies)
def test_what_was_saved_and_spent_adds_up_to_full_best_of_n(run: Runs, policy: Policy) -> None:
    played, _ = attempt(run, policy, stream=False, choices=1)
    if played is None:
        return
    saved = played.outcome.savings
    assert saved.spent_tokens == sum(each.tokens for each in played.outcome.trace.candidates)
    assert saved.saved_tokens + saved.spent_tokens + saved.scoring_cost == pytest.approx(saved.full_tokens)
    assert saved.saved_share <= 1.0
    assert saved.saved_engine_s + saved.spent_engine_s == pytest.approx(saved.full_engine_s)
    assert 0.0 <= played.outcome.spend.candidate_s <= played.took_s * len(played.outcome.trace.candidates) + 1e-9
