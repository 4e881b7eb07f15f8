"""Scorers: from what a candidate has generated to one number, 0 to 1, larger is better.

Self-evaluation asks the model in a call of its own; one call serves all candidates that are due. The others are free:
they read log-probabilities that came with the candidate's own tokens. Only self-evaluation and the read-out estimate
P(win or tie), and are to be believed as probabilities only with a calibration map (`adaptive.calibration`); the two
baselines are monotone in a confidence, so a threshold on them means something else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from adaptive.calibration import CalibrationMap, LogProbabilitiesMissing
from adaptive.candidate import Partial
from adaptive.engine import Engine, EngineBusy, EngineError, TokenIds
from adaptive.policy import ScorerName
from adaptive.self_evaluation import SelfEvaluation, self_evaluate

# vLLM reports minus infinity for a token that a sampler masked; one such token must not decide a whole window.
_LEAST_LOGPROB: Final = -100.0
MIN_LABEL_MASS: Final = 0.01
"""Below this on every response of a call the model is not answering the question."""


@dataclass(frozen=True, slots=True)
class Score:
    """A judgement of one candidate: see `ScoreAt`.

    computed_tokens: prompt tokens that the engine computed for it. raw: P(win or tie) before calibration, 0 to 1; None
    of a scorer that estimates another thing. Without a calibration map it is the value.
    """

    value: float
    label_mass: float | None = None
    computed_tokens: int = 0
    raw: float | None = None


class ScoringFailed(Exception):
    """No score could be had; the message says why. engine_busy: because the engine refuses more work."""

    def __init__(self, message: str, *, engine_busy: bool = False) -> None:
        super().__init__(message)
        self.engine_busy = engine_busy


class Scorer(Protocol):
    """A source of scores. `top_logprobs` and `readout_ids`: what it needs of `Sampling`."""

    @property
    def name(self) -> str:
        """Its name in results, traces and metrics."""
        ...

    @property
    def top_logprobs(self) -> int | None:
        """How many alternatives per generated token it reads."""
        ...

    @property
    def readout_ids(self) -> TokenIds:
        """The label tokens whose log-probabilities it reads at every generated token."""
        ...

    async def score(self, partials: Sequence[Partial]) -> tuple[Score, ...]:
        """Return one score per partial response, in order. Raises `ScoringFailed`."""
        ...


@dataclass(frozen=True, slots=True)
class Labels:
    """The token ids that speak for and against a response; several where a label has several spellings."""

    win_or_tie: TokenIds
    loss: TokenIds

    @property
    def ids(self) -> TokenIds:
        """All of them, those of `win_or_tie` first."""
        return self.win_or_tie + self.loss

    def evaluate(self, logprobs: Sequence[float]) -> SelfEvaluation:
        """Return the self-evaluation from the log-probabilities of `ids`, in that order. Raises `ScoringFailed`."""
        if len(logprobs) != len(self.ids):
            raise ScoringFailed(f"{len(logprobs)} log-probabilities for {len(self.ids)} label tokens")
        split = len(self.win_or_tie)
        try:
            return self_evaluate(_any_of(logprobs[:split]), _any_of(logprobs[split:]))
        except ValueError as error:
            raise ScoringFailed(str(error)) from error


@dataclass(frozen=True, slots=True)
class SelfEvaluationScorer:
    """P(win or tie) by asking the model: prompt + tokens so far + question, and one reading of the label tokens.

    prompt: the conversation as the candidates saw it, the user's constitution in it, so their values are what is
        judged by. question: the tokens that end the response's turn, ask, and open the answer.
    end_ids: tokens that end a turn; taken off a finished response, as `question` has its own.
    min_label_mass: below this on every response of a call the model is not answering the question, and that is a
        failure: its scores would mean nothing.
    calibration: from the raw score to the value; None leaves it as it is.
    Source: arXiv 2410.02725, sections on self-evaluation; reading the labels from one call, `reference` in README.md.
    """

    engine: Engine
    prompt: TokenIds
    question: TokenIds
    labels: Labels
    end_ids: frozenset[int] = frozenset()
    min_label_mass: float = MIN_LABEL_MASS
    calibration: CalibrationMap | None = None
    name: str = ScorerName.SELF_EVALUATION.value
    readout_ids: TokenIds = ()

    @property
    def top_logprobs(self) -> int | None:
        """0 where the calibration reads the response's own log-probabilities."""
        return logprobs_for(self.calibration)

    async def score(self, partials: Sequence[Partial]) -> tuple[Score, ...]:
        """Return P(win or tie) per response, from one call of the engine. Raises `ScoringFailed`."""
        sequences = [self.prompt + self._without_end(partial.token_ids) + self.question for partial in partials]
        try:
            readings = await self.engine.score(sequences, self.labels.ids)
        except EngineBusy as error:
            raise ScoringFailed(str(error), engine_busy=True) from error
        except EngineError as error:
            raise ScoringFailed(str(error)) from error
        if len(readings) != len(sequences):
            raise ScoringFailed(f"{len(readings)} readings for {len(sequences)} responses")
        scores = []
        for partial, reading in zip(partials, readings, strict=True):
            evaluation = self.labels.evaluate(reading.logprobs)
            scores.append(_score(evaluation, partial, self.calibration, reading.computed_tokens))
        mass = max((score.label_mass or 0.0 for score in scores), default=1.0)
        if mass < self.min_label_mass:
            raise ScoringFailed(f"the model does not answer the question: label mass at most {mass:.2g}")
        return tuple(scores)

    def _without_end(self, token_ids: TokenIds) -> TokenIds:
        end = len(token_ids)
        while end and token_ids[end - 1] in self.end_ids:
            end -= 1
        return token_ids[:end]


