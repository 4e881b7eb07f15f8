"""The concurrency of a run: one task per candidate, one per scoring call, one alarm; all report into one inbox.

Tasks decide nothing. They belong to the run's task group, so none outlives it, and cancelling one closes the stream
that it reads, which is what stops the work upstream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from adaptive.candidate import Partial
from adaptive.clock import Clock
from adaptive.engine import Engine, EngineError, EngineFailed, GeneratedTokens, Sampling, TokenIds
from adaptive.inbox import Inbox
from adaptive.scoring import Score, Scorer, ScoringFailed
from adaptive.selection import Finalist, Ranking, SelectionFailed, Selector


@dataclass(frozen=True, slots=True)
class Due:
    """A candidate to be scored: its first `tokens` tokens. final: it has ended, and these are all."""

    candidate: int
    tokens: int
    final: bool


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A scoring call. checkpoint: its place in the policy, None when only ended candidates are judged."""

    scorer: Scorer
    due: tuple[Due, ...]
    checkpoint: int | None
    asked_s: float


@dataclass(frozen=True, slots=True)
class Grew:
    """A candidate has new tokens, or its end."""

    candidate: int
    step: GeneratedTokens


@dataclass(frozen=True, slots=True)
class Lost:
    """A candidate was lost to an error upstream."""

    candidate: int
    error: EngineError


@dataclass(frozen=True, slots=True)
class Scored:
    """A scoring call was answered."""

    asked: Asked
    scores: tuple[Score, ...]


@dataclass(frozen=True, slots=True)
class NotScored:
    """A scoring call failed."""

    asked: Asked
    error: ScoringFailed


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The deadline is here."""


Happening = Grew | Lost | Scored | NotScored | DeadlinePassed


class Workers:
    """The tasks of one run, within its task group."""

    def __init__(self, group: asyncio.TaskGroup, engine: Engine, clock: Clock) -> None:
        self._group = group
        self._engine = engine
        self._clock = clock
        self._inbox: Inbox[Happening] = Inbox()
        self._candidates: dict[int, asyncio.Task[None]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.Task[None] | None = None

    async def news(self) -> list[Happening]:
        """Return all that has happened since the last call, in order; wait until something has."""
        return await self._inbox.take()

    def follow(self, prompt: TokenIds, sampling: Sampling, ended: Callable[[], None]) -> None:
        """Generate a candidate and report its steps. `ended` is called once its work upstream is over, however."""
        task = self._group.create_task(self._follow(prompt, sampling))
        self._candidates[sampling.candidate] = task

        # A task that is cancelled before its first step never enters its own finally; its callback runs always.
        def over(_: object) -> None:
            # Forgotten here, as a cancelled task holds its own frames and those hold us: a cycle would keep the whole
            # run, all tokens of all candidates, until a full garbage collection.
            del self._candidates[sampling.candidate]
            ended()

        task.add_done_callback(over)

    def abort(self, candidate: int) -> None:
        """Stop that candidate's work upstream, if there still is any."""
        if candidate in self._candidates:
            self._candidates[candidate].cancel()

    async def closed(self) -> None:
        """Return when the work upstream of every candidate that has ended or was stopped is over."""
        if self._candidates:
            await asyncio.wait(self._candidates.values())

    def judge(self, asked: Asked, partials: Sequence[Partial]) -> None:
        """Score, and report the answer. Nothing waits for it: the candidates go on."""
        task = self._group.create_task(self._judge(asked, partials))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def set_alarm(self, seconds: float) -> None:
        """Report `DeadlinePassed` after that time."""
        self._alarm = self._group.create_task(self._ring(seconds))

    @property
    def late(self) -> bool:
        """The deadline has passed."""
        return self._alarm is not None and self._alarm.done()

    async def rank(self, selector: Selector, finalists: Sequence[Finalist], *, late: bool) -> Ranking:
        """Return the selector's ranking. Raises `SelectionFailed`; also when the deadline passes first.

        late: it has passed, so nothing upstream can be asked.
        """
        if not selector.calls_upstream:
            return await selector.rank(finalists)
        if late:
            raise SelectionFailed("the deadline leaves no time to ask upstream")
        ranking = self._group.create_task(_ranked(selector, finalists))
        try:
            await asyncio.wait({ranking} | ({self._alarm} if self._alarm else set()), return_when="FIRST_COMPLETED")
            if not ranking.done():
                raise SelectionFailed("the deadline passed before the selector answered")
        finally:
            ranking.cancel()
        answer = ranking.result()
        if isinstance(answer, SelectionFailed):
            raise answer
        return answer

    def dismiss(self) -> None:
        """Stop everything that still runs."""
        alarm, self._alarm = [self._alarm] if self._alarm else [], None
        for task in [*self._candidates.values(), *self._calls, *alarm]:
            task.cancel()

    async def _follow(self, prompt: TokenIds, sampling: Sampling) -> None:
        index = sampling.candidate
        try:
            ended = False
            async with aclosing(self._engine.generate(prompt, sampling)) as stream:
                # To its very end: an engine closes cleanly, and keeps its connection, only after the last step.
                async for step in stream:
                    self._inbox.put(Grew(index, step))
                    ended = step.finish_reason is not None
            if not ended:
                raise EngineFailed("the stream ended without a finish reason")
        except EngineError as error:
            self._inbox.put(Lost(index, error))

    async def _judge(self, asked: Asked, partials: Sequence[Partial]) -> None:
        try:
            scores = await asked.scorer.score(partials)
        except ScoringFailed as error:
            self._inbox.put(NotScored(asked, error))
        else:
            self._inbox.put(Scored(asked, scores))

    async def _ring(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._inbox.put(DeadlinePassed())


async def _ranked(selector: Selector, finalists: Sequence[Finalist]) -> Ranking | SelectionFailed:
    """Return the failure instead of raising it: in a task group a raised one would end the whole run."""
    try:
        return await selector.rank(finalists)
    except SelectionFailed as failure:
        return failure
