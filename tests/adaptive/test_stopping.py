"""Draw another batch, or be content."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.policy import Mode, Policy
from adaptive.stopping import Draw, Progress, Stop, StopReason, next_step

from .runs import policies, probabilities

ADAPTIVE = Policy(mode=Mode.ADAPTIVE, n_max=16, threshold=0.9, checkpoints=())
START = Progress(
    drawn=0, failed=0, alive=0, batch_failed=True, allowed=16, choices=1,
    scores=(), spent_tokens=0, longest=0, max_tokens=100,
)  # fmt: skip


def drawn(count: int, *scores: float, **changes: object) -> Progress:
    progress = replace(START, drawn=count, alive=count, batch_failed=False, scores=scores)
    return replace(progress, **changes)  # type: ignore[arg-type]  # the fields vary per test


def test_totals_double_up_to_n_max() -> None:
    totals = [0]
    while isinstance(step := next_step(ADAPTIVE, drawn(totals[-1], 0.1)), Draw):
        totals.append(totals[-1] + step.count)
    assert totals == [0, 1, 2, 4, 8, 16]
    assert step == Stop(StopReason.N_MAX)


@pytest.mark.parametrize(
    ("progress", "reason"),
    [
        (drawn(2, 0.1, 0.9), StopReason.THRESHOLD),
        (drawn(2, 0.9, busy=True), StopReason.THRESHOLD),
        (drawn(2, 0.1, busy=True), StopReason.ENGINE_BUSY),
        (drawn(2, 0.1, rejected=True), StopReason.ENGINE_FAILED),
        (drawn(1, alive=0, failed=1, batch_failed=True, rejected=True), StopReason.ENGINE_FAILED),
        (drawn(2, 0.99, scored=False), StopReason.UNSCORED),
        (drawn(2, alive=0, failed=2, batch_failed=True), StopReason.ENGINE_FAILED),
        (drawn(4, 0.1, alive=1, failed=3, batch_failed=True), StopReason.ENGINE_FAILED),
        (drawn(4, 0.1, allowed=2), StopReason.LOAD),
        (drawn(16, 0.1), StopReason.N_MAX),
    ],
)
def test_each_reason_to_stop_is_named(progress: Progress, reason: StopReason) -> None:
    assert next_step(ADAPTIVE, progress) == Stop(reason)


@pytest.mark.parametrize("shortened", [StopReason.BUDGET, StopReason.CEILING])
def test_best_of_n_draws_once_and_says_why_it_drew_fewer(shortened: StopReason) -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=8, checkpoints=())
    assert next_step(policy, replace(START, allowed=8)) == Draw(8, 100)
    assert next_step(policy, drawn(3, allowed=8, shortened=(StopReason.LOAD, shortened))) == Stop(shortened)
    assert next_step(policy, drawn(3, allowed=8, shortened=(StopReason.LOAD,))) == Stop(StopReason.LOAD)


@pytest.mark.parametrize("mode", [Mode.ADAPTIVE, Mode.BEST_OF_N])
def test_a_batch_that_load_makes_smaller_says_so_before_the_budget_does(mode: Mode) -> None:
    policy = Policy(mode=mode, n_max=8, checkpoints=(), token_budget=100)
    before = START if mode is Mode.BEST_OF_N else drawn(4, 0.1)
    load, budget = (StopReason.LOAD,), (StopReason.LOAD, StopReason.BUDGET)
    assert next_step(policy, replace(before, allowed=6)) == Draw(6 - before.drawn, 100 // (6 - before.drawn), load)
    assert next_step(policy, replace(before, allowed=6, longest=60)) == Draw(1, 100, budget)


def test_what_replaces_a_lost_candidate_keeps_the_reason_why_its_batch_was_small() -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=8, checkpoints=())
    lost = drawn(1, alive=0, failed=1, batch_failed=True, shortened=(StopReason.BUDGET,))
    assert next_step(policy, lost) == Draw(1, 100, (StopReason.BUDGET,))


def test_best_of_n_knows_no_threshold() -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=8, threshold=0.1, checkpoints=())
    assert next_step(policy, drawn(8, 0.9, allowed=8)) == Stop(StopReason.N_MAX)


def test_a_lost_candidate_is_replaced_once() -> None:
    lost = drawn(1, alive=0, failed=1, batch_failed=True)
    assert next_step(ADAPTIVE, lost) == Draw(1, 100)
    assert next_step(Policy(mode=Mode.OFF), lost) == Draw(1, 100)


def test_the_budget_is_shared_out_in_advance() -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=8, token_budget=50, checkpoints=())
    assert next_step(policy, replace(START, allowed=8)) == Draw(8, 6)


def test_a_batch_shrinks_to_those_that_can_be_as_long_as_the_longest_reply() -> None:
    policy = replace(ADAPTIVE, token_budget=100)
    assert next_step(policy, drawn(4, spent_tokens=40, longest=20)) == Draw(3, 20, (StopReason.BUDGET,))
    assert next_step(policy, drawn(4, spent_tokens=90, longest=20)) == Stop(StopReason.BUDGET)


@given(
    policies,
    st.integers(0, 8), st.integers(0, 100), st.integers(0, 40), st.integers(1, 50), st.integers(1, 8),
    st.lists(probabilities, max_size=8), st.integers(1, 3),
)  # fmt: skip
def test_no_draw_exceeds_candidates_budget_or_the_clients_own_limit(
    policy: Policy,
    count: int,
    spent: int,
    longest: int,
    max_tokens: int,
    allowed: int,
    scores: list[float],
    choices: int,
) -> None:
    most = policy.candidates(choices)
    progress = drawn(
        count, *scores, spent_tokens=spent, longest=longest, max_tokens=max_tokens, choices=choices,
        allowed=max(choices, min(allowed, most)),
    )  # fmt: skip
    step = next_step(policy, progress)
    if isinstance(step, Draw):
        assert step.count >= 1
        assert count + step.count <= most
        assert 1 <= step.max_tokens <= max_tokens
        if policy.token_budget is not None:
            assert spent + step.count * step.max_tokens <= policy.token_budget
