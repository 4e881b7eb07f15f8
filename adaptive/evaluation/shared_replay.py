"""Many policies on the candidates of one prompt: what comes out is `replay`'s, but equal runs are made only once.

Of hundreds of policies that differ in threshold, checkpoints and n_max most do the same with most prompts:

- A threshold is only ever compared with scores. Two with no score between them lead to the same run.
- A run that ended at its threshold before its last candidate was drawn is that of a larger n_max too.
- A checkpoint that no candidate is long enough to pass does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adaptive.policy import Checkpoint, Mode, Policy
from adaptive.replay import ReplayCandidate, Replayed, replay
from adaptive.stopping import StopReason

Order = tuple[int, ...]
"""Places of candidates in the order in which they are drawn."""


@dataclass(frozen=True, slots=True)
class _Run:
    """A run by a threshold, and where else it holds: for thresholds above `low`, up to `high`."""

    replayed: Replayed
    n_max: int
    low: float
    high: float

    def holds(self, threshold: float, n_max: int) -> bool:
        if not self.low < threshold <= self.high:
            return False
        stopped = self.replayed.reason is StopReason.THRESHOLD
        # Strictly below: of the last one that may be drawn the score is not always bought.
        return n_max == self.n_max or (stopped and self.replayed.drawn < min(n_max, self.n_max))


class SharedReplay:
    """Replays policies on the candidates of a prompt. All have one scorer, that of the candidates, and one growth."""

    def __init__(self, candidates: Sequence[ReplayCandidate]) -> None:
        self._candidates = candidates
        self._longest = max((each.tokens for each in candidates), default=0)
        self._adaptive: dict[tuple[tuple[Checkpoint, ...], Order], list[_Run]] = {}
        self._others: dict[tuple[Mode, int, tuple[Checkpoint, ...], Order], Replayed] = {}

    def replay(self, policy: Policy, order: Order) -> Replayed:
        """Return what `replay` does of the candidates in that order. Raises what it raises."""
        checkpoints = tuple(each for each in policy.checkpoints if each.tokens < self._longest)
        if policy.mode is not Mode.ADAPTIVE:
            key = policy.mode, policy.n_max, checkpoints, order
            known = self._others.get(key)
            if known is None:
                known = self._others[key] = self._replayed(policy, checkpoints, order)
            return known
        runs = self._adaptive.setdefault((checkpoints, order), [])
        for run in runs:
            if run.holds(policy.threshold, policy.n_max):
                return run.replayed
        replayed = self._replayed(policy, checkpoints, order)
        runs.append(self._run(policy, order, replayed))
        return replayed

    def _replayed(self, policy: Policy, checkpoints: tuple[Checkpoint, ...], order: Order) -> Replayed:
        if len(checkpoints) < len(policy.checkpoints):
            policy = replace(policy, checkpoints=checkpoints)
        return replay(policy, [self._candidates[place] for place in order])

    def _run(self, policy: Policy, order: Order, replayed: Replayed) -> _Run:
        compared = []
        for place, tokens in enumerate(replayed.generated):
            candidate = self._candidates[order[place]]
            if tokens == candidate.tokens and place not in replayed.pruned and candidate.final.value is not None:
                compared.append(candidate.final.value)
        low = max((score for score in compared if score < policy.threshold), default=-math.inf)
        # Where it was not reached, a score at or above it is one that was not bought.
        reached = replayed.reason is StopReason.THRESHOLD
        high = (
            min((score for score in compared if score >= policy.threshold), default=math.inf) if reached else math.inf
        )
        return _Run(replayed, policy.n_max, low, high)
