"""Committing: when a streaming client can be given a candidate that is still being generated. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum


class CommitReason(StrEnum):
    """Why a candidate was settled on before it ended."""

    ONE_LEFT = "one_left"
    """No other is left, and no other will be drawn."""
    CLEAR = "clear"
    """Its score at a checkpoint reached the threshold: starting over would not do better."""
    COMMIT_AT = "commit_at"
    """A candidate came to `commit_at` tokens, and this one is the best so far."""
    DEADLINE = "deadline"
    """The deadline passed, and this one, the best so far, alone goes on."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A candidate that may yet be returned. score: its latest, or None."""

    index: int
    tokens: int
    score: float | None
    running: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """Settle on this candidate, and stop the others."""

    index: int
    reason: CommitReason


def commit(
    contenders: Collection[Contender], *, more_to_come: bool, threshold: float | None, commit_at: int | None
) -> Commit | None:
    """Return the candidate to settle on now, or None to wait.

    more_to_come: another batch may be drawn. threshold: the score that settles it, None where none does.
    """
    if not contenders:
        return None
    best = best_so_far(contenders)
    if len(contenders) == 1 and not more_to_come:
        return Commit(best.index, CommitReason.ONE_LEFT)
    if threshold is not None and best.score is not None and best.score >= threshold:
        return Commit(best.index, CommitReason.CLEAR)
    if commit_at is not None and any(contender.running and contender.tokens >= commit_at for contender in contenders):
        return Commit(best.index, CommitReason.COMMIT_AT)
    return None


def best_so_far(contenders: Collection[Contender]) -> Contender:
    """Return the contender with the highest latest score; one with a score before one without; ties keep the earlier.

    Raises `ValueError` without contenders.
    """
    return min(contenders, key=lambda each: (each.score is None, -(each.score or 0.0), each.index))
