"""The report: what it asks Prometheus, what it makes of the answers, and how it writes numbers."""

from __future__ import annotations

import json
import math
from datetime import datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.board import BOARD
from server.panels import Kind, Level, Unit
from server.prometheus import Prometheus, PrometheusError
from server.savings_report import SavingsReport, as_plain, ask, histogram_cells
from server.savings_text import axis_number, clock_marks, number, span
from tests.server.scripted_prometheus import ScriptedPrometheus

START, END = 1_790_000_000.0, 1_790_003_600.0


def report(scripted: ScriptedPrometheus, start: float = START, end: float = END) -> SavingsReport:
    with Prometheus("http://prometheus:9090/", scripted.transport) as prometheus:
        return ask(BOARD, prometheus, start, end, 15.0)


def test_every_query_is_asked_once_over_the_span_with_every_variable_filled_in() -> None:
    scripted = ScriptedPrometheus()
    report(scripted)
    asked = scripted.asked[1:]
    queries = [query for panel in BOARD.panels() for query in panel.queries]
    assert len(asked) == len(queries)
    for form in asked:
        if form["path"] == "/api/v1/query":
            assert float(form["time"]) == END
            assert "[3600000ms]" in form["query"]
        else:
            assert (float(form["start"]), float(form["end"]), float(form["step"])) == (START, END, 15.0)
    assert any("[60000ms]" in form["query"] for form in asked)


def test_a_long_span_is_asked_for_in_fewer_points_than_samples() -> None:
    scripted = ScriptedPrometheus()
    report(scripted, END - 7 * 86400)
    steps = {float(form["step"]) for form in scripted.asked if "step" in form}
    assert steps == {7 * 86400 / 240}


def test_a_time_without_a_proxy_is_an_error_that_says_what_to_look_at() -> None:
    with pytest.raises(
        PrometheusError, match=r"no sample of preamble_spent_tokens_total from 2026.*prometheus:9090/targets"
    ):
        report(ScriptedPrometheus(nothing=("count_over_time",)))


def test_figures_carry_their_level_and_the_number_of_samples_behind_them() -> None:
    scripted = ScriptedPrometheus(values={"round(": 12.0, "preamble_regret_sum": 0.2})
    told = {(figure.panel.title, figure.query.legend): figure for figure in report(scripted).figures()}
    regret = told["Regret, measured", "mean"]
    assert (regret.value, regret.level) == (0.2, Level.BAD)
    samples = told["Regret, measured", "samples"]
    assert (samples.value, samples.level) == (12.0, None)


def test_what_found_nothing_has_no_value_and_what_is_no_number_is_nothing() -> None:
    scripted = ScriptedPrometheus(nothing=("preamble_exploration",), values={"preamble_added_latency": "NaN"})
    plain = as_plain(report(scripted))
    values = {figure["title"]: figure["value"] for figure in plain["figures"]}
    assert (values["Saved share, measured"], values["Added latency"]) == (None, None)
    (panel,) = (each for each in plain["panels"] if each["title"] == "Share saved, measured")
    assert panel["series"] == []
    json.dumps(plain, allow_nan=False)


def test_plain_values_hold_every_panel_with_its_series_by_name() -> None:
    plain = as_plain(report(ScriptedPrometheus()))
    assert {each["title"] for each in plain["panels"]} == {
        panel.title for panel in BOARD.panels() if panel.kind is not Kind.FIGURE
    }
    (fates,) = (each for each in plain["panels"] if each["title"] == "Tokens by fate")
    assert [series["legend"] for series in fates["series"]] == ["one", "two"]
    assert fates["series"][1]["points"][0] == [START, 0.5]
    assert (plain["start"], plain["end"]) == ("2026-09-21T14:13:20+00:00", "2026-09-21T15:13:20+00:00")


def test_a_heatmap_counts_what_lies_in_each_bucket_alone() -> None:
    (heatmap,) = (each for each in report(ScriptedPrometheus()).panels() if each.panel.kind is Kind.HEATMAP)
    times, bounds, counts = histogram_cells(heatmap)
    assert bounds == ("0.5", "0.9", "1.0")  # nothing is above 1, so the bucket without a bound is left out
    assert len(times) == 241
    assert [row[0] for row in counts] == [0.0, 0.25, 0.25]