@dataclass(frozen=True, slots=True)
class ReadOutScorer:
    """P(win or tie) read off generation itself: the labels' log-probabilities at the latest token. No call at all.

    For checkpoints that were trained to carry it there (after ZIP-RC, arXiv 2512.01457). It comes from the logits that
    the token was drawn from, so it has seen every token but that one. Its label mass is tiny by training, and no sign
    of anything. calibration: from the raw score to the value; None leaves it as it is.
    """

    labels: Labels
    calibration: CalibrationMap | None = None
    name: str = ScorerName.READ_OUT.value

    @property
    def top_logprobs(self) -> int | None:
        """0 where the calibration reads the response's own log-probabilities."""
        return logprobs_for(self.calibration)

    @property
    def readout_ids(self) -> TokenIds:
        """The label tokens."""
        return self.labels.ids

    async def score(self, partials: Sequence[Partial]) -> tuple[Score, ...]:
        """Return P(win or tie) per response. Raises `ScoringFailed` for one without a read-out."""
        scores = []
        for partial in partials:
            if not partial.readouts:
                raise ScoringFailed("the candidate's stream carries no read-out of the label tokens")
            scores.append(_score(self.labels.evaluate(partial.readouts[-1]), partial, self.calibration))
        return tuple(scores)


@dataclass(frozen=True, slots=True)
class StagedScorer:
    """P(win or tie) by one scorer while a candidate is generated, by another when it has ended.

    early: a read-out, which costs nothing, so pruning costs nothing. late: self-evaluation, which sees all of the
    response and decides when to stop and what to return. Both are to be calibrated, since a stream is committed to at
    a partial score.
    """

    early: Scorer
    late: Scorer
    name: str = ScorerName.STAGED.value

    @property
    def top_logprobs(self) -> int | None:
        """The most that either reads."""
        read = (self.early.top_logprobs, self.late.top_logprobs)
        return max((each for each in read if each is not None), default=None)

    @property
    def readout_ids(self) -> TokenIds:
        """Those of the early one; the late one has a call of its own."""
        return self.early.readout_ids

    async def score(self, partials: Sequence[Partial]) -> tuple[Score, ...]:
        """Return one score per response. Who has nothing to judge is not asked. Raises `ScoringFailed`."""
        found: dict[int, Score] = {}
        for scorer, ended in ((self.early, False), (self.late, True)):
            places = [place for place, partial in enumerate(partials) if partial.final is ended]
            if places:
                scores = await scorer.score([partials[place] for place in places])
                found.update(zip(places, scores, strict=True))
        return tuple(found[place] for place in range(len(partials)))


