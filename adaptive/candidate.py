"""The nouns of a run: a candidate while it grows, what a scorer sees of it, and what is left to tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from adaptive.engine import GeneratedTokens, Sampling, TokenIds


class Fate(StrEnum):
    """What became of a candidate."""

    RUNNING = "running"
    RETURNED = "returned"
    """Given to the client."""
    FINISHED = "finished"
    """Generated to its end, and not chosen."""
    PRUNED = "pruned"
    """Stopped at a checkpoint because its score was low."""
    FAILED = "failed"
    """Lost to an error upstream."""
    ABORTED = "aborted"
    """Stopped because the run ended without it: another was settled on, the deadline passed, the client left."""


@dataclass(frozen=True, slots=True)
class ScoreAt:
    """One score of one candidate.

    tokens: how many of its tokens were judged. value: 0 to 1, larger is better. final: it had ended. scorer: who
    judged. label_mass: see `self_evaluation.py`; None where it has no meaning. at_s: seconds into the run.
    """

    tokens: int
    value: float
    final: bool
    scorer: str
    label_mass: float | None
    at_s: float


@dataclass(frozen=True, slots=True)
class Partial:
    """A candidate's beginning, or all of it, as a scorer sees it. The fields are those of `GeneratedTokens`.

    final: it is all of a candidate whose stream has ended, by itself or at a limit.
    """

    token_ids: TokenIds
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[float, ...], ...] = ()
    readouts: tuple[tuple[float, ...], ...] = ()
    final: bool = False


def beginning(steps: Sequence[GeneratedTokens], tokens: int | None = None) -> Partial:
    """Return the first tokens of those steps, as many as asked for or there are; None is all of them."""
    token_ids = tuple(token for step in steps for token in step.token_ids)
    ended = bool(steps) and steps[-1].finish_reason is not None
    return Partial(
        token_ids=token_ids[:tokens],
        logprobs=tuple(logprob for step in steps for logprob in step.logprobs)[:tokens],
        top_logprobs=tuple(top for step in steps for top in step.top_logprobs)[:tokens],
        readouts=tuple(readout for step in steps for readout in step.readouts)[:tokens],
        final=ended and (tokens is None or tokens >= len(token_ids)),
    )


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """A candidate at one moment, for the client, the trace and the metrics. Times are seconds into the run.

    complete: it ended by itself within the client's own max_tokens. error: what it was lost to.
    """

    index: int
    batch: int
    sampling: Sampling
    fate: Fate
    complete: bool
    finish_reason: str | None
    steps: tuple[GeneratedTokens, ...]
    scores: tuple[ScoreAt, ...]
    error: str | None
    drawn_s: float
    first_token_s: float | None
    ended_s: float | None

    @property
    def token_ids(self) -> TokenIds:
        """All its tokens."""
        return tuple(token for step in self.steps for token in step.token_ids)

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return sum(len(step.token_ids) for step in self.steps)

    @property
    def text(self) -> str:
        """All its text."""
        return "".join(step.text for step in self.steps)

    @property
    def score(self) -> ScoreAt | None:
        """Its latest score."""
        return self.scores[-1] if self.scores else None

    @property
    def engine_s(self) -> float:
        """Seconds that it was in the engine, from being drawn to its end; 0 while it runs."""
        return 0.0 if self.ended_s is None else self.ended_s - self.drawn_s

    @property
    def whole(self) -> Partial:
        """All of it, as a scorer sees it."""
        return beginning(self.steps)


@dataclass(slots=True, eq=False)
class Candidate:
    """A candidate while it grows. Only the loop in `best_of_n.py` writes to it."""

    index: int
    batch: int
    sampling: Sampling
    drawn_s: float
    fate: Fate = Fate.RUNNING
    complete: bool = False
    finish_reason: str | None = None
    token_count: int = 0
    steps: list[GeneratedTokens] = field(default_factory=list)
    scores: list[ScoreAt] = field(default_factory=list)
    error: Exception | None = None
    first_token_s: float | None = None
    ended_s: float | None = None

    @property
    def running(self) -> bool:
        """It is still being generated."""
        return self.fate is Fate.RUNNING

    @property
    def finished(self) -> bool:
        """Its stream ended by itself."""
        return self.fate is Fate.FINISHED

    @property
    def in_contention(self) -> bool:
        """It may yet be returned."""
        return self.running or self.finished

    def grow(self, step: GeneratedTokens, at_s: float) -> None:
        """Add what the engine generated."""
        self.steps.append(step)
        self.token_count += len(step.token_ids)
        if self.first_token_s is None and step.token_ids:
            self.first_token_s = at_s

    def end(self, fate: Fate, at_s: float) -> None:
        """Give it its fate; from here on it does not grow."""
        self.fate = fate
        self.ended_s = at_s

    def score_by(self, scorer: str | None, *, final: bool = False) -> float | None:
        """Return the latest score of that scorer; scores of different scorers are not comparable.

        final: only one that was given after it had ended.
        """
        found = (each for each in reversed(self.scores) if each.scorer == scorer and (each.final or not final))
        return next((score.value for score in found), None)

    def beginning(self, tokens: int) -> Partial:
        """Return its first tokens, as many as asked for or there are."""
        return beginning(self.steps, tokens)

    @property
    def text(self) -> str:
        """All its text."""
        return "".join(step.text for step in self.steps)

    def record(self) -> CandidateRecord:
        """Return what is to be told of it now."""
        return CandidateRecord(
            index=self.index,
            batch=self.batch,
            sampling=self.sampling,
            fate=self.fate,
            complete=self.complete,
            finish_reason=self.finish_reason,
            steps=tuple(self.steps),
            scores=tuple(self.scores),
            error=str(self.error) if self.error is not None else None,
            drawn_s=self.drawn_s,
            first_token_s=self.first_token_s,
            ended_s=self.ended_s,
        )
