"""From a raw score to a probability that can be taken at its word: the calibration map, as it is applied at serve time.

A score at token 64 is not a score at the end, so the map has buckets by length. In each, features are weighted and
summed, and a piecewise-linear curve takes the sum to a probability:

    x = weights . features + bias        p = the curve through the knots (x, p), level beyond both ends

`adaptive.training.fit` makes maps. Pure Python: it runs in the process that answers requests.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from operator import itemgetter, mul
from typing import Any, Final

from adaptive.candidate import Partial

LARGEST_LOG_ODDS: Final = 30.0
"""Log-odds are cut to this on either side: a label can be impossible, and one such reading must not be infinite."""
LEAST_LOG_PROBABILITY: Final = -100.0
"""Log-probabilities of tokens are cut to this: vLLM reports -9999 for a token that a sampler masked."""

# Far beyond any sensible weight; sums and differences of such numbers stay finite.
_LARGEST: Final = 1e9
_MAP: Final = ("features", "buckets")
_BUCKET: Final = ("up_to", "final", "weights", "bias", "knots")


class Feature(StrEnum):
    """What a map may read of a score."""

    LOG_ODDS = "log_odds"
    """Log-probability of the win-or-tie label minus that of the loss label."""
    MEAN_LOG_PROBABILITY = "mean_log_probability"
    """Mean log-probability of the response's own tokens, 0 before the first."""
    LEAST_LOG_PROBABILITY = "least_log_probability"
    """That of the least likely of its tokens, 0 before the first."""
    LOG_TOKENS = "log_tokens"
    """log(1 + tokens)."""


class LogProbabilitiesMissing(Exception):
    """A map reads log-probabilities of the response's tokens, and its stream carries none."""


class CalibrationError(ValueError):
    """A value that is no calibration map. field: where it is wrong, as a path. problem: what to do about it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Reading:
    """A raw score, with what else a map may read.

    log_odds: of the two labels; may be infinite. tokens: how many were judged. final: the response had ended. The
    log-probabilities, natural, are those of its own tokens at temperature 1; None where the stream carries none.
    """

    log_odds: float
    tokens: int
    final: bool
    mean_log_probability: float | None = None
    least_log_probability: float | None = None

    @classmethod
    def of(cls, log_odds: float, partial: Partial) -> Reading:
        """Return what there is to read when that response was given those log-odds."""
        mean = least = None
        if not partial.token_ids:
            mean = least = 0.0
        elif partial.logprobs:
            logprobs = [max(each, LEAST_LOG_PROBABILITY) for each in partial.logprobs]
            mean, least = math.fsum(logprobs) / len(logprobs), min(logprobs)
        return cls(log_odds, len(partial.token_ids), partial.final, mean, least)

    def value(self, feature: Feature) -> float:
        """Return a feature, always finite. Raises `LogProbabilitiesMissing`."""
        match feature:
            case Feature.LOG_ODDS:
                return max(-LARGEST_LOG_ODDS, min(LARGEST_LOG_ODDS, self.log_odds))
            case Feature.LOG_TOKENS:
                return math.log1p(self.tokens)
            case Feature.MEAN_LOG_PROBABILITY:
                found = self.mean_log_probability
            case Feature.LEAST_LOG_PROBABILITY:
                found = self.least_log_probability
        if found is None:
            raise LogProbabilitiesMissing("the candidate's stream carries no log-probabilities for the calibration")
        return max(found, LEAST_LOG_PROBABILITY)


@dataclass(frozen=True, slots=True)
class Bucket:
    """The map for responses of some lengths.

    up_to: the most tokens of a response that has not ended; None for responses that have. weights: one per feature of
    the map. knots: (x, p), ascending in x and never falling in p, at least one. The curve rises; a score that ranks
    below chance has a negative weight.
    """

    up_to: int | None
    weights: tuple[float, ...]
    bias: float
    knots: tuple[tuple[float, float], ...]

    def probability(self, features: Sequence[float]) -> float:
        """Return p for the features, which are in the map's order."""
        x = math.fsum(map(mul, self.weights, features)) + self.bias
        place = bisect_left(self.knots, x, key=itemgetter(0))
        if place == 0:
            return self.knots[0][1]
        if place == len(self.knots):
            return self.knots[-1][1]
        (x_below, p_below), (x_above, p_above) = self.knots[place - 1], self.knots[place]
        return p_below + (p_above - p_below) * (x - x_below) / (x_above - x_below)

    def to_plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        where = {"final": True} if self.up_to is None else {"up_to": self.up_to}
        knots = [list(knot) for knot in self.knots]
        return {**where, "weights": list(self.weights), "bias": self.bias, "knots": knots}


