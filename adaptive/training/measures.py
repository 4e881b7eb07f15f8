"""How far scores can be believed, and how well they rank, at each length: the figures of a calibration report.

    ECE       mean distance between what was said and what came, over ten bins of equal mass; 0 is calibrated
    Brier     mean squared distance of what was said from what came; beside it, that of always saying the mean
    AUROC     chance that a better answer, of any prompt, has the larger score; a half is chance
    pairs     the same among answers of one prompt, which is what choosing among candidates needs

What came is the share of other answers that one beats or ties, between 0 and 1, so even a perfect score has a Brier
above 0. The intervals are bootstraps over prompts. That of the ECE lies a little high, as it is no mean:
noise adds to it in a resample as it does in the figure itself. Offline, with numpy.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from adaptive.calibration import Reading
from adaptive.evaluation.statistics import Bootstrap, Estimate
from adaptive.training.equal_mass import Floats, equal_mass
from adaptive.training.scored import Scored

POSITIONS: Final[tuple[int | None, ...]] = (0, 32, 64, 128, 256, None)
"""In tokens; None is the end, of answers that have one."""
_NEAR: Final = (15, 48, 96, 192)
"""The most tokens that are near 0, near 32 and so on; more than the last is near 256."""
BINS: Final = 10
_HALF: Final = 0.5


@dataclass(frozen=True, slots=True)
class Bin:
    """A point of a reliability diagram. said: mean probability. came: mean target. examples: in the bin."""

    said: float
    came: Estimate
    examples: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well scores rank by one target. auroc: over all prompts. pairs: within each; count: of unequal pairs."""

    auroc: Estimate
    pairs: Estimate
    count: int


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures at one position: see the module.

    position: of `POSITIONS`. target: mean share of other answers beaten or tied. brier_of_mean: of saying that mean of
    every answer. passed, win_or_tie: rankings by whether it passes, and by the share; of the latter the AUROC tells
    answers with at least a half from the others.
    """

    position: int | None
    examples: int
    prompts: int
    target: Estimate
    ece: Estimate
    brier: Estimate
    brier_of_mean: Estimate
    passed: Ranking
    win_or_tie: Ranking
    bins: tuple[Bin, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return it as JSON has it; null where there is no figure."""
        plain: dict[str, Any] = _without_nan(asdict(self))
        return plain


def position_of(reading: Reading) -> int | None:
    """Return which of `POSITIONS` an example is nearest to. Only what has ended is at the end."""
    return None if reading.final else POSITIONS[bisect_left(_NEAR, reading.tokens)]


