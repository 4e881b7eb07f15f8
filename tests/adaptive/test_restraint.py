"""What kept a run from the candidates that its policy would have allowed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adaptive.engine import EngineBusy
from adaptive.limits import Ceiling
from adaptive.policy import Checkpoint, Mode, Policy
from adaptive.restraint import restraints
from adaptive.stopping import StopReason
from adaptive.trace import Drew

from .runs import Played, constant, make_engine, play, script

BEST_OF_4 = Policy(mode=Mode.BEST_OF_N, n_max=4, checkpoints=())
ADAPTIVE = Policy(mode=Mode.ADAPTIVE, n_max=4, checkpoints=())


def at_most(count: int) -> Callable[[int], int]:
    return lambda _: count


def sized(played: Played) -> list[tuple[int, tuple[StopReason, ...]]]:
    return [(len(each.candidates), each.shortened) for each in played.outcome.trace.decisions if isinstance(each, Drew)]


def test_a_run_that_got_all_its_policy_allows_was_not_restrained() -> None:
    played = play(make_engine([script(c, 3) for c in range(4)]), BEST_OF_4)
    assert (restraints(played.outcome.trace), sized(played)) == ((), [(4, ())])


def test_a_threshold_that_is_reached_is_no_restraint_under_load_either() -> None:
    played = play(make_engine([script(0, 3)], constant(0.95)), ADAPTIVE, allowed=at_most(2))
    assert (played.outcome.reason, restraints(played.outcome.trace)) == (StopReason.THRESHOLD, ())


@pytest.mark.parametrize("policy", [BEST_OF_4, ADAPTIVE])
def test_load_that_leaves_fewer_is_a_restraint(policy: Policy) -> None:
    played = play(make_engine([script(c, 3) for c in range(3)]), policy, allowed=at_most(3))
    assert played.outcome.spend.drawn == 3
    assert (played.outcome.reason, restraints(played.outcome.trace)) == (StopReason.LOAD, (StopReason.LOAD,))


def test_load_is_named_even_where_something_else_ended_the_run() -> None:
    cut = Policy(mode=Mode.BEST_OF_N, n_max=4, checkpoints=(), deadline_ms=2500)
    settled = Policy(mode=Mode.BEST_OF_N, n_max=4, checkpoints=(Checkpoint(2, 1.0),), commit_at=4)
    for policy, reason in ((cut, StopReason.DEADLINE), (settled, StopReason.COMMIT_AT)):
        played = play(make_engine([script(c, 9) for c in range(3)]), policy, allowed=at_most(3), stream=True)
        assert played.outcome.reason is reason
        assert restraints(played.outcome.trace) == (StopReason.LOAD,)


def test_load_and_ceiling_are_both_named_and_the_last_to_bind_is_the_reason() -> None:
    slots = Ceiling(total=2, per_holder=2).slots("ada")
    played = play(make_engine([script(c, 3) for c in range(4)]), BEST_OF_4, allowed=at_most(3), slots=slots)
    assert sized(played) == [(2, (StopReason.LOAD, StopReason.CEILING))]
    assert played.outcome.reason is StopReason.CEILING
    assert restraints(played.outcome.trace) == (StopReason.LOAD, StopReason.CEILING)


def test_a_smaller_batch_that_later_ones_made_up_for_is_no_restraint() -> None:
    engine = make_engine([script(c, 3) for c in range(4)])
    played = play(engine, ADAPTIVE, allowed=lambda n_max: 3 if len(engine.drawn) == 2 else n_max)
    assert sized(played) == [(1, ()), (1, ()), (1, (StopReason.LOAD,)), (1, ())]
    assert (played.outcome.reason, restraints(played.outcome.trace)) == (StopReason.N_MAX, ())


def test_a_budget_is_the_policys_own_and_no_restraint() -> None:
    policy = Policy(mode=Mode.ADAPTIVE, n_max=8, checkpoints=(), token_budget=25)
    played = play(make_engine([script(c, 10) for c in range(8)]), policy)
    assert (played.outcome.reason, restraints(played.outcome.trace)) == (StopReason.BUDGET, ())


def test_an_engine_that_refuses_more_is_a_restraint() -> None:
    scripts = [script(0, 3), script(1, 0, failure=EngineBusy("full"))]
    played = play(make_engine(scripts, constant(0.2, 0.9)), ADAPTIVE)
    assert restraints(played.outcome.trace) == (StopReason.ENGINE_BUSY,)
