"""Means over prompts with bootstrap intervals. Pure: the random numbers come from a seed.

Prompts are what is resampled, never candidates: those of one prompt are alike, and counting them as so many
observations would make every interval too narrow.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import mul

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its percentile interval at `LEVEL`. Bounds are None where too few resamples define it."""

    value: float
    low: float | None
    high: float | None


class Bootstrap:
    """The same resamples of prompts for every figure, so that differences between figures are not noise of its own.

    prompts: how many there are, at least one. resamples: how often they are drawn anew.
    """

    def __init__(self, prompts: int, *, resamples: int = 1000, seed: int = 0) -> None:
        source = random.Random(seed)  # noqa: S311 -- statistics, no secret
        self._weights = [_drawn(source, prompts) for _ in range(resamples)]
        self._prompts = prompts

    def mean(self, values: Sequence[float]) -> Estimate:
        """Return the mean of one value per prompt."""
        return self.ratio(values, [1.0] * len(values))

    def ratio(self, above: Sequence[float], below: Sequence[float]) -> Estimate:
        """Return the sum of `above` over the sum of `below`, both one value per prompt.

        NaN where the denominator is not positive; resamples in which it is not are left out, and with more than a
        tenth of them gone there is no interval.
        """
        if len(above) != self._prompts or len(below) != self._prompts:
            raise ValueError(f"{len(above)} and {len(below)} values for {self._prompts} prompts")
        total = math.fsum(below)
        value = math.fsum(above) / total if total > 0 else math.nan

        def resampled(weights: Sequence[int]) -> float:
            denominator = sum(map(mul, weights, below))
            return sum(map(mul, weights, above)) / denominator if denominator > 0 else math.nan

        return self._estimate(value, resampled)

    def figure(self, of: Callable[[Sequence[int]], float]) -> Estimate:
        """Return a figure that is no ratio. `of`: from how often each prompt counts to the figure, NaN for none.

        Resamples that define none are treated as in `ratio`.
        """
        return self._estimate(of([1] * self._prompts), of)

    def _estimate(self, value: float, of: Callable[[Sequence[int]], float]) -> Estimate:
        if math.isnan(value):
            return Estimate(value, None, None)
        found = sorted(each for each in map(of, self._weights) if not math.isnan(each))
        if len(found) < 0.9 * len(self._weights) or not found:
            return Estimate(value, None, None)
        tail = (1 - LEVEL) / 2
        return Estimate(value, quantile(found, tail), quantile(found, 1 - tail))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which that share of ascending values lies, between neighbours in proportion."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _drawn(source: random.Random, prompts: int) -> list[int]:
    """Return how often each prompt is drawn, when as many are drawn as there are."""
    weights = [0] * prompts
    for place in source.choices(range(prompts), k=prompts):
        weights[place] += 1
    return weights
