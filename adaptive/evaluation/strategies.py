"""Strategies: the ways to spend on a prompt that a study compares. Each is a policy of the product and who picks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from adaptive.annealing import CONSTANT
from adaptive.policy import STAGES, Checkpoint, Mode, Policy, ScorerName

KEEPS = (0.5, 0.25)
"""The shares that arXiv 2410.02725 prunes to."""

SCORERS: Final[tuple[ScorerName, ...]] = (
    ScorerName.SELF_EVALUATION,
    ScorerName.READ_OUT,
    ScorerName.MEAN_LOG_PROBABILITY,
    ScorerName.GROUP_CONFIDENCE,
)
"""Whoever may have judged the recorded candidates, in the order of reports."""

PROBABILITIES: Final[tuple[ScorerName, ...]] = (ScorerName.SELF_EVALUATION, ScorerName.READ_OUT)
"""Those that estimate P(win or tie): a threshold means the same from prompt to prompt (see `scoring.py`)."""


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
    READ_OUT = "best of n, read-out"
    MEAN_LOG_PROBABILITY = "best of n, mean log-probability"
    GROUP_CONFIDENCE = "best of n, group confidence"
    ADAPTIVE_SELF_EVALUATION = "adaptive, self-evaluation"
    ADAPTIVE_READ_OUT = "adaptive, read-out"
    PRUNED_SELF_EVALUATION = "pruned, self-evaluation"
    PRUNED_READ_OUT = "pruned, read-out"
    PRUNED_STAGED = "pruned by read-out, chosen by self-evaluation"
    PRUNED_MEAN_LOG_PROBABILITY = "pruned, mean log-probability"
    PRUNED_GROUP_CONFIDENCE = "pruned, group confidence"
    DEFAULT = "default policy"


BEST_OF: Final[Mapping[ScorerName, Family]] = {
    ScorerName.SELF_EVALUATION: Family.SELF_EVALUATION,
    ScorerName.READ_OUT: Family.READ_OUT,
    ScorerName.STAGED: Family.SELF_EVALUATION,  # without pruning, all that it scores has ended
    ScorerName.MEAN_LOG_PROBABILITY: Family.MEAN_LOG_PROBABILITY,
    ScorerName.GROUP_CONFIDENCE: Family.GROUP_CONFIDENCE,
}
ADAPTIVE: Final[Mapping[ScorerName, Family]] = {
    ScorerName.SELF_EVALUATION: Family.ADAPTIVE_SELF_EVALUATION,
    ScorerName.READ_OUT: Family.ADAPTIVE_READ_OUT,
    ScorerName.STAGED: Family.ADAPTIVE_SELF_EVALUATION,
}
PRUNED: Final[Mapping[ScorerName, Family]] = {
    ScorerName.SELF_EVALUATION: Family.PRUNED_SELF_EVALUATION,
    ScorerName.READ_OUT: Family.PRUNED_READ_OUT,
    ScorerName.STAGED: Family.PRUNED_STAGED,
    ScorerName.MEAN_LOG_PROBABILITY: Family.PRUNED_MEAN_LOG_PROBABILITY,
    ScorerName.GROUP_CONFIDENCE: Family.PRUNED_GROUP_CONFIDENCE,
}


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


def sizes(n: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and n."""
    return tuple(sorted({2**power for power in range(n.bit_length()) if 2**power <= n} | {n}))


def strategies(
    n: int,
    checkpoints: Sequence[int],
    thresholds: Mapping[ScorerName, Sequence[float]],
    max_tokens: int,
    scorers: Sequence[ScorerName],
) -> tuple[Strategy, ...]:
    """Return all strategies on up to n recorded candidates of at most that many tokens.

    checkpoints: where they were scored. scorers: by whom. thresholds: of adaptive sampling by each scorer that
    estimates a probability. The default policy is among the strategies if its scorer and its own checkpoints are there.
    `staged` is among those that prune where both its stages are there; otherwise it is self-evaluation.
    """
    within = [tokens for tokens in checkpoints if tokens < max_tokens]
    found = [Strategy(Family.ONE_SAMPLE, "", best_of(1), Pick.RANDOM)]
    for size in sizes(n)[1:]:
        found += [
            Strategy(Family.ORACLE, f"n={size}", best_of(size), Pick.ORACLE),
            Strategy(Family.RANDOM, f"n={size}", best_of(size), Pick.RANDOM),
        ]
        found += [Strategy(BEST_OF[scorer], f"n={size}", best_of(size, scorer)) for scorer in scorers]
    for scorer, values in thresholds.items():
        for threshold in values:
            policy = Policy(n_max=n, threshold=threshold, annealing=CONSTANT, checkpoints=(), scorer=scorer)
            found.append(Strategy(ADAPTIVE[scorer], f"threshold {threshold:.4g}", policy))
    for scorer in with_staged(scorers):
        for tokens in within:
            for keep in KEEPS:
                policy = replace(best_of(n, scorer), checkpoints=(Checkpoint(tokens, keep),))
                found.append(Strategy(PRUNED[scorer], f"{keep:.0%} at {tokens}", policy))
    default = replace(Policy(), n_max=n, annealing=CONSTANT)
    recorded = all(each.tokens in within or each.tokens >= max_tokens for each in default.checkpoints)
    if recorded and default.scorer in scorers:
        found.append(Strategy(Family.DEFAULT, "", default))
    return tuple(found)


def with_staged(scorers: Sequence[ScorerName]) -> tuple[ScorerName, ...]:
    """Return the scorers, and `staged` after them if both its stages are there."""
    return (*scorers, ScorerName.STAGED) if set(STAGES) <= set(scorers) else tuple(scorers)


def best_of(n: int, scorer: ScorerName = ScorerName.SELF_EVALUATION) -> Policy:
    """Return full best-of-n: that many, each generated to its end."""
    return Policy(mode=Mode.BEST_OF_N, n_max=n, annealing=CONSTANT, checkpoints=(), scorer=scorer)