@dataclass(frozen=True, slots=True)
class MeanLogProbabilityScorer:
    """The geometric mean of the tokens' probabilities, exp(mean log p): how sure the model was of what it wrote."""

    name: str = ScorerName.MEAN_LOG_PROBABILITY.value
    top_logprobs: int | None = 0
    readout_ids: TokenIds = ()

    async def score(self, partials: Sequence[Partial]) -> tuple[Score, ...]:
        """Return the mean per response, 0 for an empty one. Raises `ScoringFailed` without log-probabilities."""
        return tuple(Score(mean_probability(partial)) for partial in partials)


@dataclass(frozen=True, slots=True)
class GroupConfidenceScorer:
    """The lowest group confidence of DeepConf (arXiv 2508.15260), mapped to 0..1.

    A token's confidence is minus the mean log-probability of its likeliest alternatives: large where the model saw one
    way on. A group is a sliding window of tokens, and a response is as good as its least confident group.
    window: tokens per group; the paper's 1024 to 2048 suit long reasoning, not chat. top_logprobs: at least 1.
    """

    window: int = 128
    top_logprobs: int | None = 10
    name: str = ScorerName.GROUP_CONFIDENCE.value
    readout_ids: TokenIds = ()

    async def score(self, partials: Sequence[Partial]) -> tuple[Score, ...]:
        """Return c / (1 + c) for the lowest group confidence c. Raises `ScoringFailed` without alternatives."""
        return tuple(Score(lowest / (1.0 + lowest)) for lowest in (self._lowest(partial) for partial in partials))

    def _lowest(self, partial: Partial) -> float:
        if not partial.token_ids:
            return 0.0
        return lowest_group_confidence(partial.top_logprobs, self.window)


def logprobs_for(calibration: CalibrationMap | None) -> int | None:
    """Return the `top_logprobs` that a calibration needs: 0 where it reads the tokens' own, else None."""
    return 0 if calibration is not None and calibration.reads_log_probabilities else None


def mean_probability(partial: Partial) -> float:
    """Return exp(mean log p) over a response's tokens, 0 for an empty one. Raises `ScoringFailed` without any."""
    if not partial.token_ids:
        return 0.0
    if not partial.logprobs:
        raise ScoringFailed("the candidate's stream carries no log-probabilities")
    return min(1.0, math.exp(math.fsum(partial.logprobs) / len(partial.logprobs)))


def lowest_group_confidence(top_logprobs: Sequence[Sequence[float]], window: int) -> float:
    """Return the least mean token confidence over all windows, 0 or more; a shorter response is one window.

    Shape of `top_logprobs`: (tokens, alternatives). Raises `ScoringFailed` if any token lacks alternatives.
    """
    if not top_logprobs or not all(top_logprobs):
        raise ScoringFailed("the candidate's stream carries no log-probabilities of alternatives")
    confidence = [-sum(max(each, _LEAST_LOGPROB) for each in top) / len(top) for top in top_logprobs]
    size = min(window, len(confidence))
    group = lowest = math.fsum(confidence[:size])
    for leaving, entering in zip(confidence, confidence[size:], strict=False):
        group += entering - leaving
        lowest = min(lowest, group)
    return max(0.0, lowest / size)


def _score(
    evaluation: SelfEvaluation, partial: Partial, calibration: CalibrationMap | None, computed_tokens: int = 0
) -> Score:
    value = raw = evaluation.p_win_or_tie
    if calibration is not None:
        try:
            value = calibration.apply(evaluation.log_odds, partial)
        except LogProbabilitiesMissing as error:
            raise ScoringFailed(str(error)) from error
    return Score(value, evaluation.label_mass, computed_tokens, raw)


def _any_of(logprobs: Sequence[float]) -> float:
    """Return the log-probability of any one of several tokens: log of the sum of their probabilities."""
    largest = max(logprobs)
    if len(logprobs) == 1 or largest == -math.inf:
        return largest
    return largest + math.log(math.fsum(math.exp(each - largest) for each in logprobs))
