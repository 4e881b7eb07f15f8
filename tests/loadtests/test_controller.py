"""What the controller costs is measured from end to end against the real proxy, and follows from differences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from loadtests.comparison import Interval
from loadtests.controller import Plan, show
from loadtests.controller_loads import (
    FIGURES,
    LIVE,
    LOADS,
    LONG,
    MANY_LONG,
    PASSED,
    RATIO,
    SCORED,
    SHORT,
    Taken,
    candidate_ms,
    doubts,
    figures,
    ratios,
    score_ms,
    token_us,
    wrong_work,
)
from loadtests.generator import Result
from loadtests.rounds import MISSED, UNABLE

ROOT = Path(__file__).resolve().parents[2]


def costs(candidate: float, token: float, score: float) -> dict[str, float]:
    """Return the CPU milliseconds of each load where a request costs 1 ms, and each part as said, in milliseconds."""
    return {
        load.name: 1.0 + load.candidates * (candidate + load.tokens * token) + load.scores * score for load in LOADS
    }


def taken(ms: dict[str, float], target: str = "preamble", number: int = 0, **result: object) -> list[Taken]:
    plain = {"pieces": 64.0, "cpu_agrees": True, "errors": {}, "requests_per_s": 9.0} | result
    rest = {"requests": 9, "seconds": 1.0, "latency_ms": {}, "first_byte_ms": {}, "reconnects": 0}
    return [Taken(number, target, name, Result(cpu_ms=cpu, **rest, **plain)) for name, cpu in ms.items()]  # type: ignore[arg-type]


def test_a_small_run_measures_every_load_and_misses_a_ratio_that_cannot_be_met() -> None:
    sizes = ["--rounds=1", "--requests=4", "--connections=2", "--gap-ms=4", "--max-candidate-ratio=-1000"]
    command = [sys.executable, "-m", "loadtests.controller", "--json", *sizes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == MISSED, done.stderr
    said = json.loads(done.stdout)
    assert {measurement["load"] for measurement in said["measurements"]} == {load.name for load in LOADS}
    for measurement in said["measurements"]:
        assert measurement["result"]["errors"] == {}
        assert measurement["result"]["cpu_ms"] > 0
        if measurement["load"] != SCORED.name:  # on a busy machine a candidate may end before it is scored
            assert measurement["wrong"] == ""
    assert set(said["figures"]) == {figure.name for figure in FIGURES}


def test_what_is_no_checkout_is_refused_with_a_reason() -> None:
    command = [sys.executable, "-m", "loadtests.controller", "--against=/nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == UNABLE
    assert b"/nowhere is no checkout of Preamble" in done.stderr


def test_figures_are_the_differences_between_loads() -> None:
    ms = costs(candidate=0.5, token=0.02, score=0.1)
    assert candidate_ms(ms) == pytest.approx(0.5 + LONG * 0.02)
    assert token_us(ms) == pytest.approx(20.0)
    assert score_ms(ms) == pytest.approx(0.1)
    found = figures(taken(ms), "preamble")
    assert found[RATIO.name].median == pytest.approx((0.5 + LONG * 0.02) / ms[PASSED.name])


def test_a_checkout_that_costs_half_is_half_in_every_load_and_figure() -> None:
    ms = costs(candidate=0.5, token=0.02, score=0.1)
    half = {name: cost / 2 for name, cost in ms.items()}
    beside = ratios([*taken(half), *taken(ms, "before")], "preamble", "before")
    assert {round(ratio.median, 9) for ratio in beside.values()} == {0.5}
    assert len(beside) == len(LOADS) + sum(bool(figure.unit) for figure in FIGURES)


def test_a_round_without_cpu_time_gives_no_figures() -> None:
    with pytest.raises(ValueError, match="round 1 has no CPU time of preamble for scored"):
        figures(taken(costs(1, 1, 1) | {"scored": 0.0}), "preamble")


def test_work_that_was_not_done_is_told() -> None:
    did = {"chats": 8, "scorings": 4, "scored": 30, "abandoned": 0, "most_streams": 8}
    assert wrong_work(SCORED, 1, did) == "30 scored instead of 32"
    assert wrong_work(SCORED, 1, did | {"scored": 32}) == ""


def test_late_scores_are_a_doubt_and_missing_candidates_a_failure() -> None:
    (first, *_, scored, _) = taken(costs(1, 1, 1))
    assert (first.load, scored.load) == (PASSED.name, SCORED.name)
    assert not replace(scored, wrong="30 scored instead of 32").failed
    assert replace(first, wrong="7 chats instead of 8").failed
    assert not first.failed
    assert [each.failed for each in taken({"scored": 1.0}, errors={"status 503": 1})] == [True]


def test_what_makes_a_measurement_doubtful_is_named() -> None:
    ms = costs(1, 0.01, 1)
    assert doubts(taken(ms)) == []
    said = "\n".join(doubts(taken(ms, errors={"status 503": 2}, pieces=20.0, requests_per_s=400.0, cpu_agrees=False)))
    for what in ("2 x status 503", "20.0 pieces for 64 chunks", "core was busy", "accounts of CPU time differ"):
        assert what in said


def test_loads_differ_in_what_they_are_named_for() -> None:
    assert MANY_LONG.fields()["max_tokens"] == LONG > SHORT
    assert "preamble" not in PASSED.fields()
    assert "--stream" in Plan().options(LIVE)
    assert "--stream" not in Plan().options(MANY_LONG)


def test_the_tables_show_loads_figures_and_the_other_checkout() -> None:
    ms = costs(candidate=0.5, token=0.02, score=0.1)
    everything = [*taken(ms), *taken(ms, "before")]
    beside = ratios(everything, "preamble", "before")
    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123  # closed with the test
    with console.file:
        show(console, everything, figures(everything, "preamble"), beside, ["round 1: noise"])
    text = console.export_text()
    assert "best of 8, 63 tokens" in text
    assert "here / there" in text
    assert "20.00" in text
    assert "doubtful: round 1: noise" in text
    assert isinstance(beside[SCORED.name], Interval)