def test_nobody_listening_is_an_error_with_the_remedy() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused", request=request)

    with (
        Prometheus("http://prometheus:9090", httpx.MockTransport(refuse)) as prometheus,
        pytest.raises(PrometheusError, match=r"No Prometheus answers at http://prometheus:9090 \(Connection refused\)"),
    ):
        prometheus.at("up", END)


@pytest.mark.parametrize("answer", [httpx.Response(404, text="not found"), httpx.Response(200, json=["surprise"])])
def test_another_server_is_named_as_such(answer: httpx.Response) -> None:
    with (
        Prometheus("http://grafana:3000", httpx.MockTransport(lambda _: answer)) as prometheus,
        pytest.raises(PrometheusError, match="is no Prometheus"),
    ):
        prometheus.at("up", END)


def test_a_query_that_prometheus_refuses_is_told_in_its_words() -> None:
    with (
        Prometheus("http://prometheus:9090", ScriptedPrometheus().transport) as prometheus,
        pytest.raises(PrometheusError, match=r"refuses the query up\[\$x\]: unexpected character"),
    ):
        prometheus.at("up[$x]", END)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, Unit.SHARE, "no data"),
        (0.4567, Unit.SHARE, "45.7 %"),
        (-3.413, Unit.SHARE, "-341 %"),
        (0.0, Unit.SECONDS, "0 s"),
        (0.0042, Unit.SECONDS, "4.2 ms"),
        (17.54, Unit.SECONDS, "17.5 s"),
        (150.0, Unit.SECONDS, "2.5 min"),
        (1234.5, Unit.TOKENS_PER_S, "1,234 tokens/s"),
        (45_600.0, Unit.TOKENS_PER_S, "45.6 k tokens/s"),
        (2_500_000.0, Unit.TOKENS_PER_S, "2.5 M tokens/s"),
        (0.0321, Unit.SCORE, "0.0321"),
        (12.0, Unit.SAMPLES, "12"),
        (2.0, Unit.CANDIDATES, "2"),
        (0.5, Unit.PER_MINUTE, "0.5 per minute"),
    ],
)
def test_numbers_are_written_with_three_figures_and_their_unit(value: float | None, unit: Unit, text: str) -> None:
    assert number(value, unit) == text


@given(st.floats(-1e12, 1e12, allow_subnormal=False), st.sampled_from(Unit))
def test_any_number_is_short_and_has_no_exponent(value: float, unit: Unit) -> None:
    text = axis_number(value, unit)
    assert "e" not in text.removesuffix("s")
    assert text.count(".") <= 1


def test_a_span_names_its_zone_and_the_day_once() -> None:
    assert span(START, START + 3600).count("2026") == 1
    assert span(START, START + 2 * 86400).count("2026") == 2
    assert span(START, START + 60).count(":") == 4


@given(st.floats(1e9, 2e9), st.floats(math.log(2), math.log(5e7)))
def test_marks_of_time_are_few_inside_the_span_and_no_two_are_written_alike(start: float, logarithm: float) -> None:
    end = start + math.exp(logarithm)
    marks = clock_marks(start, end)
    assert 1 <= len(marks) <= 6
    assert all(start <= time <= end for time, _ in marks)
    assert len({text for _, text in marks}) == len(marks)


@pytest.mark.parametrize(
    ("span_s", "texts"),
    [
        (7.0, ["14:13:20", "14:13:22", "14:13:24", "14:13:26"]),
        (200.0, ["14:14", "14:15", "14:16"]),
        (3600.0, ["14:15", "14:30", "14:45", "15:00"]),
        (2 * 86400.0, ["09-22 00:00", "09-22 12:00", "09-23 00:00", "09-23 12:00"]),
        (5 * 86400.0, ["09-22", "09-23", "09-24", "09-25", "09-26"]),
    ],
)
def test_marks_of_time_are_round(span_s: float, texts: list[str]) -> None:
    offset = datetime.fromtimestamp(START).astimezone().utcoffset()
    assert offset is not None
    start = START - offset.total_seconds()  # 14:13:20 here, wherever that is
    assert [text for _, text in clock_marks(start, start + span_s)] == texts
