"""A run as a stream."""

from __future__ import annotations

import asyncio

import pytest

from adaptive.engine import EngineFailed
from adaptive.events import Committed, Delta, Quiet
from adaptive.policy import Mode, Policy
from adaptive.run import Outcome
from adaptive.stream import streamed
from adaptive.virtual_time import run_virtually

from .runs import make_engine, make_run, script

POLICY = Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=())


def test_events_come_first_and_the_outcome_last() -> None:
    async def main() -> list[type]:
        async with streamed(make_run(make_engine([script(c, 2) for c in range(2)]), POLICY)) as stream:
            return [type(value) async for value in stream]

    assert run_virtually(main()) == [Committed, Delta, Delta, Outcome]


def test_a_listener_that_wants_to_is_told_of_silence_and_loses_nothing_by_it() -> None:
    async def main() -> list[tuple[float, type]]:
        clock = asyncio.get_running_loop().time
        run = make_run(make_engine([script(c, 5) for c in range(2)]), POLICY)
        async with streamed(run, quiet_s=2) as stream:
            return [(clock(), type(value)) async for value in stream]

    told = [(5.0, Committed), *[(5.0, Delta)] * 5, (5.0, Outcome)]
    assert run_virtually(main()) == [(2.0, Quiet), (4.0, Quiet), *told]


def test_silence_is_counted_from_the_latest_event() -> None:
    async def main() -> list[float]:
        clock = asyncio.get_running_loop().time
        run = make_run(make_engine([script(0, 2, every_s=3.0)]), Policy(n_max=1), stream=True)
        async with streamed(run, quiet_s=2) as stream:
            return [clock() async for value in stream if isinstance(value, Quiet)]

    assert run_virtually(main()) == [2.0, 5.0]


def test_silences_do_not_pile_up_before_a_listener_that_is_behind() -> None:
    async def main() -> int:
        async with streamed(make_run(make_engine([script(0, 1, every_s=60)]), POLICY), quiet_s=2) as stream:
            await asyncio.sleep(21)
            waiting = 0
            while True:
                try:
                    await asyncio.wait_for(anext(stream), 0.5)
                    waiting += 1
                except TimeoutError:
                    return waiting

    assert run_virtually(main()) == 1


def test_leaving_early_aborts_every_candidate() -> None:
    engine = make_engine([script(c, 50) for c in range(2)])

    async def main() -> int:
        async with streamed(make_run(engine, POLICY)):
            await asyncio.sleep(3.5)
        return len(asyncio.all_tasks())

    assert run_virtually(main()) == 1
    assert engine.aborted == {0: 3.5, 1: 3.5}


def test_the_runs_error_is_raised_after_its_events() -> None:
    engine = make_engine([script(0, 2, failure=EngineFailed("lost"))])

    seen: list[type] = []

    async def main() -> None:
        async with streamed(make_run(engine, Policy(n_max=1), stream=True)) as stream:
            async for value in stream:
                seen.append(type(value))  # noqa: PERF401 - a comprehension that raises would lose what it had seen

    with pytest.raises(EngineFailed, match="lost"):
        run_virtually(main())
    assert seen == [Committed, Delta, Delta]
