"""When plain best-of-N would have given a streaming client its first token, for comparison. Pure.

Plain best-of-N starts all its candidates together, scores those that ended, and only then knows which to stream.
"""

from __future__ import annotations

from dataclasses import dataclass

from adaptive.candidate import Fate
from adaptive.policy import Mode
from adaptive.trace import Trace


@dataclass(frozen=True, slots=True)
class PlainFirstToken:
    """Seconds from the first draw to the first token. estimated: it was not this run's own figure."""

    after_s: float
    estimated: bool


def plain_first_token(trace: Trace) -> PlainFirstToken | None:
    """Return when plain best-of-N would have had its first token; None of a run that drew nothing.

    Known where the run was plain best-of-N itself: `n_max` candidates together, all complete. Elsewhere estimated as
    the longest time that any candidate took, and the longest scoring call for candidates that had ended. That is rather
    too early: the longest of all `n_max` is at least as long, and more candidates together are slower.
    """
    candidates = trace.candidates
    if not candidates:
        return None
    plain = trace.policy.mode is Mode.BEST_OF_N and len(candidates) >= trace.policy.n_max
    if plain and all(each.complete and each.fate in {Fate.RETURNED, Fate.FINISHED} for each in candidates):
        return PlainFirstToken(trace.took_s, estimated=False)
    scoring = [each.answered_s - each.asked_s for each in trace.scoring if each.checkpoint is None and not each.error]
    return PlainFirstToken(max(each.engine_s for each in candidates) + max(scoring, default=0.0), estimated=True)