def measure(
    examples: Sequence[Scored], said: Sequence[float], *, bins: int = BINS, resamples: int = 1000, seed: int = 0
) -> tuple[Measured, ...]:
    """Return the figures at each position that has examples. said: the probability that was given to each."""
    if len(examples) != len(said):
        raise ValueError(f"{len(said)} probabilities for {len(examples)} examples")
    prompts = sorted({example.prompt for example in examples})
    if not prompts:
        return ()
    bootstrap = Bootstrap(len(prompts), resamples=resamples, seed=seed)
    number = {prompt: place for place, prompt in enumerate(prompts)}
    found = []
    for position in POSITIONS:
        chosen = [place for place, example in enumerate(examples) if position_of(example.reading) == position]
        if chosen:
            here = _Here.of([examples[place] for place in chosen], [said[place] for place in chosen], number)
            found.append(here.measured(position, bootstrap, bins))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Here:
    """The examples at one position, as arrays of shape (examples,). prompt: its number among `prompts`."""

    prompts: int
    prompt: NDArray[np.intp]
    answer: NDArray[np.intp]
    said: Floats
    came: Floats
    passed: Floats

    @classmethod
    def of(cls, examples: Sequence[Scored], said: Sequence[float], number: dict[str, int]) -> _Here:
        return cls(
            prompts=len(number),
            prompt=np.array([number[example.prompt] for example in examples], dtype=np.intp),
            answer=np.array([example.answer for example in examples], dtype=np.intp),
            said=np.array(said, dtype=np.float64),
            came=np.array([example.win_or_tie for example in examples]),
            passed=np.array([float(example.passed) for example in examples]),
        )

    def measured(self, position: int | None, bootstrap: Bootstrap, bins: int) -> Measured:
        count = self._by_prompt(np.ones_like(self.said))
        of_bin = equal_mass(self.said, bins)
        return Measured(
            position=position,
            examples=len(self.said),
            prompts=len(set(self.prompt.tolist())),
            target=bootstrap.ratio(self._by_prompt(self.came), count),
            ece=bootstrap.figure(self._ece(of_bin)),
            brier=bootstrap.ratio(self._by_prompt((self.said - self.came) ** 2), count),
            brier_of_mean=bootstrap.figure(self._variance()),
            passed=self._ranking(self.passed, bootstrap),
            win_or_tie=self._ranking(self.came, bootstrap),
            bins=tuple(self._bin(of_bin == place, bootstrap) for place in range(int(of_bin.max()) + 1)),
        )

    def _by_prompt(self, values: Floats) -> list[float]:
        """Return the sum over each prompt's examples."""
        sums: list[float] = np.bincount(self.prompt, values, minlength=self.prompts).tolist()
        return sums

    def _bin(self, inside: NDArray[np.bool_], bootstrap: Bootstrap) -> Bin:
        came = bootstrap.ratio(self._by_prompt(self.came * inside), self._by_prompt(inside.astype(np.float64)))
        return Bin(float(self.said[inside].mean()), came, int(inside.sum()))

    def _ece(self, of_bin: NDArray[np.intp]) -> Callable[[Sequence[int]], float]:
        gaps = np.zeros((self.prompts, int(of_bin.max()) + 1))
        np.add.at(gaps, (self.prompt, of_bin), self.said - self.came)
        count = np.bincount(self.prompt, minlength=self.prompts)

        def ece(weights: Sequence[int]) -> float:
            each = np.asarray(weights)
            total = each @ count
            return float(np.abs(each @ gaps).sum() / total) if total else math.nan

        return ece

    def _variance(self) -> Callable[[Sequence[int]], float]:
        count, came, squares = (
            np.array(self._by_prompt(values)) for values in (np.ones_like(self.came), self.came, self.came**2)
        )

        def variance(weights: Sequence[int]) -> float:
            each = np.asarray(weights)
            total = each @ count
            return float(each @ squares / total - (each @ came / total) ** 2) if total else math.nan

        return variance

    def _ranking(self, target: Floats, bootstrap: Bootstrap) -> Ranking:
        won, pairs = self._pairs(target)
        return Ranking(bootstrap.figure(self._auroc(target >= _HALF)), bootstrap.ratio(won, pairs), int(sum(pairs)))

    def _auroc(self, positive: NDArray[np.bool_]) -> Callable[[Sequence[int]], float]:
        _, level = np.unique(self.said, return_inverse=True)

        def auroc(weights: Sequence[int]) -> float:
            each = np.asarray(weights, dtype=np.float64)[self.prompt]
            good, bad = np.bincount(level, each * positive), np.bincount(level, each * ~positive)
            total = good.sum() * bad.sum()
            # A better answer beats every worse one below it, and half of those at its own level.
            return float(good @ (np.cumsum(bad) - bad / 2) / total) if total else math.nan

        return auroc

    def _pairs(self, target: Floats) -> tuple[list[float], list[float]]:
        """Return of each prompt how many pairs of unequal target are ranked rightly, ties half, and how many there are.

        Two cuts of one answer are no pair.
        """
        won, pairs = [0.0] * self.prompts, [0.0] * self.prompts
        order = np.argsort(self.prompt, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(self.prompt[order])) + 1):
            said, came, answer = self.said[places], target[places], self.answer[places]
            better = (came[:, None] > came[None, :]) & (answer[:, None] != answer[None, :])
            ahead = np.sign(said[:, None] - said[None, :])
            prompt = int(self.prompt[places[0]])
            pairs[prompt] = float(better.sum())
            won[prompt] = float(((ahead + 1) / 2)[better].sum())
        return won, pairs


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
