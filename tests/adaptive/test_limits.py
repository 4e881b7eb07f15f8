"""Limits that hold over all runs of a process."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from adaptive.limits import Ceiling, LoadShedding, Unlimited


class CeilingMachine(RuleBasedStateMachine):
    """Takes and returns slots in any order, beside a plain count of them."""

    def __init__(self) -> None:
        super().__init__()
        self.ceiling = Ceiling(total=6, per_holder=4)
        self.held = {"ada": 0, "bob": 0, "eve": 0}

    @rule(holder=st.sampled_from(["ada", "bob", "eve"]), wanted=st.integers(0, 8))
    def take(self, holder: str, wanted: int) -> None:
        expected = min(wanted, 4 - self.held[holder], 6 - sum(self.held.values()))
        assert self.ceiling.take(holder, wanted) == expected
        self.held[holder] += expected

    @rule(holder=st.sampled_from(["ada", "bob", "eve"]))
    def give_back(self, holder: str) -> None:
        if self.held[holder]:
            self.ceiling.give_back(holder)
            self.held[holder] -= 1

    @invariant()
    def ceilings_hold(self) -> None:
        assert self.ceiling.in_use == sum(self.held.values()) <= 6


TestCeilingHoldsAtAllTimes = CeilingMachine.TestCase


async def test_first_candidates_wait_in_turn_and_are_served_before_further_ones() -> None:
    ceiling = Ceiling(total=2, per_holder=2)
    assert ceiling.take("ada", 2) == 2
    served: list[str] = []

    async def first(holder: str) -> None:
        await ceiling.take_first(holder)
        served.append(holder)

    waiting = [asyncio.create_task(first(holder)) for holder in ("bob", "eve")]
    await asyncio.sleep(0)
    ceiling.give_back("ada")
    assert ceiling.take("ada", 1) == 0
    await asyncio.sleep(0)
    assert served == ["bob"]
    ceiling.give_back("ada")
    await asyncio.gather(*waiting)
    assert served == ["bob", "eve"]


async def test_one_holder_at_its_own_limit_does_not_hold_up_another() -> None:
    ceiling = Ceiling(total=4, per_holder=1)
    await ceiling.take_first("ada")
    blocked = asyncio.create_task(ceiling.take_first("ada"))
    await asyncio.sleep(0)
    await asyncio.wait_for(ceiling.take_first("bob"), 1)
    ceiling.give_back("ada")
    await blocked
    assert ceiling.in_use == 2


@pytest.mark.parametrize("served_first", [False, True])
async def test_one_who_stops_waiting_takes_no_slot(*, served_first: bool) -> None:
    ceiling = Ceiling(total=1, per_holder=1)
    await ceiling.take_first("ada")
    waiting = asyncio.create_task(ceiling.take_first("bob"))
    await asyncio.sleep(0)
    if served_first:
        ceiling.give_back("ada")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if not served_first:
        ceiling.give_back("ada")
    assert ceiling.in_use == 0


async def test_a_slot_that_comes_back_skips_one_who_has_just_stopped_waiting() -> None:
    ceiling = Ceiling(total=1, per_holder=1)
    await ceiling.take_first("ada")
    waiting = asyncio.create_task(ceiling.take_first("bob"))
    await asyncio.sleep(0)
    waiting.cancel()
    ceiling.give_back("ada")
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ceiling.take("eve", 1) == 1


@pytest.mark.parametrize(("total", "per_holder"), [(0, 1), (1, 0)])
def test_a_ceiling_below_one_is_refused(total: int, per_holder: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Ceiling(total, per_holder)


async def test_unlimited_slots_have_no_end() -> None:
    slots = Unlimited()
    await slots.take_first()
    assert slots.take(1000) == 1000
    slots.give_back()


depths = st.floats(min_value=0, max_value=100)


@given(st.integers(0, 10), st.integers(1, 30), st.integers(1, 64), depths, depths)
def test_a_deeper_queue_never_allows_more(low: int, span: int, n_max: int, one: float, other: float) -> None:
    shedding = LoadShedding(low, low + span)
    shallow, deep = sorted((one, other))
    assert 1 <= shedding.allowed(n_max, deep) <= shedding.allowed(n_max, shallow) <= n_max


def test_load_shedding_goes_from_all_to_one() -> None:
    shedding = LoadShedding(low=2, high=10)
    assert [shedding.allowed(9, waiting) for waiting in (None, 2, 6, 10, 50)] == [9, 9, 5, 1, 1]


@pytest.mark.parametrize(("low", "high"), [(-1, 3), (3, 3)])
def test_load_shedding_needs_two_depths(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="low"):
        LoadShedding(low, high)
