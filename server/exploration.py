"""Exploration: for a small share of requests full best-of-N is really run, once the client has its answer.

What sampling saves, and what the saving costs in quality, is then measured and not estimated (`adaptive.exploring`).

1. chosen    by chance, of the answered requests whose policy may save something and whose scorer did not fail
2. room      none while the upstream's queue is deep, over `max_explorations`, or over a share of the ceiling of its own
3. run       the same prompt and user, seeds of its own, behind every client's request in the upstream's queue
4. compared  with what the request spent and with the score of what it returned

Nothing of it reaches a client: it has the answer, and may have left. Whatever happens is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from adaptive.best_of_n import BestOfN
from adaptive.clock import Clock
from adaptive.engine import EngineBusy, EngineError
from adaptive.exploring import Explored, NotExhaustive, explored, final_score, full_scores
from adaptive.limits import Ceiling
from adaptive.run import Outcome, Request
from adaptive.scoring import Score, Scorer, ScoringFailed
from adaptive.seeds import exploration_seed
from adaptive.spend import tally
from adaptive.stopping import StopReason
from adaptive.trace import Trace
from server.errors import PreambleError
from server.sampling_metrics import ExplorationResult, SamplingMetrics
from server.traces import TraceWriter
from server.vllm_engine import VllmEngine

# vLLM runs the lower number first; a client's request has 0. Acts under `--scheduling-policy priority` only.
PRIORITY: Final = 10
_HOLDER: Final = "explorations"


@dataclass(frozen=True, slots=True)
class Answered:
    """A sampled request whose client has its answer.

    request: as it was run. engine: the one that answered it. scorer: makes the policy's scorer for another engine.
    trace: as it was kept.
    """

    response_id: str
    user: str
    request: Request
    outcome: Outcome
    engine: VllmEngine
    scorer: Callable[[VllmEngine], Awaitable[Scorer]]
    trace: Mapping[str, Any]


class Explorations:
    """The explorations of one worker.

    share: of the eligible requests, 0 to 1. most: at once. chance: gives numbers from 0 up to but not 1, by which they
    are chosen. ceiling: bounds the candidates of all explorations; no client's candidate is counted in it. calm: tells
    whether the upstream has time for that many candidates.
    """

    def __init__(
        self,
        *,
        share: float,
        most: int,
        chance: Callable[[], float],
        ceiling: Ceiling,
        calm: Callable[[int], bool],
        clock: Clock,
        traces: TraceWriter,
        metrics: SamplingMetrics,
    ) -> None:
        self._share = share
        self._most = most
        self._chance = chance
        self._ceiling = ceiling
        self._calm = calm
        self._clock = clock
        self._traces = traces
        self._metrics = metrics
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let explorations run for as long as the context lasts; its end aborts those under way."""
        try:
            yield
        finally:
            self._closed = True
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(self._running)

    def offer(self, answered: Answered) -> None:
        """Explore that request in the background, or do not. Returns at once."""
        policy = answered.outcome.trace.policy
        as_it_should = answered.outcome.scorer == policy.scorer.value
        if self._closed or not as_it_should or not policy.may_save(answered.request.choices):
            return
        if self._chance() >= self._share:
            return
        if len(self._running) >= self._most or not self._calm(policy.n_max) or not self._take(policy.n_max):
            self._metrics.count_exploration(ExplorationResult.BUSY)
            return
        task = asyncio.create_task(self._explore(answered, policy.n_max))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _take(self, candidates: int) -> bool:
        """Take a place for each candidate, or none: a best-of-N of fewer would measure something else."""
        if self._ceiling.room(_HOLDER) < candidates:
            return False
        return self._ceiling.take(_HOLDER, candidates) == candidates

    async def _explore(self, answered: Answered, n_max: int) -> None:
        exploration = _Exploration(answered, self._clock)
        result, found, full = ExplorationResult.FAILED, None, None
        log = structlog.get_logger(__name__)
        try:
            found, full = await exploration.run()
            result = ExplorationResult.DONE
        except asyncio.CancelledError:
            result = ExplorationResult.CANCELLED
            raise
        except _Busy:
            result = ExplorationResult.BUSY
        except (EngineError, NotExhaustive, PreambleError, ScoringFailed) as error:
            log.warning("exploration_failed", response_id=answered.response_id, cause=str(error))
        except Exception:
            # The boundary of the task: nobody waits for it, so a mistake of ours is seen here or never.
            log.exception("exploration_failed", response_id=answered.response_id)
        finally:
            for _ in range(n_max):
                self._ceiling.give_back(_HOLDER)
            self._metrics.count_exploration(result, exploration.tokens(), found)
        if found is not None and full is not None:
            told = {**answered.trace, "exploration": _section(found, full.trace)}
            await self._traces.keep(answered.response_id, answered.user, told)