@dataclass(frozen=True, slots=True)
class CalibrationMap:
    """A map. partial: buckets of responses that go on, ascending in `up_to`, at least one. final: of those that ended.

    It keeps no order of its own: of two responses in different buckets the one with the larger log-odds may come out
    lower, and within a bucket it rises in the log-odds only as far as their weight says.
    """

    features: tuple[Feature, ...]
    partial: tuple[Bucket, ...]
    final: Bucket

    @property
    def reads_log_probabilities(self) -> bool:
        """It cannot be applied to a response without log-probabilities."""
        return bool({Feature.MEAN_LOG_PROBABILITY, Feature.LEAST_LOG_PROBABILITY} & set(self.features))

    def apply(self, log_odds: float, partial: Partial) -> float:
        """Return the probability, 0 to 1, for a response's raw log-odds. Raises `LogProbabilitiesMissing`."""
        return self.probability(Reading.of(log_odds, partial))

    def probability(self, reading: Reading) -> float:
        """Return the probability, 0 to 1. Raises `LogProbabilitiesMissing`."""
        bucket = self.final if reading.final else self._up_to(reading.tokens)
        return bucket.probability([reading.value(feature) for feature in self.features])

    def _up_to(self, tokens: int) -> Bucket:
        """Return the first bucket that such a length is within, else the last."""
        found = (each for each in self.partial if each.up_to is not None and each.up_to >= tokens)
        return next(found, self.partial[-1])

    def to_plain(self) -> dict[str, Any]:
        """Return it as JSON has it; `from_plain` reads it back."""
        buckets = [bucket.to_plain() for bucket in (*self.partial, self.final)]
        return {"features": [feature.value for feature in self.features], "buckets": buckets}

    @classmethod
    def from_plain(cls, value: Any, field: str = "calibration") -> CalibrationMap:
        """Return the map that a decoded JSON value says. field: what it is called in errors: `CalibrationError`."""
        _known(value, _MAP, field, "must be an object with features and buckets")
        features = _features(value.get("features"), f"{field}.features")
        given, name = value.get("buckets"), f"{field}.buckets"
        if not isinstance(given, list) or not given:
            raise CalibrationError(name, "must be a list of buckets")
        buckets = [_bucket(each, len(features), f"{name}[{place}]") for place, each in enumerate(given)]
        partial = tuple(bucket for bucket in buckets if bucket.up_to is not None)
        final = [bucket for bucket in buckets if bucket.up_to is None]
        if len(final) != 1:
            raise CalibrationError(name, f"has {len(final)} with final: true; one is for responses that have ended")
        if not partial:
            raise CalibrationError(name, "has none with up_to; at least one is for responses that go on")
        for place, (bucket, after) in enumerate(pairwise(buckets)):
            if bucket.up_to is None or (after.up_to is not None and after.up_to <= bucket.up_to):
                problem = "does not come in order: larger and larger up_to, and final last"
                raise CalibrationError(f"{name}[{place + 1}]", problem)
        return cls(features, partial, final[0])


def _features(value: Any, field: str) -> tuple[Feature, ...]:
    known = [feature.value for feature in Feature]
    if not isinstance(value, list) or not value:
        raise CalibrationError(field, f"must be a list of some of {', '.join(known)}")
    for place, each in enumerate(value):
        if each not in known:
            raise CalibrationError(f"{field}[{place}]", f"is {each!r}; the features: {', '.join(known)}")
        if each in value[:place]:
            raise CalibrationError(f"{field}[{place}]", f"is {each!r} for the second time")
    return tuple(Feature(each) for each in value)


def _bucket(value: Any, features: int, field: str) -> Bucket:
    _known(value, _BUCKET, field, "must be an object with up_to or final, weights, bias and knots")
    up_to, final = value.get("up_to"), value.get("final", False)
    if not isinstance(final, bool):
        raise CalibrationError(f"{field}.final", f"is {final!r}; it is true, or left out")
    if final and up_to is not None:
        raise CalibrationError(f"{field}.up_to", "stands beside final: true; a response that has ended has no limit")
    if not final and (not isinstance(up_to, int) or isinstance(up_to, bool) or up_to < 0):
        raise CalibrationError(f"{field}.up_to", f"is {up_to!r}; it is a whole number of tokens, or final is true")
    weights = value.get("weights")
    if not isinstance(weights, list) or len(weights) != features:
        raise CalibrationError(f"{field}.weights", f"must be a list of {features} numbers, one for each feature")
    return Bucket(
        up_to=None if final else up_to,
        weights=tuple(_number(each, f"{field}.weights[{place}]") for place, each in enumerate(weights)),
        bias=_number(value.get("bias"), f"{field}.bias"),
        knots=_knots(value.get("knots"), f"{field}.knots"),
    )


def _knots(value: Any, field: str) -> tuple[tuple[float, float], ...]:
    if not isinstance(value, list) or not value:
        raise CalibrationError(field, "must be a list of at least one pair [x, p]")
    knots: list[tuple[float, float]] = []
    for place, each in enumerate(value):
        name = f"{field}[{place}]"
        if not isinstance(each, list) or len(each) != 2:  # noqa: PLR2004 -- a pair
            raise CalibrationError(name, "must be a pair [x, p]")
        x, p = (_number(number, name) for number in each)
        if not 0.0 <= p <= 1.0:
            raise CalibrationError(name, f"has the probability {p}; it lies between 0 and 1")
        if knots and (x <= knots[-1][0] or p < knots[-1][1]):
            raise CalibrationError(name, "does not come in order: x rises from knot to knot, and p does not fall")
        knots.append((x, p))
    return tuple(knots)


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:  # NaN is no number
        raise CalibrationError(field, f"is {value!r}; it must be a number, and not beyond {_LARGEST:.0e}")
    return float(value)


def _known(value: Any, known: Sequence[str], field: str, otherwise: str) -> None:
    if not isinstance(value, Mapping):
        raise CalibrationError(field, otherwise)
    unknown = sorted(value.keys() - set(known))
    if unknown:
        raise CalibrationError(f"{field}.{unknown[0]}", f"is no field; the fields: {', '.join(known)}")
