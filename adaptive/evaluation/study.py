"""The study: what each strategy is expected to return and to cost, on candidates that were recorded and judged. Pure.

The expectation is over the order in which the candidates might have been drawn. Orders are random, from a seed, and
come with all their rotations, so that every candidate is first equally often: one sample is then the exact mean of all
candidates, whatever the seed. All strategies are tried on the same orders and resampled with the same prompts.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from adaptive.evaluation.recording import RecordedScore, Recording
from adaptive.evaluation.statistics import Bootstrap, Estimate, quantile
from adaptive.evaluation.strategies import (
    PROBABILITIES,
    SCORERS,
    Family,
    Pick,
    Strategy,
    best_of,
    strategies,
    with_staged,
)
from adaptive.evaluation.verifiers import Verdict
from adaptive.policy import Mode, Policy, ScorerName
from adaptive.replay import ReplayCandidate, ReplayScore, replay

# Of the recorded scores: a model's scores may lie anywhere, and thresholds beside them all would show nothing.
# Most are low: adaptive sampling is meant to draw little more than one.
_THRESHOLD_QUANTILES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 0.95)
_EXHAUSTIVE = 4  # up to this many candidates all orders are tried


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt with its candidates and their verdicts, in the same order."""

    task: str
    candidates: tuple[Recording, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Design:
    """How a study is made.

    scorers: who is studied; all have judged every candidate. thresholds: of adaptive sampling; none: `thresholds_from`
    the recorded scores. prefill_weight: what computing one prompt token for a score costs against generating one, 0 to
    1 (see `savings.estimated`). orders: about how many are tried. resamples: of the bootstrap.
    """

    n: int
    checkpoints: tuple[int, ...]
    max_tokens: int
    scorers: tuple[ScorerName, ...] = SCORERS
    thresholds: tuple[float, ...] = ()
    prefill_weight: float = 1.0
    orders: int = 64
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A strategy's figures per prompt, as means over prompts.

    passed: share of returned replies that pass. reward: their mean reward. drawn: candidates. pruned: share of them
    that was stopped at a checkpoint. generated, scoring: tokens. scoring_s: seconds that its scores took, one after the
    other. total: generated + prefill_weight * scoring. more: what is passed, or rewarded, more than with one sample;
    its interval is that of the difference on the same prompts. gain: `more` as a share of what the oracle gains with
    all candidates.

    Against full best-of-n by the same scorer (the measures of arXiv 2410.02725; None where no score chooses):
    share: `more` as a share of what that gains; None also where this cannot be told from nothing, as its interval
    includes 0. kept: passed, or reward, as a share of what that has.
    """

    strategy: Strategy
    passed: Estimate
    reward: Estimate
    drawn: Estimate
    pruned: Estimate
    generated: Estimate
    scoring: Estimate
    scoring_s: Estimate
    total: Estimate
    more_passed: Estimate
    more_reward: Estimate
    gain_passed: Estimate
    gain_reward: Estimate
    share_passed: Estimate | None
    share_reward: Estimate | None
    kept_passed: Estimate | None
    kept_reward: Estimate | None


@dataclass(frozen=True, slots=True)
class PairAccuracy:
    """How often a scorer ranks the better one of two candidates of one prompt higher; ties count half.

    checkpoint: tokens by which they were judged, None for whole replies. better: `passed` or `reward`. prompts: with
    at least one such pair.
    """

    scorer: str
    checkpoint: int | None
    better: str
    accuracy: Estimate
    pairs: int
    prompts: int


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """The scores of one scorer at a checkpoint, None for whole replies: how many, where, and what they cost.

    low, median, high: of the score, at 5, 50 and 95 % of the candidates. label_mass: mean, NaN for scorers without
    labels. below_limit: share of the candidates whose label mass is below what the proxy takes for an answer, NaN for
    all but self-evaluation. computed_tokens: prompt tokens, mean. took_s: seconds, mean.
    """

    scorer: str
    checkpoint: int | None
    scores: int
    low: float
    median: float
    high: float
    label_mass: float
    below_limit: float
    computed_tokens: float
    took_s: float


@dataclass(frozen=True, slots=True)
class Study:
    """What came out. prompts: how many stand behind it. thresholds: of adaptive sampling by each scorer."""

    design: Design
    prompts: int
    thresholds: Mapping[ScorerName, tuple[float, ...]]
    rows: tuple[Row, ...]
    pairs: tuple[PairAccuracy, ...]
    scores: tuple[ScoreSummary, ...]


@dataclass(frozen=True, slots=True)
class _Figures:
    """A strategy on one prompt, expected."""

    passed: float
    reward: float
    drawn: float
    pruned: float
    generated: float
    scoring: float
    scoring_s: float


def study(prompts: Sequence[Prompt], design: Design, *, min_label_mass: float) -> Study:
    """Return the study. Raises `ValueError` without prompts, or for one with fewer than n candidates."""
    if not prompts or any(len(prompt.candidates) < design.n for prompt in prompts):
        raise ValueError(f"a study needs prompts with {design.n} candidates each")
    bootstrap = Bootstrap(len(prompts), resamples=design.resamples, seed=design.seed)
    judges = [scorer for scorer in PROBABILITIES if scorer in design.scorers]
    thresholds = {scorer: design.thresholds or thresholds_from(prompts, scorer) for scorer in judges}
    tried = strategies(design.n, design.checkpoints, thresholds, design.max_tokens, design.scorers)
    subjects = [_Subject(prompt, design) for prompt in prompts]
    figures = {strategy: [subject.expected(strategy) for subject in subjects] for strategy in tried}
    return Study(
        design=design,
        prompts=len(prompts),
        thresholds=thresholds,
        rows=tuple(_rows(figures, design, bootstrap)),
        pairs=tuple(_pair_accuracies(prompts, design, bootstrap)),
        scores=tuple(_score_summaries(prompts, design, min_label_mass)),
    )


def thresholds_from(prompts: Sequence[Prompt], scorer: ScorerName = ScorerName.SELF_EVALUATION) -> tuple[float, ...]:
    """Return thresholds that mean something to this model: quantiles of its final scores, and the default policy's."""
    found = [each.score_at(scorer, None) for prompt in prompts for each in prompt.candidates]
    values = sorted(score.value for score in found if score is not None)
    # Rounded down, so that a score at the quantile reaches it.
    own = {math.floor(quantile(values, share) * 1e4) / 1e4 for share in _THRESHOLD_QUANTILES} if values else set()
    return tuple(sorted(own | {Policy().threshold}))


def orders(count: int, wanted: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Return orders of that many things: all there are of few, else random ones with all their rotations.

    wanted: about how many; at least one with its rotations.
    """
    if count <= _EXHAUSTIVE:
        return tuple(itertools.permutations(range(count)))
    source = random.Random(seed)  # noqa: S311 -- an experiment's design, no secret
    found = []
    for _ in range(max(1, wanted // count)):
        order = source.sample(range(count), count)
        found += [tuple(order[start:] + order[:start]) for start in range(count)]
    return tuple(found)


class _Subject:
    """A prompt, ready to be replayed."""

    def __init__(self, prompt: Prompt, design: Design) -> None:
        # In the order of their seeds' index, so that it does not matter in which they were recorded.
        pairs = sorted(zip(prompt.candidates, prompt.verdicts, strict=True), key=lambda pair: pair[0].index)
        pairs = pairs[: design.n]
        self._passed = [float(verdict.passed) for _, verdict in pairs]
        self._reward = [verdict.reward for _, verdict in pairs]
        self._n = design.n
        self._orders = orders(design.n, design.orders, design.seed)
        self._tokens = [recording.tokens for recording, _ in pairs]
        self._replayable = {
            scorer: [replayable(recording, scorer, design.checkpoints) for recording, _ in pairs]
            for scorer in with_staged(design.scorers)
        }
        self._tied = {scorer: _tied(candidates) for scorer, candidates in self._replayable.items()}

    def expected(self, strategy: Strategy) -> _Figures:
        """Return the mean over all orders."""
        policy = strategy.policy
        together = strategy.pick is Pick.SCORE and policy.mode is Mode.BEST_OF_N and policy.n_max == self._n
        # All candidates drawn together are compared with each other: in which order matters to equal ones only.
        tried = [
            self._tried(strategy, order)
            for order in (self._orders[:1] if together and not self._tied[policy.scorer] else self._orders)
        ]
        return _Figures(
            *(fmean(values) for values in zip(*tried, strict=True)),
        )

    def _tried(self, strategy: Strategy, order: Sequence[int]) -> tuple[float, ...]:
        if strategy.pick is Pick.SCORE:
            candidates = self._replayable[strategy.policy.scorer]
            replayed = replay(strategy.policy, [candidates[place] for place in order])
            chosen = order[replayed.returned]
            return (
                self._passed[chosen],
                self._reward[chosen],
                replayed.drawn,
                len(replayed.pruned) / replayed.drawn,
                replayed.generated_tokens,
                replayed.scoring_tokens,
                replayed.scoring_s,
            )
        drawn = order[: strategy.policy.n_max]
        pick: Callable[[Sequence[float]], float] = max if strategy.pick is Pick.ORACLE else fmean
        quality = pick([self._passed[place] for place in drawn]), pick([self._reward[place] for place in drawn])
        return *quality, len(drawn), 0.0, sum(self._tokens[place] for place in drawn), 0.0, 0.0


def replayable(recording: Recording, scorer: str, checkpoints: Sequence[int]) -> ReplayCandidate:
    """Return a recording as a replay takes it, with the scores of that scorer."""
    at = {tokens: _cost(recording.score_at(scorer, tokens)) for tokens in checkpoints if tokens < recording.tokens}
    return ReplayCandidate(recording.tokens, _cost(recording.score_at(scorer, None)), at)


def _tied(candidates: Sequence[ReplayCandidate]) -> bool:
    """Return True where two candidates may be told apart by their order alone."""
    scores = [{score.value for score in (each.final, *each.at.values())} for each in candidates]
    return None in set().union(*scores) or len(set().union(*scores)) < sum(map(len, scores))


def _cost(score: RecordedScore | None) -> ReplayScore:
    if score is None:
        return ReplayScore(None, 0)
    # As `spend.tally` has it: what was computed, and the label token that was read; a free score has neither.
    return ReplayScore(score.value, score.computed_tokens + bool(score.computed_tokens), score.took_s)


@dataclass(frozen=True, slots=True)
class _Quality:
    """One value per prompt."""

    passed: list[float]
    reward: list[float]

    @classmethod
    def of(cls, found: Sequence[_Figures]) -> _Quality:
        return cls([each.passed for each in found], [each.reward for each in found])

    def over(self, base: _Quality) -> _Quality:
        """Return what this has more."""
        return _Quality(
            [each - other for each, other in zip(self.passed, base.passed, strict=True)],
            [each - other for each, other in zip(self.reward, base.reward, strict=True)],
        )


def _rows(figures: Mapping[Strategy, Sequence[_Figures]], design: Design, bootstrap: Bootstrap) -> list[Row]:
    qualities = {strategy: _Quality.of(found) for strategy, found in figures.items()}
    one = next(quality for strategy, quality in qualities.items() if strategy.family is Family.ONE_SAMPLE)
    oracles = [quality for strategy, quality in qualities.items() if strategy.family is Family.ORACLE]
    most = (oracles[-1] if oracles else one).over(one)
    full = {
        strategy.policy.scorer: quality
        for strategy, quality in qualities.items()
        if strategy.pick is Pick.SCORE and strategy.policy == best_of(design.n, strategy.policy.scorer)
    }
    if ScorerName.SELF_EVALUATION in full:
        full[ScorerName.STAGED] = full[ScorerName.SELF_EVALUATION]
    rows = []
    for strategy, found in figures.items():
        quality = qualities[strategy]
        more = quality.over(one)
        best = full.get(strategy.policy.scorer) if strategy.pick is Pick.SCORE else None
        gained = None if best is None else best.over(one)
        rows.append(
            Row(
                strategy=strategy,
                passed=bootstrap.mean(quality.passed),
                reward=bootstrap.mean(quality.reward),
                drawn=bootstrap.mean([each.drawn for each in found]),
                pruned=bootstrap.mean([each.pruned for each in found]),
                generated=bootstrap.mean([each.generated for each in found]),
                scoring=bootstrap.mean([each.scoring for each in found]),
                scoring_s=bootstrap.mean([each.scoring_s for each in found]),
                total=bootstrap.mean([each.generated + design.prefill_weight * each.scoring for each in found]),
                more_passed=bootstrap.mean(more.passed),
                more_reward=bootstrap.mean(more.reward),
                gain_passed=bootstrap.ratio(more.passed, most.passed),
                gain_reward=bootstrap.ratio(more.reward, most.reward),
                share_passed=None if gained is None else _share(more.passed, gained.passed, bootstrap),
                share_reward=None if gained is None else _share(more.reward, gained.reward, bootstrap),
                kept_passed=None if best is None else bootstrap.ratio(quality.passed, best.passed),
                kept_reward=None if best is None else bootstrap.ratio(quality.reward, best.reward),
            )
        )
    return rows


def _share(more: Sequence[float], gained: Sequence[float], bootstrap: Bootstrap) -> Estimate | None:
    """Return `more` as a share of what was gained, None where that cannot be told from nothing."""
    least = bootstrap.mean(gained).low
    return None if least is None or least <= 0 else bootstrap.ratio(more, gained)


def _pair_accuracies(prompts: Sequence[Prompt], design: Design, bootstrap: Bootstrap) -> list[PairAccuracy]:
    places: list[int | None] = [tokens for tokens in design.checkpoints if tokens < design.max_tokens]
    worth: dict[str, Callable[[Verdict], float]] = {
        "passed": lambda verdict: float(verdict.passed),
        "reward": lambda verdict: verdict.reward,
    }
    found = []
    for scorer in design.scorers:
        for place in [*places, None]:
            for better, value in worth.items():
                counted = [_pairs(prompt, scorer, place, value) for prompt in prompts]
                won, pairs = [each[0] for each in counted], [float(each[1]) for each in counted]
                accuracy = bootstrap.ratio(won, pairs)
                row = PairAccuracy(
                    scorer.value, place, better, accuracy, int(sum(pairs)), sum(each > 0 for each in pairs)
                )
                found.append(row)
    return found


def _pairs(prompt: Prompt, scorer: str, tokens: int | None, value: Callable[[Verdict], float]) -> tuple[float, int]:
    """Return how many pairs of unequal worth are ranked rightly, ties half, and how many there are."""
    judged = [
        (found.value, value(verdict))
        for recording, verdict in zip(prompt.candidates, prompt.verdicts, strict=True)
        if (found := recording.score_at(scorer, tokens)) is not None
    ]
    won, pairs = 0.0, 0
    for (score, worth), (other_score, other_worth) in itertools.combinations(judged, 2):
        if worth == other_worth:
            continue
        pairs += 1
        if score == other_score:
            won += 0.5
        elif (score > other_score) == (worth > other_worth):
            won += 1.0
    return won, pairs


def _score_summaries(prompts: Sequence[Prompt], design: Design, min_label_mass: float) -> list[ScoreSummary]:
    places: list[int | None] = [tokens for tokens in design.checkpoints if tokens < design.max_tokens]
    recordings = [recording for prompt in prompts for recording in prompt.candidates]
    summaries = []
    for scorer, place in itertools.product(design.scorers, [*places, None]):
        reached = [each for each in recordings if place is None or each.tokens > place]
        scores = [score for each in reached if (score := each.score_at(scorer, place)) is not None]
        if scores:
            summaries.append(_score_summary(scorer, place, scores, min_label_mass))
    return summaries


def _score_summary(
    scorer: ScorerName, place: int | None, scores: Sequence[RecordedScore], min_label_mass: float
) -> ScoreSummary:
    values = sorted(score.value for score in scores)
    masses = [score.label_mass for score in scores if score.label_mass is not None]
    # The labels of a read-out are meant to have next to no mass.
    asked = masses if scorer is ScorerName.SELF_EVALUATION else []
    return ScoreSummary(
        scorer=scorer.value,
        checkpoint=place,
        scores=len(scores),
        low=quantile(values, 0.05),
        median=quantile(values, 0.5),
        high=quantile(values, 0.95),
        label_mass=fmean(masses) if masses else math.nan,
        below_limit=fmean(mass < min_label_mass for mass in asked) if asked else math.nan,
        computed_tokens=fmean(score.computed_tokens for score in scores),
        took_s=fmean(score.took_s for score in scores),
    )
