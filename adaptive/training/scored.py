"""Scored examples: raw scores of answers cut at some length, beside what became of the answers. JSONL, one a line.

    {"id": "p17", "family": "sums", "answer": 3, "tokens": 64, "final": false, "log_odds": -0.7, "logprobs_mean": -0.4,
     "logprobs_min": -3.1, "win_or_tie": 0.8, "passed": true, "label_mass": 0.9}

id: of the prompt. answer: which of its answers. tokens, final: how much of it was judged, and whether it had ended.
log_odds: of the two labels. logprobs_mean, logprobs_min: of the answer's own tokens up to there, null where not known.
win_or_tie: share of the prompt's other answers that it beats or ties, 0 to 1. label_mass: null where not known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from adaptive.calibration import Reading

_FIELDS: Final = (
    "id",
    "family",
    "answer",
    "tokens",
    "final",
    "log_odds",
    "logprobs_mean",
    "logprobs_min",
    "win_or_tie",
    "passed",
    "label_mass",
)


class ScoredError(Exception):
    """A line that is no scored example. The message names line, field and what it must be."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One scored example; see the module for the fields. prompt: the id."""

    prompt: str
    family: str
    answer: int
    reading: Reading
    win_or_tie: float
    passed: bool
    label_mass: float | None = None

    def to_line(self) -> str:
        """Return it as one line of JSON, without a line break."""
        reading = self.reading
        values = (
            self.prompt,
            self.family,
            self.answer,
            reading.tokens,
            reading.final,
            reading.log_odds,
            reading.mean_log_probability,
            reading.least_log_probability,
            self.win_or_tie,
            self.passed,
            self.label_mass,
        )
        return json.dumps(dict(zip(_FIELDS, values, strict=True)), separators=(",", ":"))


def read_scored(lines: Iterable[str], name: str) -> tuple[Scored, ...]:
    """Return what the lines say; empty ones are passed over. name: what they are called in errors: `ScoredError`."""
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ScoredError(f"{where}: is not JSON ({error}).") from error
        if not isinstance(value, dict):
            raise ScoredError(f"{where}: must be an object with {', '.join(_FIELDS)}.")
        found.append(_Line(where, value).scored())
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Line:
    """Takes a line's fields apart."""

    where: str
    value: Mapping[str, Any]

    def scored(self) -> Scored:
        for name in _FIELDS:
            if name not in self.value:
                raise self._wrong(name, "is missing")
        reading = Reading(
            log_odds=self._number("log_odds", -math.inf, math.inf, "a number"),
            tokens=self._count("tokens"),
            final=self._flag("final"),
            mean_log_probability=self._number_or_none("logprobs_mean", -math.inf, 0.01, "at most 0"),
            least_log_probability=self._number_or_none("logprobs_min", -math.inf, 0.01, "at most 0"),
        )
        return Scored(
            prompt=self._text("id"),
            family=self._text("family"),
            answer=self._count("answer"),
            reading=reading,
            win_or_tie=self._number("win_or_tie", 0.0, 1.0, "from 0 to 1"),
            passed=self._flag("passed"),
            label_mass=self._number_or_none("label_mass", 0.0, 1.01, "from 0 to 1"),
        )

    def _text(self, name: str) -> str:
        value = self.value[name]
        if not isinstance(value, str):
            raise self._wrong(name, f"is {value!r}; it must be text")
        return value

    def _flag(self, name: str) -> bool:
        value = self.value[name]
        if not isinstance(value, bool):
            raise self._wrong(name, f"is {value!r}; it must be true or false")
        return value

    def _count(self, name: str) -> int:
        value = self.value[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(name, f"is {value!r}; it must be a whole number from 0")
        return value

    def _number(self, name: str, least: float, most: float, what: str) -> float:
        value = self.value[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self._wrong(name, f"is {value!r}; it must be {what}")
        return float(value)

    def _number_or_none(self, name: str, least: float, most: float, what: str) -> float | None:
        return None if self.value[name] is None else self._number(name, least, most, f"{what}, or null")

    def _wrong(self, field: str, problem: str) -> ScoredError:
        return ScoredError(f"{self.where}: {field} {problem}.")
