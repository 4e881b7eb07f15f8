"""What a board is made of: rows of panels, each a question to Prometheus with a title, a unit and what a bad value is.

Plain data, so that one definition (`board.py`) feeds the Grafana board (`deploy/grafana/build.py`) and the drawn report
(`preamble report savings`). Knows PromQL only as text with variables, and nothing of Grafana or of drawing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

GRID_COLUMNS = 24


class Unit(Enum):
    """What a number counts, as it is written on an axis."""

    TOKENS_PER_S = "tokens/s"
    ENGINE_SECONDS_PER_S = "engine-seconds/s"
    SECONDS = "seconds"
    SHARE = "share"
    """1 is 100 %."""
    PER_MINUTE = "per minute"
    REQUESTS = "requests"
    CANDIDATES = "candidates"
    SCORE = "score"
    """A probability, or a difference of two."""
    SAMPLES = "samples"


class Kind(Enum):
    """How a panel is drawn."""

    FIGURE = "figure"
    """One number per query, over the whole time range."""
    LINES = "lines"
    STACKED = "stacked"
    """Series that add up to something."""
    HEATMAP = "heatmap"
    """One query for the buckets of a histogram, by `le`."""


class Level(Enum):
    """How good a value is."""

    GOOD = "good"
    DOUBTFUL = "doubtful"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Threshold:
    """From `above` on (None: from the least value on) a value is this good."""

    above: float | None
    level: Level


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression with the variables of `Window`, and its legend, where `{{label}}` is that label's value.

    unit: if it is not the panel's.
    """

    expression: str
    legend: str
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. description: what it means and what a bad value is. thresholds: ascending, the first unbounded."""

    title: str
    description: str
    kind: Kind
    unit: Unit
    queries: tuple[Query, ...]
    thresholds: tuple[Threshold, ...] = ()

    def unit_of(self, query: Query) -> Unit:
        """Return what the query's numbers count."""
        return query.unit or self.unit

    def level(self, value: float) -> Level | None:
        """Return how good a value in the panel's unit is; None without thresholds."""
        reached = [each.level for each in self.thresholds if each.above is None or value >= each.above]
        return reached[-1] if reached else None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels side by side, of the same width."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """What a viewer can choose: `$name` in a query, one or more values of `label` in `series`; all unless chosen."""

    name: str
    title: str
    series: str
    label: str


@dataclass(frozen=True, slots=True)
class Board:
    """Rows from top to bottom, and what can be chosen above them."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    def panels(self) -> Iterator[Panel]:
        """Return the panels, row by row."""
        for row in self.rows:
            yield from row.panels


def duration(seconds: float) -> str:
    """Return that many seconds as PromQL writes a duration. Milliseconds are its finest unit."""
    return f"{round(seconds * 1000)}ms"


@dataclass(frozen=True, slots=True)
class Window:
    """Values for the variables in queries, as Grafana would fill them in. All in seconds.

    range_s: `$__range`, the time shown. step_s: between two points of a line. scrape_interval_s: between two samples.
    """

    range_s: float
    step_s: float
    scrape_interval_s: float

    @property
    def rate_interval_s(self) -> float:
        """`$__rate_interval`: wide enough for a rate to find samples, and no sample falls between two points."""
        return max(self.step_s + self.scrape_interval_s, 4 * self.scrape_interval_s)

    def filled_in(self, expression: str, chosen: Mapping[str, str]) -> str:
        """Return the expression without variables. chosen: a regular expression per variable of the board."""
        values = {"__rate_interval": duration(self.rate_interval_s), "__range": duration(self.range_s), **chosen}
        for name, value in values.items():
            expression = expression.replace(f"${name}", value)
        return expression
