"""What a run knows of itself: its candidates, its decisions, its costs. Kept here, decided and acted upon elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from adaptive.candidate import Candidate, Fate, ScoreAt
from adaptive.clock import Clock
from adaptive.committing import Contender
from adaptive.engine import EngineBusy, EngineFailed, EngineRejected
from adaptive.policy import Policy
from adaptive.run import Outcome, Request
from adaptive.savings import estimated
from adaptive.scoring import Score, Scorer
from adaptive.selection import Finalist, Ranking
from adaptive.spend import ScoringCall, tally
from adaptive.stopping import Progress, StopReason
from adaptive.trace import Decision, Degraded, Stopped, Trace
from adaptive.workers import Asked

NO_SCORER: Final = "none"


class RunState:
    """The books of one run. `BestOfN` is the only one who writes in them."""

    def __init__(
        self,
        request: Request,
        policy: Policy,
        scorers: Sequence[Scorer],
        clock: Clock,
        allowed: Callable[[int], int],
    ) -> None:
        self.request = request
        self.policy = policy
        self.most = policy.candidates(request.choices)
        # A single candidate has nothing to be compared with, so nothing is asked of the engine for its scores' sake.
        self.scorers = tuple(scorers) if self.most > 1 else ()
        self.scorer_failures = 0
        self.candidates: list[Candidate] = []
        self.batch: list[Candidate] = []
        self.decisions: list[Decision] = []
        self.pending: list[Asked] = []
        self.busy = False
        self.shortened: tuple[StopReason, ...] = ()
        self.stopped: StopReason | None = None
        self._calls: list[ScoringCall] = []
        self._allowed = allowed
        self._clock = clock
        self._started_s = 0.0
        self._ended_s: float | None = None

    def start(self) -> None:
        """Count time from now."""
        self._started_s = self._clock.now()

    def now(self) -> float:
        """Return the seconds since the start."""
        return self._clock.now() - self._started_s

    @property
    def scorer(self) -> Scorer | None:
        """The scorer in force."""
        return self.scorers[self.scorer_failures] if self.scorer_failures < len(self.scorers) else None

    @property
    def scorer_name(self) -> str:
        """Its name, `none` without one."""
        return self.scorer.name if self.scorer is not None else NO_SCORER

    def in_contention(self) -> list[Candidate]:
        """Return the candidates that may yet be returned."""
        return [candidate for candidate in self.candidates if candidate.in_contention]

    def score(self, candidate: Candidate) -> float | None:
        """Return the candidate's latest score by the scorer in force."""
        return candidate.score_by(self.scorer_name)

    def contender(self, candidate: Candidate) -> Contender:
        """Return a candidate as `committing` sees it."""
        return Contender(candidate.index, candidate.token_count, self.score(candidate), candidate.running)

    def finalists(self) -> list[Finalist]:
        """Return the candidates that may be returned now: ended, or cut by the end of the run. Not the pruned."""
        return [
            Finalist(
                each.index,
                each.text,
                self.score(each),
                each.complete,
                each.token_count,
                tuple(step.payload for step in each.steps if step.payload is not None),
            )
            for each in self.candidates
            if each.fate in {Fate.FINISHED, Fate.ABORTED}
        ]

    def progress(self) -> Progress:
        """Return the run as `stopping` sees it."""
        # Its final score: one that has just ended still has that of its last checkpoint, which settles nothing.
        scores = [each.score_by(self.scorer_name, final=True) for each in self.candidates if each.complete]
        return Progress(
            drawn=len(self.candidates),
            failed=sum(candidate.fate is Fate.FAILED for candidate in self.candidates),
            alive=len(self.in_contention()),
            batch_failed=all(candidate.fate is Fate.FAILED for candidate in self.batch),
            allowed=max(self.request.choices, min(self.most, self._allowed(self.most))),
            choices=self.request.choices,
            scores=tuple(score for score in scores if score is not None),
            spent_tokens=sum(candidate.token_count for candidate in self.candidates),
            longest=max((candidate.token_count for candidate in self.candidates if candidate.finished), default=0),
            max_tokens=self.request.max_tokens,
            busy=self.busy,
            rejected=any(isinstance(candidate.error, EngineRejected) for candidate in self.candidates),
            scored=not self.scorer_failures,
            shortened=self.shortened,
        )

    def stop(self, reason: StopReason) -> None:
        """Enter that no more candidates are drawn. The first reason stands."""
        if self.stopped is None:
            self.stopped = reason
            self.decisions.append(Stopped(reason, self.now()))

    def enter_scores(self, asked: Asked, scores: Sequence[Score]) -> None:
        """Enter the answer to a scoring call."""
        self.enter_call(asked, computed_tokens=sum(score.computed_tokens for score in scores))
        for due, score in zip(asked.due, scores, strict=True):
            entry = ScoreAt(due.tokens, score.value, due.final, asked.scorer.name, score.label_mass, self.now())
            self.candidates[due.candidate].scores.append(entry)

    def enter_call(self, asked: Asked, *, computed_tokens: int = 0, error: str | None = None) -> None:
        """Enter the cost of a scoring call, and that it is no longer waited for."""
        self.pending.remove(asked)
        self._calls.append(
            ScoringCall(
                scorer=asked.scorer.name,
                candidates=tuple(due.candidate for due in asked.due),
                checkpoint=None if asked.checkpoint is None else self.policy.checkpoints[asked.checkpoint].tokens,
                computed_tokens=computed_tokens,
                asked_s=asked.asked_s,
                answered_s=self.now(),
                error=error,
            )
        )

    def close(self) -> None:
        """Leave nothing open: whoever still ran was aborted, whoever was asked is not waited for."""
        for candidate in self.candidates:
            if candidate.running:
                candidate.end(Fate.ABORTED, self.now())
        for asked in tuple(self.pending):
            self.enter_call(asked, error="not waited for")
        self._ended_s = self.now()

    def trace(self) -> Trace:
        """Return the run so far."""
        return Trace(
            policy=self.policy,
            seed=self.request.seed,
            prompt_tokens=len(self.request.prompt),
            candidates=tuple(candidate.record() for candidate in self.candidates),
            decisions=tuple(self.decisions),
            scoring=tuple(self._calls),
            took_s=self.now() if self._ended_s is None else self._ended_s,
        )

    def outcome(self, chosen: Ranking, selector: str) -> Outcome:
        """Return the outcome with those candidates as choices."""
        for index in chosen:
            self.candidates[index].fate = Fate.RETURNED
        trace = self.trace()
        spend = tally(trace.candidates, trace.scoring)
        return Outcome(
            choices=tuple(trace.candidates[index] for index in chosen),
            reason=self.stopped or StopReason.N_MAX,
            scorer=self.scorer_name,
            selector=selector,
            degradations=tuple(each for each in self.decisions if isinstance(each, Degraded)),
            trace=trace,
            spend=spend,
            savings=estimated(trace.candidates, spend, self.most),
        )

    def why_nothing(self) -> Exception:
        """Return the error to raise when no candidate can be returned."""
        errors = [candidate.error for candidate in self.candidates if candidate.error is not None]
        busy = next((error for error in errors if isinstance(error, EngineBusy)), None)
        return busy or next(iter(errors), EngineFailed("no candidate was generated"))
