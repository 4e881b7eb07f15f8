"""A policy for a target: of a grid of policies the one that reaches it, replayed on recorded candidates. Pure.

The best of many policies on some prompts looks better there than it is. So the prompts are split in two by a hash: one
half chooses, thresholds included, and the other, which had no part in it, tells what is to be expected.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean
from typing import Final

from adaptive.evaluation.shared_replay import Order, SharedReplay
from adaptive.evaluation.statistics import Bootstrap, Estimate, quantile
from adaptive.evaluation.strategies import KEEPS, best_of, sizes
from adaptive.evaluation.study import Prompt, orders, replayable
from adaptive.policy import Checkpoint, Mode, Policy, ScorerName

LEAST_PROMPTS: Final = 20
"""Fewer could be split, but neither half would say anything."""
_QUANTILES: Final = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
_MOST_CHECKPOINTS: Final = 2  # of one policy
_ROUNDING: Final = 1e-9


class TargetError(ValueError):
    """No policy can be sought. The message says why, and what to do."""


class Aim(StrEnum):
    """What is asked for."""

    GAIN = "gain"
    """A share of what full best-of-n gains over one sample, at the least cost."""
    SAMPLES = "samples"
    """The best quality with at most so many samples per prompt, on average."""
    TOKENS = "tokens"
    """The best quality with at most so many tokens per prompt, on average, those of scoring included."""


class Measure(StrEnum):
    """What counts as quality."""

    PASSED = "passed"
    REWARD = "reward"


@dataclass(frozen=True, slots=True)
class Target:
    """aim, amount: see `Aim`; a share is above 0, up to 1, a number of samples or tokens at least 1."""

    aim: Aim
    amount: float

    def __post_init__(self) -> None:
        if self.aim is Aim.GAIN and not 0 < self.amount <= 1:
            raise TargetError(f"gain is {self.amount:g}; give a share above 0, up to 1")
        if self.aim is not Aim.GAIN and not 1 <= self.amount < math.inf:
            raise TargetError(f"{self.aim.value} is {self.amount:g}; give at least 1")


@dataclass(frozen=True, slots=True)
class Search:
    """How a policy is sought.

    n: recorded candidates per prompt; no policy draws more. checkpoints: where they were scored, in tokens. max_tokens:
    of a reply. scorer: of every policy. prefill_weight: see `study.Design`. choosing_orders: orders in which the
    candidates might have been drawn, for all policies; orders: about how many for the one that was chosen. resamples:
    of the bootstrap.
    """

    n: int
    checkpoints: tuple[int, ...]
    max_tokens: int
    scorer: ScorerName = ScorerName.SELF_EVALUATION
    measure: Measure = Measure.REWARD
    prefill_weight: float = 1.0
    choosing_orders: int = 8
    orders: int = 64
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Expected:
    """What a policy comes to per prompt.

    passed, reward: of the reply, 0 to 1. drawn: samples. tokens: generated, and computed for scores at their weight.
    more: of the measure, over one sample on the same prompts. share: `more` as a share of what full best-of-n has more;
    NaN where that has none.
    """

    passed: Estimate
    reward: Estimate
    drawn: Estimate
    tokens: Estimate
    more: Estimate
    share: Estimate


@dataclass(frozen=True, slots=True)
class Proposal:
    """The policy that is proposed, with what to expect of it.

    problem: why it should not be used, None if there is no reason: best-of-n gains nothing, or no policy keeps to the
    budget or is worth it; then the policy is the one that comes nearest. tried: policies. chosen_on, told_on: prompts
    of the half that chose and of the half that tells. seen: the policy's figures on the half that chose it, which
    flatter it. expected, one_sample, best_of_n: on the other half, by all orders. full_gain: `more` of best-of-n on all
    prompts, as nothing was chosen there.
    """

    target: Target
    policy: Policy
    problem: str | None
    tried: int
    chosen_on: int
    told_on: int
    seen: Expected
    expected: Expected
    one_sample: Expected
    best_of_n: Expected
    full_gain: Estimate


def propose(prompts: Sequence[Prompt], target: Target, search: Search) -> Proposal:
    """Return the policy for a target. Raises `TargetError` where none can be sought.

    The same prompts, whatever their order, give the same proposal.
    """
    _check(prompts, search)
    choosing, telling = halves(prompts, search.seed)
    tried = grid(search, thresholds_from(choosing, search.scorer))
    full = best_of(search.n, search.scorer)
    # Rotations at even distances, so that no candidate is first more often than another.
    rotations = orders(search.n, search.n, search.seed)
    few = rotations[:: max(1, search.n // search.choosing_orders)]
    chooser = _Half(choosing, search, few)
    figures = [chooser.figures(policy) for policy in tried]
    place, missed = _chosen(figures, figures[tried.index(full)], chooser, target)
    policy = tried[place]
    teller = _Half(telling, search, orders(search.n, search.orders, search.seed))
    full_gain = _gain_on_all(chooser, teller, full, search)
    return Proposal(
        target=target,
        policy=policy,
        problem=_nothing_gained(full_gain, search, len(prompts)) or missed,
        tried=len(tried),
        chosen_on=len(choosing),
        told_on=len(telling),
        seen=chooser.expected(figures[place], full),
        expected=teller.expected(teller.figures(policy), full),
        one_sample=teller.expected(teller.one, full),
        best_of_n=teller.expected(teller.figures(full), full),
        full_gain=full_gain,
    )


def halves(prompts: Sequence[Prompt], seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Return the prompts that choose and those that tell, by a hash of the prompt: no prompt is in both."""

    def digest(prompt: Prompt) -> str:
        return hashlib.blake2b(f"{seed}:{prompt.candidates[0].prompt}".encode(), digest_size=16).hexdigest()

    ordered = sorted(prompts, key=lambda prompt: (digest(prompt), prompt.task))
    last = digest(ordered[(len(ordered) - 1) // 2])
    choosing = [prompt for prompt in ordered if digest(prompt) <= last]
    return choosing, ordered[len(choosing) :]


def thresholds_from(prompts: Sequence[Prompt], scorer: ScorerName) -> tuple[float, ...]:
    """Return quantiles of the final scores, ascending, each once. Raises `TargetError` without scores."""
    found = (each.score_at(scorer.value, None) for prompt in prompts for each in prompt.candidates)
    values = sorted(score.value for score in found if score is not None)
    if not values:
        raise TargetError(f"no recorded candidate was scored by {scorer.value}; name another scorer, or record it")
    # Rounded down, so that a score at the quantile reaches it.
    return tuple(sorted({max(0.0, math.floor(quantile(values, share) * 1e6) / 1e6) for share in _QUANTILES}))


def grid(search: Search, thresholds: Sequence[float]) -> tuple[Policy, ...]:
    """Return the policies to try: best-of-n and adaptive, sizes up to n, up to two checkpoints, every threshold."""
    within = [tokens for tokens in search.checkpoints if tokens < search.max_tokens]
    pruned = [
        tuple(Checkpoint(tokens, keep) for tokens in chosen)
        for count in range(1, _MOST_CHECKPOINTS + 1)
        for chosen in itertools.combinations(sorted(within), count)
        for keep in KEEPS
    ]
    found = []
    for size in sizes(search.n)[1:]:
        whole = best_of(size, search.scorer)
        for checkpoints in [(), *pruned]:
            found.append(replace(whole, checkpoints=checkpoints))
            for threshold in thresholds:
                found.append(replace(found[-1], mode=Mode.ADAPTIVE, threshold=threshold))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Figures:
    """A policy's figures, one per prompt: as in `Expected`. quality: passed or reward, whichever is the measure."""

    passed: list[float]
    reward: list[float]
    drawn: list[float]
    tokens: list[float]
    quality: list[float]

    @property
    def cost(self) -> tuple[float, float]:
        """Tokens, then samples."""
        return fmean(self.tokens), fmean(self.drawn)


class _Half:
    """Half of the prompts. tried: orders, for all policies."""

    def __init__(self, prompts: Sequence[Prompt], search: Search, tried: Sequence[Order]) -> None:
        self._search = search
        self._orders = tried
        self._subjects = [_Subject(prompt, search) for prompt in prompts]
        self._bootstrap = Bootstrap(len(prompts), resamples=search.resamples, seed=search.seed)
        self.one = self._gathered([subject.one_sample() for subject in self._subjects])

    def figures(self, policy: Policy) -> _Figures:
        """Return what the policy comes to on each prompt."""
        return self._gathered([subject.mean(policy, self._orders) for subject in self._subjects])

    def more(self, figures: _Figures) -> list[float]:
        """Return what it has more of the measure than one sample, prompt by prompt."""
        return [quality - one for quality, one in zip(figures.quality, self.one.quality, strict=True)]

    def expected(self, figures: _Figures, full: Policy) -> Expected:
        """Return means with intervals. full: best-of-n by the same scorer."""
        mean, more = self._bootstrap.mean, self.more(figures)
        return Expected(
            passed=mean(figures.passed),
            reward=mean(figures.reward),
            drawn=mean(figures.drawn),
            tokens=mean(figures.tokens),
            more=mean(more),
            share=self._bootstrap.ratio(more, self.more(self.figures(full))),
        )

    def _gathered(self, rows: Sequence[tuple[float, ...]]) -> _Figures:
        passed, reward, drawn, generated, scoring = (list(column) for column in zip(*rows, strict=True))
        tokens = [each + self._search.prefill_weight * of for each, of in zip(generated, scoring, strict=True)]
        quality = passed if self._search.measure is Measure.PASSED else reward
        return _Figures(passed, reward, drawn, tokens, quality)


class _Subject:
    """A prompt, ready to be replayed."""

    def __init__(self, prompt: Prompt, search: Search) -> None:
        # In the order of their seeds' index, so that it does not matter in which they were recorded.
        pairs = sorted(zip(prompt.candidates, prompt.verdicts, strict=True), key=lambda pair: pair[0].index)
        pairs = pairs[: search.n]
        self._passed = [float(verdict.passed) for _, verdict in pairs]
        self._reward = [verdict.reward for _, verdict in pairs]
        self._tokens = [float(recording.tokens) for recording, _ in pairs]
        candidates = [replayable(recording, search.scorer.value, search.checkpoints) for recording, _ in pairs]
        self._shared = SharedReplay(candidates)

    def one_sample(self) -> tuple[float, ...]:
        """Return passed, reward, samples, generated tokens and those of scoring, of a candidate drawn at random."""
        return fmean(self._passed), fmean(self._reward), 1.0, fmean(self._tokens), 0.0

    def mean(self, policy: Policy, tried: Sequence[Order]) -> tuple[float, ...]:
        """Return the same of a policy, the mean over orders."""
        rows = []
        for order in tried:
            replayed = self._shared.replay(policy, order)
            chosen = order[replayed.returned]
            tokens = replayed.generated_tokens, replayed.scoring_tokens
            rows.append((self._passed[chosen], self._reward[chosen], replayed.drawn, *tokens))
        return tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))


