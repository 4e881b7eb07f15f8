"""Exploring: what a full best-of-N, really run for a request that was answered already, says of that request. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaptive.candidate import CandidateRecord, Fate, ScoreAt
from adaptive.run import Outcome
from adaptive.savings import Savings, measured, regret
from adaptive.spend import Spend


class NotExhaustive(Exception):
    """A run was no full best-of-N; the message says what it lacked."""


@dataclass(frozen=True, slots=True)
class Explored:
    """One sample of what sampling saves and costs.

    savings: measured, not estimated. returned: the score of the reply that the client got. best: the highest of the
    full best-of-N, by the same scorer. regret: by how much it is higher, 0 or more.
    """

    savings: Savings
    returned: float
    best: float
    regret: float


def final_score(record: CandidateRecord, scorer: str) -> ScoreAt | None:
    """Return that scorer's judgement of all that the candidate wrote, None if there is none."""
    return next(
        (
            score
            for score in reversed(record.scores)
            if score.final and score.scorer == scorer and score.tokens == record.tokens
        ),
        None,
    )


def full_scores(records: Sequence[CandidateRecord], n_max: int, scorer: str) -> tuple[float, ...]:
    """Return the final scores of a full best-of-N. Raises `NotExhaustive` unless all `n_max` ended and were scored."""
    ended = [each for each in records if each.complete and each.fate in {Fate.RETURNED, Fate.FINISHED}]
    if len(ended) < n_max:
        lost = next((each.error for each in records if each.error is not None), None)
        raise NotExhaustive(f"{len(ended)} of {n_max} candidates ended: {lost or 'others were not drawn or were cut'}")
    scores = [final_score(each, scorer) for each in ended]
    found = tuple(score.value for score in scores if score is not None)
    if len(found) < len(scores):
        raise NotExhaustive(f"{len(found)} of {n_max} candidates were scored by {scorer}")
    return found


def explored(outcome: Outcome, returned: float, full: Spend, scores: Sequence[float]) -> Explored:
    """Return what a full best-of-N of that spend and those scores says of an outcome whose reply scored `returned`."""
    return Explored(
        savings=measured(outcome.spend, full), returned=returned, best=max(scores), regret=regret(returned, scores)
    )
