"""Strategies: the ways to spend on a prompt that a study compares. Each is a policy of the product and who picks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from adaptive.annealing import CONSTANT
from adaptive.policy import Checkpoint, Mode, Policy, ScorerName

KEEPS = (0.5, 0.25)
"""The shares that arXiv 2410.02725 prunes to."""

SCORERS = (ScorerName.SELF_EVALUATION, ScorerName.MEAN_LOG_PROBABILITY, ScorerName.GROUP_CONFIDENCE)
"""Whoever has judged the recorded candidates."""


class Pick(StrEnum):
    """Who says which candidate is returned."""

    SCORE = "score"
    """The policy's own selection by score."""
    ORACLE = "oracle"
    """Somebody who knows the verdicts: the bound of every selection."""
    RANDOM = "random"
    """Nobody: any of them."""


class Family(StrEnum):
    """Strategies that differ in one number."""

    ONE_SAMPLE = "one sample"
    ORACLE = "best of n, oracle"
    RANDOM = "best of n, random pick"
    SELF_EVALUATION = "best of n, self-evaluation"
    MEAN_LOG_PROBABILITY = "best of n, mean log-probability"
    GROUP_CONFIDENCE = "best of n, group confidence"
    ADAPTIVE = "adaptive"
    PRUNED = "pruned"
    DEFAULT = "default policy"


@dataclass(frozen=True, slots=True)
class Strategy:
    """family, label: its name and the number that is its own. policy, pick: what it does."""

    family: Family
    label: str
    policy: Policy
    pick: Pick = Pick.SCORE

    @property
    def name(self) -> str:
        """Family and label."""
        return f"{self.family.value}: {self.label}" if self.label else self.family.value


_OF_SCORER = {
    ScorerName.SELF_EVALUATION: Family.SELF_EVALUATION,
    ScorerName.MEAN_LOG_PROBABILITY: Family.MEAN_LOG_PROBABILITY,
    ScorerName.GROUP_CONFIDENCE: Family.GROUP_CONFIDENCE,
}


def sizes(n: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and n."""
    return tuple(sorted({2**power for power in range(n.bit_length()) if 2**power <= n} | {n}))


def strategies(
    n: int, checkpoints: Sequence[int], thresholds: Sequence[float], max_tokens: int
) -> tuple[Strategy, ...]:
    """Return all strategies on up to n recorded candidates of at most that many tokens.

    checkpoints: where they were scored. The default policy is among the strategies if its own checkpoints are there.
    """
    within = [tokens for tokens in checkpoints if tokens < max_tokens]
    found = [Strategy(Family.ONE_SAMPLE, "", best_of(1), Pick.RANDOM)]
    for size in sizes(n)[1:]:
        found += [
            Strategy(Family.ORACLE, f"n={size}", best_of(size), Pick.ORACLE),
            Strategy(Family.RANDOM, f"n={size}", best_of(size), Pick.RANDOM),
        ]
        found += [
            Strategy(family, f"n={size}", replace(best_of(size), scorer=scorer))
            for scorer, family in _OF_SCORER.items()
        ]
    for threshold in thresholds:
        policy = Policy(n_max=n, threshold=threshold, annealing=CONSTANT, checkpoints=())
        found.append(Strategy(Family.ADAPTIVE, f"threshold {threshold:.4g}", policy))
    for tokens in within:
        for keep in KEEPS:
            policy = replace(best_of(n), checkpoints=(Checkpoint(tokens, keep),))
            found.append(Strategy(Family.PRUNED, f"{keep:.0%} at {tokens}", policy))
    default = replace(Policy(), n_max=n, annealing=CONSTANT)
    if all(each.tokens in within or each.tokens >= max_tokens for each in default.checkpoints):
        found.append(Strategy(Family.DEFAULT, "", default))
    return tuple(found)


def best_of(n: int) -> Policy:
    """Return full best-of-n: that many, each generated to its end."""
    return Policy(mode=Mode.BEST_OF_N, n_max=n, annealing=CONSTANT, checkpoints=())
