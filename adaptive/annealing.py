"""Annealing: the temperature of a candidate as a function of its index."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adaptive.errors import PolicyError

MAX_FACTOR = 2.0


@dataclass(frozen=True, slots=True)
class Annealing:
    """A schedule of factors on the temperature that the client asked for.

        factor(k) = end + (start - end) * rate ** k        for candidate k = 0, 1, 2, ...

    It moves from `start` to `end` without ever turning or leaving the two: cooling where `end` is lower, warming where
    it is higher, constant where they are equal. With `start` 1 the first candidate is exactly the one that the client
    would have had without us. The schedule of arXiv 2410.02725 depends on how many samples have been drawn; its
    formula could not be read (`README.md`), so this family covers cooling and warming, to be chosen by measurement.

    start, end: 0 to 2. rate: 0 to 1; the share of the way to `end` that is left after each candidate.
    """

    start: float = 1.0
    end: float = 0.6
    rate: float = 0.7

    def __post_init__(self) -> None:
        for field, value, largest in (
            ("start", self.start, MAX_FACTOR),
            ("end", self.end, MAX_FACTOR),
            ("rate", self.rate, 1.0),
        ):
            if not 0.0 <= value <= largest:
                raise PolicyError(f"annealing.{field}", f"is {value}; give a number from 0 to {largest:g}")

    def temperature(self, requested: float, candidate: int) -> float:
        """Return the temperature of the candidate with that index (from 0), given the one that the client asked for."""
        factor = self.end + (self.start - self.end) * self.rate**candidate
        # Rounding may carry the sum an ulp past either end, and a bound is a bound.
        factor = min(max(factor, min(self.start, self.end)), max(self.start, self.end))
        return requested * factor if math.isfinite(requested) else requested


CONSTANT = Annealing(start=1.0, end=1.0, rate=1.0)
"""Every candidate at the temperature that the client asked for."""
