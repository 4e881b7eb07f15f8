"""Fits calibration maps: what `adaptive.calibration` applies. Offline, with numpy and scikit-learn; deterministic.

Three methods, of which the data choose one, by the Brier score on prompts that a fit has not seen:

    temperature   x = scale * log-odds + bias, p = sigmoid(x)            two numbers a bucket, for little data
    logistic      x = weights . features + bias, p = sigmoid(x)          logistic regression
    isotonic      the same x, p = a rising curve through its averages    isotonic regression on top

Targets are soft: each example counts as won with the weight of its target, and as lost with the rest. The isotonic
curve is the centred one (Oron and Flournoy, arXiv 1701.05964): through the middle of each level stretch instead of
along it. A level stretch would tie candidates that the score tells apart, and the best of them be chosen by chance.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import isotonic_regression
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from adaptive.calibration import CalibrationMap, Feature, Reading
from adaptive.training.equal_mass import Floats, equal_mass

UP_TO: Final = (16, 48, 96, 192, 384)
"""Upper ends of the buckets. Checkpoints tend to lie at 32, 64, 128 and 256: amid a bucket, not at its end."""
FOLDS: Final = 5
LEAST_EXAMPLES: Final = 100
LEAST_PROMPTS: Final = 20
"""A bucket with less than this is given the map of all lengths together, as is one whose own would turn the score's
order round without being sure of it: by chance no candidate is to be dropped for its higher score."""
LEAST_P: Final = 0.001
"""No map says less than this, nor more than one minus it: no amount of data here would support it."""

# 32 with the two outer ones.
_INNER_KNOTS: Final = 30
_LEAST_BIN: Final = 20
# The inner curve leaves this much room at either end, over which the outer knots let it rise on: however far out two
# scores lie, the larger one stays larger.
_ROOM: Final = 0.001
_FAR: Final = 40.0
# A feature that varies less than this is constant but for rounding.
_CONSTANT: Final = 1e-6
_DIGITS: Final = 6

Knots = list[tuple[float, float]]


class Method(StrEnum):
    """How a map is fitted, simplest first."""

    TEMPERATURE = "temperature"
    LOGISTIC = "logistic"
    ISOTONIC = "isotonic"


@dataclass(frozen=True, slots=True)
class FittedBucket:
    """What stands behind a bucket. up_to: None for ended responses. pooled: too little; all lengths stand in."""

    up_to: int | None
    examples: int
    prompts: int
    pooled: bool


@dataclass(frozen=True, slots=True)
class Fit:
    """A map, and why it is this one.

    brier: the cross-validated Brier score of each method that was tried, on the soft targets; smaller is better.
    chosen: by that score, and not by the caller.
    """

    calibration: CalibrationMap
    method: Method
    chosen: bool
    brier: Mapping[Method, float]
    buckets: tuple[FittedBucket, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return what a report says of it, without the map."""
        return {
            "method": self.method.value,
            "chosen_by": "cross-validated Brier score" if self.chosen else "the caller",
            "brier": {method.value: round(score, _DIGITS) for method, score in self.brier.items()},
            "features": [feature.value for feature in self.calibration.features],
            "buckets": [
                {
                    **({"final": True} if bucket.up_to is None else {"up_to": bucket.up_to}),
                    "examples": bucket.examples,
                    "prompts": bucket.prompts,
                    "pooled": bucket.pooled,
                }
                for bucket in self.buckets
            ],
        }


def fit(
    readings: Sequence[Reading],
    targets: Sequence[float],
    prompts: Sequence[str],
    *,
    features: Sequence[Feature] = tuple(Feature),
    method: Method | None = None,
    up_to: Sequence[int] = UP_TO,
) -> Fit:
    """Return the map that takes the readings to their targets, 0 to 1. prompts: whose each example is.

    features: for the methods that read several; log-odds always are the only one of `temperature`. method: None lets
    the data choose. The order of the examples does not matter. Raises `ValueError` for fewer than two prompts, for
    targets out of range, and `LogProbabilitiesMissing` where a feature is not there.
    """
    if not len(readings) == len(targets) == len(prompts):
        raise ValueError(f"{len(readings)} readings, {len(targets)} targets and {len(prompts)} prompts")
    if len(set(prompts)) < 2:  # noqa: PLR2004 -- one to fit on, one to see whether it holds
        raise ValueError("a calibration map takes examples of at least two prompts")
    if not all(0.0 <= target <= 1.0 for target in targets):
        raise ValueError("targets lie between 0 and 1")
    read = (Feature.LOG_ODDS,) if method is Method.TEMPERATURE else (Feature.LOG_ODDS, *features)
    data = _Data.of(readings, targets, prompts, tuple(dict.fromkeys(read)), tuple(up_to))
    fitter = _Fitter(tuple(features), tuple(up_to))
    # One thread: the sums are then always in the same order, and for a few columns it is faster than several.
    with threadpool_limits(1):
        brier = {each: _cross_validated(fitter, data, each) for each in Method} if method is None else {}
        used = method or min(brier, key=lambda each: brier[each])
        calibration, buckets = fitter.fitted(data, used)
    return Fit(calibration, used, method is None, brier, buckets)


