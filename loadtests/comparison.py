"""From measurements to a verdict: medians over rounds, ratios with an interval, targets met or missed.

It knows nothing of processes or HTTP. A ratio is formed inside a round, between two measurements seconds apart, so that
what disturbs the machine for longer than that disturbs both of its sides.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadtests.generator import Result

RESAMPLES = 5000
_LOW, _HIGH = 0.025, 0.975


class Mode(StrEnum):
    """What is sent: as many whole answers as come back, streamed answers, or whole answers at one given rate."""

    REQUESTS = "requests"
    STREAMS = "streams"
    PACED = "paced"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One target under one mode in one round (counted from 0)."""

    round: int
    target: str
    mode: Mode
    result: Result


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """CPU of `target` over CPU of `baseline` in one mode, and the ratio that is allowed at most."""

    mode: Mode
    target: str
    baseline: str
    ratio: Interval
    rounds: tuple[float, ...]
    allowed: float

    @property
    def met(self) -> bool:
        """True when the median ratio is at most what is allowed."""
        return self.ratio.median <= self.allowed


def bootstrap_median(values: Sequence[float], *, seed: int = 1) -> Interval:
    """Return the median of `values` (at least one) and the percentile bootstrap interval of it.

    Resamples whole rounds with replacement (Efron 1979), 5000 times with a fixed seed: same values, same interval.
    """
    generator = random.Random(seed)
    medians = sorted(median(generator.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return Interval(median(values), medians[int(_LOW * RESAMPLES)], medians[int(_HIGH * RESAMPLES) - 1])


def compare(measurements: Sequence[Measurement], mode: Mode, *, target: str, baseline: str, allowed: float) -> Verdict:
    """Return the verdict on CPU per request in `mode`. Raises `ValueError` when a round lacks one of the two."""
    cpu_ms = {(m.round, m.target): m.result.cpu_ms for m in measurements if m.mode is mode}
    ratios = []
    for number in sorted({number for number, _ in cpu_ms}):
        mine, theirs = cpu_ms.get((number, target)), cpu_ms.get((number, baseline))
        if not mine or not theirs:
            raise ValueError(f"round {number} has no CPU time of both {target} and {baseline} for {mode}")
        ratios.append(mine / theirs)
    return Verdict(mode, target, baseline, bootstrap_median(ratios), tuple(ratios), allowed)


def typical(
    measurements: Sequence[Measurement], target: str, mode: Mode, figure: Callable[[Result], float | None]
) -> float | None:
    """Return the median over rounds of one figure of a target in a mode; None when no round has it."""
    found = (figure(m.result) for m in measurements if m.target == target and m.mode is mode)
    values = [value for value in found if value is not None]
    return median(values) if values else None


def doubts(measurements: Sequence[Measurement], chunks: int) -> list[str]:
    """Return what makes the figures doubtful, a sentence for each; nothing when they may be believed."""
    found = []
    for m in measurements:
        where = f"round {m.round + 1}, {m.target}, {m.mode}"
        if m.result.errors:
            wrong = ", ".join(f"{count} x {what}" for what, count in m.result.errors.items())
            found.append(f"{where}: {wrong}")
        if not m.result.cpu_agrees:
            found.append(f"{where}: the kernel's two accounts of CPU time differ")
        if m.mode is Mode.STREAMS and m.result.pieces < 0.95 * chunks:
            found.append(
                f"{where}: {m.result.pieces:.1f} pieces for {chunks} chunks, so chunks met in a buffer; raise --gap-ms"
            )
    return found
