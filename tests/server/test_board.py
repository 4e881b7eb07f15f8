"""The *Compute savings* board as data: what it promises of every panel, and that its series exist."""

from __future__ import annotations

import re

import pytest

from server.board import BOARD
from server.metrics import Metrics
from server.panels import GRID_COLUMNS, Kind, Level, Panel, Query, Threshold, Unit, Window

PANELS = tuple(BOARD.panels())
QUERIES = tuple(query.expression for panel in PANELS for query in panel.queries)
NAME = re.compile(r"\bpreamble_\w+|\bvllm:\w+")
VARIABLES = {"$proxy", "$engine", "$__rate_interval", "$__range"}


def exported() -> dict[str, set[str]]:
    """Return every sample name of the proxy with the labels that it may have."""
    names: dict[str, set[str]] = {}
    metrics = Metrics()
    for metric in [*vars(metrics).values(), *vars(metrics.sampling).values()]:
        if not hasattr(metric, "_type"):
            continue
        labels = set(metric._labelnames)
        endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_sum", "_count", "_bucket")}[metric._type]
        for ending in endings:
            names[metric._name + ending] = labels | ({"le"} if ending == "_bucket" else set())
    return names


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_every_panel_says_what_it_means_and_what_a_bad_value_is(panel: Panel) -> None:
    meaning, bad, remedy = panel.description.partition("Bad: ")
    assert len(meaning) > 15
    assert (bad, remedy.endswith(".")) == ("Bad: ", True)
    assert panel.queries


def test_no_two_panels_have_the_same_title() -> None:
    assert len({panel.title for panel in PANELS}) == len(PANELS)


@pytest.mark.parametrize("row", BOARD.rows, ids=lambda row: row.title)
def test_panels_of_a_row_share_the_width_evenly(row: object) -> None:
    assert GRID_COLUMNS % len(row.panels) == 0  # type: ignore[attr-defined]
    assert len({panel.kind is Kind.FIGURE for panel in row.panels}) == 1  # type: ignore[attr-defined]


def test_every_series_of_the_proxy_exists_with_the_labels_that_are_asked_for() -> None:
    names = exported()
    for expression in QUERIES:
        for name, selector in re.findall(r"(preamble_\w+)\{([^}]*)\}", expression):
            assert name in names, name
            asked = set(re.findall(r"(\w+)=~?\"", selector)) - {"instance"}
            assert asked <= names[name], (name, asked)
        used = [name for name in NAME.findall(expression) if name.startswith("preamble_")]
        for grouped in re.findall(r"by \(([^)]+)\)", expression):
            assert any(set(grouped.split(", ")) <= names[name] for name in used) or "vllm:" in expression, expression


def test_everything_that_sampling_measures_is_on_the_board() -> None:
    shown = {name for expression in QUERIES for name in NAME.findall(expression)}
    for metric in vars(Metrics().sampling).values():
        assert any(name.startswith(metric._name) for name in shown), metric._name


def test_every_series_is_chosen_by_instance_and_no_variable_is_unknown() -> None:
    for expression in QUERIES:
        for name in NAME.findall(expression):
            chosen = 'instance=~"$engine"' if name.startswith("vllm:") else 'instance=~"$proxy"'
            assert f"{name}{{{chosen}" in expression
        assert set(re.findall(r"\$\w+", expression)) <= VARIABLES


def test_nothing_is_divided_by_what_may_be_zero_and_no_quantile_may_be_no_number() -> None:
    for expression in QUERIES:
        assert expression.count(" / ") == expression.count(" > 0)")
        assert expression.count("histogram_quantile") == expression.count(" >= 0")


def test_figures_are_over_the_whole_range_and_lines_never_are() -> None:
    for panel in PANELS:
        for query in panel.queries:
            assert ("$__range]" in query.expression) == (panel.kind is Kind.FIGURE), query.expression


def test_legends_name_only_labels_that_the_query_leaves() -> None:
    for panel in PANELS:
        for query in panel.queries:
            for label in re.findall(r"\{\{(\w+)\}\}", query.legend):
                assert f"by ({label})" in query.expression


def test_a_window_fills_in_every_variable_as_grafana_does() -> None:
    window = Window(range_s=3600, step_s=15, scrape_interval_s=5)
    assert window.rate_interval_s == 20
    assert Window(range_s=60, step_s=1, scrape_interval_s=5).rate_interval_s == 20
    filled = window.filled_in('x{i=~"$proxy"}[$__rate_interval] y[$__range]', {"proxy": ".*"})
    assert filled == 'x{i=~".*"}[20000ms] y[3600000ms]'


@pytest.mark.parametrize(
    ("value", "level"), [(-1.0, Level.BAD), (0.0, Level.DOUBTFUL), (0.19, Level.DOUBTFUL), (0.2, Level.GOOD)]
)
def test_a_value_is_as_good_as_the_last_threshold_that_it_reaches(value: float, level: Level) -> None:
    steps = (Threshold(None, Level.BAD), Threshold(0.0, Level.DOUBTFUL), Threshold(0.2, Level.GOOD))
    panel = Panel("t", "d", Kind.FIGURE, Unit.SHARE, (Query("x", "x"),), steps)
    assert panel.level(value) is level


def test_thresholds_ascend_from_one_without_a_bound() -> None:
    for panel in PANELS:
        bounds = [each.above for each in panel.thresholds]
        assert not bounds or bounds[0] is None
        numbers = [bound for bound in bounds[1:] if bound is not None]
        assert numbers == sorted(numbers)
        assert len(numbers) == max(0, len(bounds) - 1)