@dataclass(frozen=True, slots=True)
class _Data:
    """Examples as arrays. Shapes: values (examples, read), the others (examples,).

    read: the features that are the columns of `values`. bucket: which of the map's each example falls into, the last
    being that of ended responses.
    """

    readings: NDArray[Any]
    read: tuple[Feature, ...]
    values: Floats
    targets: Floats
    prompts: NDArray[Any]
    bucket: NDArray[np.intp]

    @classmethod
    def of(
        cls,
        readings: Sequence[Reading],
        targets: Sequence[float],
        prompts: Sequence[str],
        read: tuple[Feature, ...],
        up_to: tuple[int, ...],
    ) -> _Data:
        # In an order of their own, so that sums do not depend on that of a file.
        rows = sorted(zip(readings, targets, prompts, strict=True), key=lambda row: (row[2], repr(row)))
        ordered = np.empty(len(rows), dtype=object)
        ordered[:] = [reading for reading, _, _ in rows]
        return cls(
            readings=ordered,
            read=read,
            values=np.array([[reading.value(feature) for feature in read] for reading, _, _ in rows]),
            targets=np.array([target for _, target, _ in rows]),
            prompts=np.array([prompt for _, _, prompt in rows], dtype=object),
            bucket=np.array([_bucket_of(reading, up_to) for reading, _, _ in rows], dtype=np.intp),
        )

    def where(self, kept: NDArray[np.bool_]) -> _Data:
        return replace(
            self,
            readings=self.readings[kept],
            values=self.values[kept],
            targets=self.targets[kept],
            prompts=self.prompts[kept],
            bucket=self.bucket[kept],
        )

    def of_features(self, features: Sequence[Feature]) -> Floats:
        return self.values[:, [self.read.index(feature) for feature in features]]


def _bucket_of(reading: Reading, up_to: Sequence[int]) -> int:
    """Return the place of the bucket that the map will take for it; that of ended responses comes last."""
    return len(up_to) if reading.final else min(bisect_left(up_to, reading.tokens), len(up_to) - 1)


@dataclass(frozen=True, slots=True)
class _Fitter:
    features: tuple[Feature, ...]
    up_to: tuple[int, ...]

    def fitted(self, data: _Data, method: Method) -> tuple[CalibrationMap, tuple[FittedBucket, ...]]:
        features = (Feature.LOG_ODDS,) if method is Method.TEMPERATURE else self.features
        place_of_score = features.index(Feature.LOG_ODDS)
        pooled = _bucket(data, features, method)
        buckets, told = [], []
        for place, edge in enumerate((*self.up_to, None)):
            own = data.where(data.bucket == place)
            prompts = len(set(own.prompts))
            few = len(own.targets) < LEAST_EXAMPLES or prompts < LEAST_PROMPTS
            where: dict[str, Any] = {"final": True} if edge is None else {"up_to": edge}
            found = pooled if few else _bucket(own, features, method)
            if not few and found["weights"][place_of_score] < 0 and not _surely_falls(own, features, found):
                found = pooled
            buckets.append(where | found)
            told.append(FittedBucket(edge, len(own.targets), prompts, found is pooled))
        plain = {"features": [feature.value for feature in features], "buckets": buckets}
        return CalibrationMap.from_plain(plain), tuple(told)


def _bucket(data: _Data, features: Sequence[Feature], method: Method) -> dict[str, Any]:
    """Return a bucket's weights, bias and knots."""
    values = data.of_features(features)
    weights, bias = _linear(values, data.targets)
    knots = _isotonic(values @ weights + bias, data.targets) if method is Method.ISOTONIC else _sigmoid()
    return {"weights": weights.tolist(), "bias": bias, "knots": [list(knot) for knot in knots]}


def _linear(values: Floats, targets: Floats) -> tuple[Floats, float]:
    """Return weights and bias by logistic regression. Shapes: (examples, features), (examples,).

    Features are brought to one scale first, so that the slight penalty (scikit-learn's default) is the same for all.
    """
    middle, scale = values.mean(axis=0), values.std(axis=0)
    varies = scale > _CONSTANT
    scale = np.where(varies, scale, 1.0)
    standard = (values - middle) / scale
    # Never quite certain: a target of 0 or 1 for all would have no finite bias.
    soft = np.clip(targets, LEAST_P, 1 - LEAST_P)
    model = LogisticRegression(solver="newton-cholesky")
    model.fit(
        np.concatenate([standard, standard]),
        np.repeat([1, 0], len(targets)),
        sample_weight=np.concatenate([soft, 1 - soft]),
    )
    weights = np.round(np.where(varies, model.coef_[0] / scale, 0.0), _DIGITS)
    bias = float(model.intercept_[0]) - float(weights @ middle)
    return weights, round(bias, _DIGITS)


