"""Savings against full best-of-N, with the cost of scoring deducted; and regret, what the saving cost in quality. Pure.

A single run can only estimate what it saved: nobody knows how long the candidates would have been that it did not
finish. Measured figures come from running `Policy.exhaustive()` beside it for a share of requests, and `measured`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from adaptive.candidate import CandidateRecord, Fate
from adaptive.spend import Spend


@dataclass(frozen=True, slots=True)
class Savings:
    """Compute saved, in generated tokens.

    full_tokens: what full best-of-N generates. spent_tokens: what this run generated. scoring_cost: scoring in the
    same unit. estimated: `full_tokens` rests on lengths that were never seen.
    """

    full_tokens: float
    spent_tokens: int
    scoring_cost: float
    estimated: bool

    @property
    def saved_tokens(self) -> float:
        """What is left of full best-of-N after everything spent; negative where scoring cost more than it saved."""
        return self.full_tokens - self.spent_tokens - self.scoring_cost

    @property
    def saved_share(self) -> float:
        """`saved_tokens` as a share of `full_tokens`, at most 1."""
        return self.saved_tokens / self.full_tokens if self.full_tokens else 0.0


def estimated(records: Sequence[CandidateRecord], spend: Spend, n_max: int, *, prefill_weight: float = 1.0) -> Savings:
    """Return what a run saved against `n_max` candidates that all run to their end.

    A candidate that did not end counts as long as the mean of those that did, or as it was, whichever is more; one
    never drawn as the mean. Lost ones add nothing to the full side: it would have lost as many.
    prefill_weight: what computing one prompt token costs against generating one, 0 to 1. 1 is the cautious choice: a
    prompt token is cheaper everywhere.
    """
    complete = [record.tokens for record in records if record.complete]
    others = [record.tokens for record in records if not record.complete and record.fate is not Fate.FAILED]
    seen = complete or others
    mean = fmean(seen) if seen else 0.0
    undrawn = max(0, n_max - len(complete) - len(others))
    full = sum(complete) + sum(max(tokens, mean) for tokens in others) + undrawn * mean
    return Savings(
        full_tokens=full,
        spent_tokens=spend.generated_tokens,
        scoring_cost=spend.scoring_tokens * prefill_weight,
        estimated=bool(others or undrawn),
    )


def measured(spend: Spend, full: Spend, *, prefill_weight: float = 1.0) -> Savings:
    """Return what a run saved against a full best-of-N that was really run for the same request."""
    return Savings(
        full_tokens=float(full.generated_tokens),
        spent_tokens=spend.generated_tokens,
        scoring_cost=spend.scoring_tokens * prefill_weight,
        estimated=False,
    )


def regret(returned: float, full: Sequence[float]) -> float:
    """Return by how much the best of the full best-of-N beats what was returned, 0 or more, in the score's own unit.

    Raises `ValueError` without scores.
    """
    return max(0.0, max(full) - returned)
