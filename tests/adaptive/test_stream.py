"""A run as a stream."""

from __future__ import annotations

import asyncio

import pytest

from adaptive.engine import EngineFailed
from adaptive.events import Committed, Delta
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


def test_waiting_can_be_interrupted_for_a_keep_alive_without_losing_anything() -> None:
    async def main() -> tuple[int, int]:
        kept_alive, values = 0, 0
        async with streamed(make_run(make_engine([script(c, 5) for c in range(2)]), POLICY)) as stream:
            while True:
                try:
                    await asyncio.wait_for(anext(stream), 2)
                    values += 1
                except TimeoutError:
                    kept_alive += 1
                except StopAsyncIteration:
                    return kept_alive, values

    assert run_virtually(main()) == (2, 1 + 5 + 1)


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