def _surely_falls(data: _Data, features: Sequence[Feature], found: Mapping[str, Any]) -> bool:
    """Return whether the score's weight is two standard errors below 0. Answers to one prompt are no independent news.

    The errors are the sandwich ones for clusters: H^-1 (sum over prompts of g g^T) H^-1, g a prompt's gradient.
    """
    values = np.column_stack([data.of_features(features), np.ones(len(data.targets))])
    said = 1 / (1 + np.exp(-values @ np.append(found["weights"], found["bias"])))
    gradients = values * (data.targets - said)[:, None]
    of_prompt = np.unique(data.prompts.astype(str), return_inverse=True)[1]
    sums = np.zeros((int(of_prompt.max()) + 1, values.shape[1]))
    np.add.at(sums, of_prompt, gradients)
    inverse = np.linalg.pinv((values * (said * (1 - said))[:, None]).T @ values)
    place = list(features).index(Feature.LOG_ODDS)
    error = math.sqrt(float((inverse @ (sums.T @ sums) @ inverse)[place, place]))
    return bool(found["weights"][place] < -2 * error)


def _sigmoid() -> Knots:
    """Return the logistic function as knots; between them it is off by at most 0.003."""
    end = math.log((1 - LEAST_P - _ROOM) / (LEAST_P + _ROOM))
    inner = [-end + 2 * end * place / (_INNER_KNOTS - 1) for place in range(_INNER_KNOTS)]
    return _with_outer([(x, 1 / (1 + math.exp(-x))) for x in inner])


def _isotonic(x: Floats, targets: Floats) -> Knots:
    """Return the centred isotonic regression of targets on x as knots. Shapes: (examples,).

    It is fitted to averages over bins of equal mass, so that no knot rests on a handful of examples.
    """
    bins = equal_mass(x, max(1, min(_INNER_KNOTS, len(x) // _LEAST_BIN)))
    mass = np.bincount(bins).astype(np.float64)
    place, mean = np.bincount(bins, x) / mass, np.bincount(bins, targets) / mass
    low = LEAST_P + _ROOM
    level = isotonic_regression(mean, sample_weight=mass, y_min=low, y_max=1 - low)
    stretches = _stretches(level)
    centres = np.bincount(stretches, place * mass) / np.bincount(stretches, mass)
    _, first = np.unique(stretches, return_index=True)
    return _with_outer([(float(each), float(level[at])) for each, at in zip(centres, first, strict=True)])


def _stretches(values: Floats) -> NDArray[np.intp]:
    """Return for each value how often the values before it changed. Shape: (values,)."""
    changed = np.abs(np.diff(values, prepend=values[:1])) > 10.0 ** -(_DIGITS + 2)
    return np.cumsum(changed)


def _with_outer(inner: Knots) -> Knots:
    """Return the knots, rounded, with one far out on either side towards which the curve rises on."""
    (first, low), (last, high) = inner[0], inner[-1]
    knots: Knots = []
    for x, p in [(first - _FAR, low - _ROOM), *inner, (last + _FAR, high + _ROOM)]:
        knot = (round(x, _DIGITS), round(p, _DIGITS))
        if not knots or knot[0] > knots[-1][0]:
            knots.append(knot)
    return knots


def _cross_validated(fitter: _Fitter, data: _Data, method: Method) -> float:
    """Return the Brier score, each prompt judged by a map that was fitted without it."""
    fold_of = _folds(data.prompts)
    folds = np.array([fold_of[prompt] for prompt in data.prompts])
    errors: list[float] = []
    for fold in range(int(folds.max()) + 1):
        calibration, _ = fitter.fitted(data.where(folds != fold), method)
        unseen = data.where(folds == fold)
        p = np.array([calibration.probability(reading) for reading in unseen.readings])
        errors += ((p - unseen.targets) ** 2).tolist()
    return fmean(errors)


def _folds(prompts: Iterable[str]) -> dict[str, int]:
    """Return each prompt's fold. By digest: neighbours in a file are often alike."""
    digests = {prompt: hashlib.blake2b(prompt.encode(), digest_size=8).digest() for prompt in prompts}
    ordered = sorted(digests, key=lambda prompt: (digests[prompt], prompt))
    return {prompt: place % FOLDS for place, prompt in enumerate(ordered)}
