"""The scripted engine and virtual time keep the promises that the tests of the loop rest on."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import aclosing

import pytest

from adaptive.clock import LoopClock
from adaptive.engine import EngineFailed, GeneratedTokens, Sampling
from adaptive.scripted import ScriptedEngine, reply
from adaptive.virtual_time import Deadlock, run_virtually


def sampling(max_tokens: int = 100, candidate: int = 0) -> Sampling:
    return Sampling(candidate, temperature=1.0, seed=1, max_tokens=max_tokens)


async def everything(engine: ScriptedEngine, wanted: Sampling) -> list[GeneratedTokens]:
    return [step async for step in engine.generate((1,), wanted)]


async def test_the_last_step_carries_the_finish_reason() -> None:
    steps = await everything(ScriptedEngine([reply([5, 6, 7], every_s=0, per_step=2)], LoopClock()), sampling())
    assert [(step.token_ids, step.finish_reason) for step in steps] == [((5, 6), None), ((7,), "stop")]


@pytest.mark.parametrize(("max_tokens", "reason"), [(2, "length"), (3, "stop"), (4, "stop")])
async def test_max_tokens_ends_a_stream_with_length(max_tokens: int, reason: str) -> None:
    engine = ScriptedEngine([reply([5, 6, 7], every_s=0, per_step=3)], LoopClock())
    steps = await everything(engine, sampling(max_tokens))
    assert steps[-1].finish_reason == reason
    assert sum(len(step.token_ids) for step in steps) == min(3, max_tokens)


async def test_closing_a_stream_is_noted_as_an_abort_and_ending_it_is_not() -> None:
    engine = ScriptedEngine([reply([5, 6], every_s=0)], LoopClock())
    async with aclosing(engine.generate((1,), sampling(candidate=0))) as stream:
        await anext(stream)
        assert engine.running == {0}
    await everything(engine, sampling(candidate=1))
    assert set(engine.aborted) == {0}
    assert engine.running == set()


async def test_a_script_may_fail_in_place_of_an_end() -> None:
    engine = ScriptedEngine([reply([5], every_s=0, failure=EngineFailed("lost"))], LoopClock())
    with pytest.raises(EngineFailed, match="lost"):
        await everything(engine, sampling())
    assert engine.aborted == {}


async def test_scores_are_label_log_probabilities() -> None:
    engine = ScriptedEngine([], LoopClock(), judge=lambda sequence: float(sequence[0]), label_mass=0.5)
    sure, never = await engine.score([(1,), (0,)], (8, 9))
    assert sure.logprobs == (math.log(0.5), -math.inf)
    assert never.logprobs == (-math.inf, math.log(0.5))


def test_virtual_time_is_exact_and_takes_no_time() -> None:
    async def main() -> float:
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(7200))
        return asyncio.get_running_loop().time()

    started = time.monotonic()
    assert run_virtually(main()) == 7200
    assert time.monotonic() - started < 5


def test_waiting_for_what_never_comes_is_a_deadlock_and_no_hang() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run_virtually(main())
