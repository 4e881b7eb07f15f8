"""The report as a picture and as a page, and the command that writes them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from server.board import BOARD
from server.cli import run
from server.panels import Kind
from server.prometheus import Prometheus
from server.savings_page import page
from server.savings_plots import panel_svg, write_png
from server.savings_report import SavingsReport, ask
from tests.server.scripted_prometheus import ScriptedPrometheus, listening

START, END = 1_790_000_000.0, 1_790_003_600.0
PLOTS = [panel for panel in BOARD.panels() if panel.kind is not Kind.FIGURE]


def report(scripted: ScriptedPrometheus, span_s: float = 3600.0) -> SavingsReport:
    with Prometheus("http://prometheus:9090", scripted.transport) as prometheus:
        return ask(BOARD, prometheus, END - span_s, END, 60.0)


@pytest.fixture
def prometheus() -> Iterator[str]:
    with listening(ScriptedPrometheus(values={"round(": 12.0})) as url:
        yield url


def test_the_page_needs_nothing_else_and_has_every_panel_with_its_meaning() -> None:
    text = page(report(ScriptedPrometheus(values={"round(": 12.0, "increase(preamble_spent": -0.5})))
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    assert text.count("data:image/svg+xml;base64,") == len(PLOTS)
    for panel in BOARD.panels():
        assert f"<h3>{panel.title.replace(chr(39), '&#x27;')}</h3>" in text
    assert "explored requests: <b>12</b>" in text
    assert "color: #c62828" in text  # a negative share is bad
    assert BOARD.title in text


def test_what_comes_from_outside_is_escaped() -> None:
    scripted = ScriptedPrometheus()
    with Prometheus("http://prometheus:9090/<script>", scripted.transport) as prometheus:
        text = page(ask(replace(BOARD, rows=BOARD.rows[:1]), prometheus, START, END, 600.0))
    assert "<script>" not in text


@pytest.mark.parametrize(
    "scripted",
    [
        ScriptedPrometheus(nothing=("preamble_candidate", "preamble_win", "preamble_prune")),
        ScriptedPrometheus(values={"": 0.0}),
        ScriptedPrometheus(gap=(START + 600, START + 1800)),
    ],
    ids=["nothing", "zeros", "gap"],
)
@pytest.mark.parametrize("title", ["Tokens by fate", "Win-or-tie probability, distribution", "Share saved"])
def test_a_panel_of_nothing_of_zeros_or_with_a_gap_can_be_drawn(scripted: ScriptedPrometheus, title: str) -> None:
    answered = report(scripted)
    (panel,) = (each for each in answered.panels() if each.panel.title == title)
    assert panel_svg(panel, answered, 5.0).lstrip().startswith("<?xml")


@pytest.mark.parametrize("span_s", [5.0, 60.0, 86400.0, 2 * 86400.0, 30 * 86400.0])
def test_any_span_can_be_drawn(span_s: float) -> None:
    answered = report(ScriptedPrometheus(), span_s)
    for panel in answered.panels():
        if panel.panel.title in {"Tokens by fate", "Share saved"}:
            panel_svg(panel, answered, 5.0)


def test_the_same_answers_give_the_same_picture() -> None:
    answered = report(ScriptedPrometheus())
    (panel,) = (each for each in answered.panels() if each.panel.title == "Share saved")
    assert panel_svg(panel, answered, 5.0) == panel_svg(panel, answered, 5.0)


def test_the_command_prints_figures_and_writes_a_file(
    prometheus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "savings.json"
    assert run(["report", "savings", "--prometheus", prometheus, "--since", "30m", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert re.search(r"Candidates per request +mean +0\.25", said.out)
    assert re.search(r"samples +12", said.out)
    assert f"Written: {out}" in said.err.replace("\n", "")
    assert json.loads(out.read_text())["title"] == BOARD.title


def test_a_picture_grows_with_the_rows_of_the_board(tmp_path: Path) -> None:
    """The live test draws all of it."""
    out = tmp_path / "savings.png"
    with Prometheus("http://prometheus:9090", ScriptedPrometheus().transport) as prometheus:
        write_png(ask(replace(BOARD, rows=(BOARD.rows[0], BOARD.rows[5])), prometheus, START, END, 60.0), out)
    head = out.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    width, height = (int.from_bytes(head[at : at + 4]) for at in (16, 20))
    assert (width, height) == (1760, 632)


def test_json_is_printed_alone_and_can_be_written_too(
    prometheus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "savings.json"
    times = ["--start", "2026-09-21T14:00:00+00:00", "--end", "1790003600"]
    assert run(["report", "savings", "--prometheus", prometheus, *times, "--json", "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["start"] == "2026-09-21T14:00:00+00:00"
    assert told == json.loads(out.read_text())


def test_without_a_file_it_says_how_to_get_the_panels(prometheus: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "savings", "--prometheus", prometheus]) == 0
    assert "--out savings.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--since", "soon"], "'soon' is no duration"),
        (["--since", "0.1s"], "of a second or more"),
        (["--start", "yesterday"], "'yesterday' is no time"),
        (["--start", "2026-13-01"], "is no time"),
        (["--start", "2999-01-01"], "must be before the end"),
        (["--since", "1h", "--start", "2026-01-01"], "not both"),
        (["--start", "2026-01-02", "--end", "2026-01-01"], "must be before the end"),
        (["--scrape-interval", "often"], "'often' is no duration"),
        (["--prometheus", "localhost:9090"], "is no base URL"),
        (["--out", "savings.pdf"], "must end in one of .png, .html, .json"),
    ],
)
def test_a_wrong_option_is_named_with_status_2(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", "savings", *options]) == 2
    told = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    assert said in told


def test_a_prometheus_that_is_not_there_is_status_1_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "savings.html"
    assert run(["report", "savings", "--prometheus", "http://127.0.0.1:9", "--out", str(out)]) == 1
    assert "No Prometheus answers at http://127.0.0.1:9" in capsys.readouterr().err
    assert not out.exists()


def test_a_range_without_samples_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with listening(ScriptedPrometheus(nothing=("count_over_time",))) as url:
        assert run(["report", "savings", "--prometheus", url]) == 1
    assert "has no sample of preamble_spent_tokens_total" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_status_1(prometheus: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "savings", "--prometheus", prometheus, "--out", "/nowhere/savings.json"]) == 1
    assert "/nowhere/savings.json cannot be written" in capsys.readouterr().err


def test_the_command_line_loads_neither_matplotlib_nor_httpx_until_it_draws() -> None:
    program = "import sys, server.cli; print(sorted({'matplotlib', 'httpx'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
