"""Savings against full best-of-N, with the cost of scoring deducted; and regret, what the saving cost in quality. Pure.

A single run can only estimate what it saved: nobody knows how long the candidates would have been that it did not
finish. Measured figures come from running `Policy.exhaustive()` beside it for a share of requests, and `measured`.

On the side of full best-of-N no scoring is counted, although it needs one score per candidate to pick by: so savings
are understated rather than overstated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from adaptive.candidate import CandidateRecord, Fate
from adaptive.spend import Spend


@dataclass(frozen=True, slots=True)
class Savings:
    """Compute saved, in generated tokens and in engine-seconds (`spend.py` says what these are).

    full_tokens: what full best-of-N generates. spent_tokens: what this run generated. scoring_cost: scoring in the
    same unit. full_engine_s: what full best-of-N takes. spent_engine_s: what this run took, scoring included.
    estimated: the two `full` figures rest on lengths that were never seen.
    """

    full_tokens: float
    spent_tokens: int
    scoring_cost: float
    estimated: bool
    full_engine_s: float = 0.0
    spent_engine_s: float = 0.0

    @property
    def saved_tokens(self) -> float:
        """What is left of full best-of-N after everything spent; negative where scoring cost more than it saved."""
        return self.full_tokens - self.spent_tokens - self.scoring_cost

    @property
    def saved_share(self) -> float:
        """`saved_tokens` as a share of `full_tokens`, at most 1."""
        return self.saved_tokens / self.full_tokens if self.full_tokens else 0.0

    @property
    def saved_engine_s(self) -> float:
        """Engine-seconds of full best-of-N that were not taken; may be negative too."""
        return self.full_engine_s - self.spent_engine_s


def estimated(records: Sequence[CandidateRecord], spend: Spend, n_max: int, *, prefill_weight: float = 1.0) -> Savings:
    """Return what a run saved against `n_max` candidates that all run to their end.

    A candidate that did not end counts as long as the mean of those that did, or as it was, whichever is more; one
    never drawn as the mean; tokens and seconds alike. Lost ones add nothing to the full side: it would have lost as
    many. prefill_weight: what computing one prompt token costs against generating one, 0 to 1. 1 is the cautious
    choice: a prompt token is cheaper everywhere.
    """
    complete = [record for record in records if record.complete]
    others = [record for record in records if not record.complete and record.fate is not Fate.FAILED]
    undrawn = max(0, n_max - len(complete) - len(others))
    return Savings(
        full_tokens=_full([each.tokens for each in complete], [each.tokens for each in others], undrawn),
        spent_tokens=spend.generated_tokens,
        scoring_cost=spend.scoring_tokens * prefill_weight,
        estimated=bool(others or undrawn),
        full_engine_s=_full([each.engine_s for each in complete], [each.engine_s for each in others], undrawn),
        spent_engine_s=spend.engine_s,
    )


def _full(complete: Sequence[float], others: Sequence[float], undrawn: int) -> float:
    seen = complete or others
    mean = fmean(seen) if seen else 0.0
    return sum(complete) + sum(max(each, mean) for each in others) + undrawn * mean


def measured(spend: Spend, full: Spend, *, prefill_weight: float = 1.0) -> Savings:
    """Return what a run saved against a full best-of-N that was really run for the same request."""
    return Savings(
        full_tokens=float(full.generated_tokens),
        spent_tokens=spend.generated_tokens,
        scoring_cost=spend.scoring_tokens * prefill_weight,
        estimated=False,
        full_engine_s=full.candidate_s,
        spent_engine_s=spend.engine_s,
    )


def regret(returned: float, full: Sequence[float]) -> float:
    """Return by how much the best of the full best-of-N beats what was returned, 0 or more, in the score's own unit.

    Raises `ValueError` without scores.
    """
    return max(0.0, max(full) - returned)
