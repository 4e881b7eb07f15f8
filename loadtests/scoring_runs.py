"""What scores cost the engine, from runs with and without them: each figure compares the two runs of a prompt. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from loadtests.comparison import Interval, bootstrap_median

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptive.run import Outcome


@dataclass(frozen=True, slots=True)
class Run:
    """One request. Times in seconds: of the run, of its candidates and of its scoring calls in the engine, added up.

    scores: judgements. calls: scoring calls. scored_tokens: of all sequences that were scored, the question left out.
    told_tokens: computed for scores, by `usage`. computed_tokens: prompt tokens computed for the whole run by vLLM's
    own counter, None where it has none.
    """

    prompt: int
    scored: bool
    took_s: float
    candidates_s: float
    scoring_s: float
    scores: int = 0
    calls: int = 0
    scored_tokens: int = 0
    told_tokens: int = 0
    computed_tokens: float | None = None

    @classmethod
    def of(cls, prompt: int, outcome: Outcome, prompt_tokens: int, computed_tokens: float | None) -> Run:
        """Return a run from its outcome."""
        candidates, calls = outcome.trace.candidates, outcome.trace.scoring
        judged = [score for candidate in candidates for score in candidate.scores]
        return cls(
            prompt=prompt,
            scored=bool(calls),
            took_s=outcome.trace.took_s,
            candidates_s=sum((each.ended_s or 0.0) - each.drawn_s for each in candidates),
            scoring_s=sum(call.answered_s - call.asked_s for call in calls),
            scores=len(judged),
            calls=len(calls),
            scored_tokens=sum(prompt_tokens + score.tokens for score in judged),
            told_tokens=sum(call.computed_tokens for call in calls),
            computed_tokens=computed_tokens,
        )


@dataclass(frozen=True, slots=True)
class Costs:
    """What scoring cost one engine.

    share: of the request-seconds in the engine, those of scoring calls. call_ms: a scoring call, mean. extra_time: wall
    time of a run with scores over one without, same seeds. Tokens are prompt tokens per score: sequence_tokens, what it
    is long; computed_tokens, what vLLM computed for it beyond the run without scores, by its own counter (None if it
    has none); told_tokens, what `usage` made us think.
    """

    prefix_caching: bool | None
    block_size: int | None
    scores: int
    calls: int
    share: Interval
    extra_time: Interval
    call_ms: float
    sequence_tokens: float
    computed_tokens: float | None
    told_tokens: float


def costs(runs: Sequence[Run], *, prefix_caching: bool | None, block_size: int | None) -> Costs:
    """Return the costs from pairs of runs. Raises `ValueError` when nothing was scored, or a run lacks its other."""
    with_scores = {run.prompt: run for run in runs if run.scored}
    without = {run.prompt: run for run in runs if not run.scored}
    if not with_scores or with_scores.keys() != without.keys():
        raise ValueError("there are no scores to measure: scoring failed, or every candidate ended before a checkpoint")
    pairs = [(with_scores[prompt], without[prompt]) for prompt in sorted(with_scores)]
    scores, calls = (sum(getattr(run, name) for run in with_scores.values()) for name in ("scores", "calls"))
    counted = [
        (mine.computed_tokens - other.computed_tokens) / mine.scores
        for mine, other in pairs
        if mine.computed_tokens is not None and other.computed_tokens is not None
    ]
    return Costs(
        prefix_caching=prefix_caching,
        block_size=block_size,
        scores=scores,
        calls=calls,
        share=bootstrap_median([mine.scoring_s / (mine.scoring_s + mine.candidates_s) for mine, _ in pairs]),
        extra_time=bootstrap_median([mine.took_s / other.took_s for mine, other in pairs]),
        call_ms=fmean(run.scoring_s / run.calls for run in with_scores.values()) * 1e3,
        sequence_tokens=sum(run.scored_tokens for run in with_scores.values()) / scores,
        computed_tokens=fmean(counted) if counted else None,
        told_tokens=sum(run.told_tokens for run in with_scores.values()) / scores,
    )
