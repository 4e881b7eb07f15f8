"""The board's panels, answered by Prometheus for one span of time: what `preamble report savings` draws or prints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from server.panels import Board, Kind, Level, Panel, Query, Row, Window, duration
from server.prometheus import Prometheus, PrometheusError, Series

_POINTS: Final = 240
_EVERYTHING: Final = ".*"


@dataclass(frozen=True, slots=True)
class Answer:
    """A query and the series that it found; none is "no data"."""

    query: Query
    series: tuple[Series, ...]

    def legend(self, series: Series) -> str:
        """Return the name of a series: the query's legend with the labels filled in."""
        filled = re.sub(r"\{\{(\w+)\}\}", lambda found: series.labels.get(found[1], ""), self.query.legend)
        return filled.strip()


@dataclass(frozen=True, slots=True)
class AnsweredPanel:
    """A panel with an answer for each of its queries."""

    panel: Panel
    answers: tuple[Answer, ...]

    @property
    def empty(self) -> bool:
        """True when no query found anything."""
        return not any(answer.series for answer in self.answers)

    def lines(self) -> Iterator[tuple[str, Series]]:
        """Return every series with its legend."""
        for answer in self.answers:
            for series in answer.series:
                yield answer.legend(series), series


@dataclass(frozen=True, slots=True)
class Figure:
    """A number over the whole span. value: None where there is none. level: how good it is, where that can be said."""

    panel: Panel
    query: Query
    value: float | None
    level: Level | None


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """A row of the board with its answers."""

    row: Row
    panels: tuple[AnsweredPanel, ...]


@dataclass(frozen=True, slots=True)
class SavingsReport:
    """A board answered. start, end: Unix times."""

    board: Board
    prometheus: str
    start: float
    end: float
    window: Window
    rows: tuple[AnsweredRow, ...]

    def panels(self) -> Iterator[AnsweredPanel]:
        """Return the panels, row by row."""
        for row in self.rows:
            yield from row.panels

    def figures(self) -> Iterator[Figure]:
        """Return the headline figures."""
        for answered in self.panels():
            if answered.panel.kind is Kind.FIGURE:
                yield from figures(answered)


def figures(answered: AnsweredPanel) -> Iterator[Figure]:
    """Return the numbers of a panel, one per query."""
    for answer in answered.answers:
        value = answer.series[0].points[-1][1] if answer.series else None
        of_the_panel = value is not None and answer.query.unit is None
        level = answered.panel.level(value) if value is not None and of_the_panel else None
        yield Figure(answered.panel, answer.query, value, level)


def ask(board: Board, prometheus: Prometheus, start: float, end: float, scrape_interval_s: float) -> SavingsReport:
    """Ask Prometheus every question of the board.

    start, end: Unix times. scrape_interval_s: how often it scrapes, or more. Raises `PrometheusError`; also when in all
    that time no proxy was scraped.
    """
    span_s = end - start
    window = Window(span_s, max(span_s / _POINTS, scrape_interval_s), scrape_interval_s)
    chosen = {variable.name: _EVERYTHING for variable in board.variables}
    seen = board.variables[0].series
    if not prometheus.at(f"count(count_over_time({seen}[{duration(span_s)}]))", end):
        raise PrometheusError(
            f"Prometheus at {prometheus.url} has no sample of {seen} from {_time(start)} to {_time(end)}. Did the "
            f"proxy run, and is it scraped ({prometheus.url}/targets)? Another time: --since, or --start and --end."
        )

    def answered(panel: Panel) -> AnsweredPanel:
        return AnsweredPanel(panel, tuple(Answer(query, _found(panel, query)) for query in panel.queries))

    def _found(panel: Panel, query: Query) -> tuple[Series, ...]:
        expression = window.filled_in(query.expression, chosen)
        if panel.kind is Kind.FIGURE:
            return prometheus.at(expression, end)
        return prometheus.over(expression, start, end, window.step_s)

    rows = tuple(AnsweredRow(row, tuple(answered(panel) for panel in row.panels)) for row in board.rows)
    return SavingsReport(board, prometheus.url, start, end, window, rows)


def histogram_cells(
    answered: AnsweredPanel,
) -> tuple[tuple[float, ...], tuple[str, ...], tuple[tuple[float, ...], ...]]:
    """Return a heatmap's times, its buckets' upper bounds (ascending) and its counts, (buckets, times), none negative.

    Prometheus' buckets are cumulative; these are not. The last one, without a bound, is left out where it is empty.
    """
    found = sorted(answered.answers[0].series, key=lambda series: float(series.labels["le"]))
    times = tuple(sorted({time for series in found for time, _ in series.points}))
    below: Sequence[float] = [0.0] * len(times)
    counts = []
    for series in found:
        at = dict(series.points)
        cumulative = [at.get(time, 0.0) for time in times]
        counts.append(tuple(max(0.0, here - less) for here, less in zip(cumulative, below, strict=True)))
        below = cumulative
    bounds = [series.labels["le"] for series in found]
    if bounds and bounds[-1] == "+Inf" and not any(counts[-1]):
        bounds.pop()
        counts.pop()
    return times, tuple(bounds), tuple(counts)


def as_plain(report: SavingsReport) -> dict[str, Any]:
    """Return everything as plain values for JSON: figures with their samples, and every series of every panel."""
    return {
        "title": report.board.title,
        "prometheus": report.prometheus,
        "start": _time(report.start),
        "end": _time(report.end),
        "step_s": report.window.step_s,
        "rate_interval_s": report.window.rate_interval_s,
        "figures": [
            {
                "title": figure.panel.title,
                "what": figure.query.legend,
                "unit": figure.panel.unit_of(figure.query).value,
                "value": figure.value,
                "level": None if figure.level is None else figure.level.value,
            }
            for figure in report.figures()
        ],
        "panels": [
            {
                "title": answered.panel.title,
                "description": answered.panel.description,
                "unit": answered.panel.unit.value,
                "series": [
                    {
                        "legend": legend,
                        "labels": dict(series.labels),
                        "points": [list(point) for point in series.points],
                    }
                    for legend, series in answered.lines()
                ],
            }
            for answered in report.panels()
            if answered.panel.kind is not Kind.FIGURE
        ],
    }


def _time(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds")