def _check(prompts: Sequence[Prompt], search: Search) -> None:
    if len({prompt.candidates[0].prompt for prompt in prompts if prompt.candidates}) < LEAST_PROMPTS:
        raise TargetError(
            f"{len(prompts)} prompts are too few to choose by one half and to tell by the other; record at least "
            f"{LEAST_PROMPTS} different ones"
        )
    if search.n < 2 or any(len(prompt.candidates) < search.n for prompt in prompts):  # noqa: PLR2004 -- one to choose
        raise TargetError(f"a policy for up to {search.n} candidates needs as many of each prompt, and at least 2")


def _chosen(found: Sequence[_Figures], full: _Figures, half: _Half, target: Target) -> tuple[int, str | None]:
    """Return the place of the policy that is chosen, and why it misses the target, None if it does not."""
    quality = [fmean(each.quality) for each in found]
    best = min(range(len(found)), key=lambda place: (-quality[place], *found[place].cost, place))
    if target.aim is Aim.GAIN:
        gain = fmean(half.more(full))
        if gain <= _ROUNDING:
            return best, (
                f"Full best-of-n gains nothing ({100 * gain:+.1f} points) on the {len(full.quality)} prompts that "
                "choose, and there is no share of nothing."
            )
        wanted = fmean(half.one.quality) + target.amount * gain
        # Full best-of-n is among them, so there is always one.
        reached = [place for place, each in enumerate(quality) if each >= wanted - _ROUNDING]
        return min(reached, key=lambda place: (*found[place].cost, place)), None
    spent = [fmean(each.drawn if target.aim is Aim.SAMPLES else each.tokens) for each in found]
    within = [place for place, each in enumerate(spent) if each <= target.amount + _ROUNDING]
    if not within:
        least = min(range(len(found)), key=lambda place: (spent[place], -quality[place], place))
        return least, (
            f"No policy of the {len(found)} that were tried makes do with {target.amount:g} {target.aim.value} per "
            f"prompt; the least is {spent[least]:.4g}."
        )
    chosen = min(within, key=lambda place: (-quality[place], *found[place].cost, place))
    gained = quality[chosen] - fmean(half.one.quality)
    if gained > _ROUNDING:
        return chosen, None
    return chosen, (
        f"No policy within {target.amount:g} {target.aim.value} per prompt is better than one sample: the best has "
        f"{100 * gained:+.1f} points."
    )


def _gain_on_all(chooser: _Half, teller: _Half, full: Policy, search: Search) -> Estimate:
    more = [gained for half in (chooser, teller) for gained in half.more(half.figures(full))]
    return Bootstrap(len(more), resamples=search.resamples, seed=search.seed).mean(more)


def _nothing_gained(gain: Estimate, search: Search, prompts: int) -> str | None:
    """Return why there is nothing to reach for: what best-of-n gains cannot be told from nothing."""
    if gain.low is not None and gain.low > 0:
        return None
    interval = "" if gain.low is None or gain.high is None else f" [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    return (
        f"Full best of {search.n} by {search.scorer.value} gains {100 * gain.value:+.1f}{interval} points of "
        f"{search.measure.value} over one sample on {prompts} prompts, which cannot be told from nothing. Use a scorer "
        "that ranks better, or record more prompts."
    )