class _Busy(Exception):
    """The upstream refused more work; so it is no fault of the exploration."""


class _Exploration:
    """One full best-of-N beside an answered request."""

    def __init__(self, answered: Answered, clock: Clock) -> None:
        self._answered = answered
        self._clock = clock
        self._run: BestOfN | None = None
        self._again: Score | None = None

    async def run(self) -> tuple[Explored, Outcome]:
        """Return what was found, and the full best-of-N.

        Raises `_Busy`, `EngineError`, `ScoringFailed` or `NotExhaustive`.
        """
        answered = self._answered
        policy = answered.outcome.trace.policy
        engine = _beside(answered.engine)
        scorer = await answered.scorer(engine)
        try:
            # Before all else: without it there is nothing to compare with.
            returned = await self._returned_score(scorer)
            self._run = BestOfN(
                replace(answered.request, seed=exploration_seed(answered.request.seed), choices=1, stream=False),
                policy.exhaustive(),
                engine=engine,
                scorers=(scorer,),
                clock=self._clock,
            )
            full = await self._run.run()
        except EngineBusy as error:
            raise _Busy from error
        except ScoringFailed as error:
            if error.engine_busy:
                raise _Busy from error
            raise
        try:
            scores = full_scores(full.trace.candidates, policy.n_max, scorer.name)
        except NotExhaustive as error:
            if full.reason is StopReason.ENGINE_BUSY:
                raise _Busy from error
            raise
        return explored(answered.outcome, returned, full.spend, scores), full

    def tokens(self) -> int:
        """Return what it has taken so far, scoring included."""
        tokens = 0
        if self._again is not None and self._again.computed_tokens:
            tokens += self._again.computed_tokens + 1  # the label that was read
        if self._run is not None:
            trace = self._run.trace()
            tokens += tally(trace.candidates, trace.scoring).spent_tokens
        return tokens

    async def _returned_score(self, scorer: Scorer) -> float:
        """Return the score of what the client got; judged now where it was not, which is no cost of the client's."""
        reply = self._answered.outcome.choices[0]
        known = final_score(reply, scorer.name)
        if known is not None:
            return known.value
        # Where a deadline cut it, it is all the same the whole of what the client got.
        (self._again,) = await scorer.score([replace(reply.whole, final=True)])
        return self._again.value


def _beside(engine: VllmEngine) -> VllmEngine:
    """Return an engine for the same chat that runs behind it: what it asks for comes after what clients ask for."""
    request = engine.request
    own = request.body.get("priority")  # an administrator may have set one
    behind = {**request.body, "priority": PRIORITY + (own if isinstance(own, int) else 0)}
    return VllmEngine(
        engine.upstream,
        replace(request, body=behind, upstream_id=f"{request.upstream_id}.x"),
        scoring=engine.scoring,
        max_model_len=engine.max_model_len,
        most_tokens=engine.most_tokens,
        prompt=engine.prompt,
    )


def _section(found: Explored, trace: Trace) -> dict[str, Any]:
    """Return what a request's trace tells of its exploration."""
    savings = found.savings
    plain = trace.to_plain(with_text=True)
    return {
        "regret": found.regret,
        "scores": {"returned": found.returned, "best_of_n": found.best},
        "tokens": {"best_of_n": savings.full_tokens, "spent": savings.spent_tokens + savings.scoring_cost},
        "engine_seconds": {"best_of_n": savings.full_engine_s, "spent": savings.spent_engine_s},
        **{name: plain[name] for name in ("seed", "candidates", "scoring")},
    }
