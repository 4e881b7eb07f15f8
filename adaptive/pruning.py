"""Pruning: which candidates do not go on after a checkpoint. Pure.

Candidates are compared at equal length: the score of a running one is that of exactly the checkpoint's tokens, however
far it has come by the time the score is there. So the decision depends on what was generated and never on how fast.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

_ROUNDING = 1e-9  # 0.07 * 100 is a little more than 7, and must keep 7


@dataclass(frozen=True, slots=True)
class Standing:
    """A candidate at a checkpoint: a running one with its score there, or one that ended earlier with its last."""

    index: int
    score: float
    running: bool


def reached(tokens: int, running: Iterable[int]) -> bool:
    """Return True when every running candidate, given by its number of tokens, has reached that many."""
    return all(count >= tokens for count in running)


def kept(compared: int, keep: float, at_least: int = 1) -> int:
    """Return how many of the compared candidates go on: the share, rounded up, and never less than `at_least`."""
    return min(compared, max(at_least, math.ceil(compared * keep - _ROUNDING)))


def prune(standings: Collection[Standing], keep: float, at_least: int = 1) -> tuple[int, ...]:
    """Return the indices of the candidates to stop, ascending.

    The best go on; of two with equal scores the earlier. Candidates that have ended take a place among the best if
    they deserve it, and have nothing left to stop if they do not. With `at_least` 1 or more and one candidate or more,
    one is always left. The order in which candidates are given does not matter.
    """
    ranked = sorted(standings, key=lambda standing: (-standing.score, standing.index))
    losers = ranked[kept(len(ranked), keep, at_least) :]
    return tuple(sorted(loser.index for loser in losers if loser.running))
