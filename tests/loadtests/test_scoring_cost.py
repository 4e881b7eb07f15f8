"""What scores cost the engine is measured from end to end against a fake one, and follows from pairs of runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from loadtests.rounds import UNABLE
from loadtests.scoring_cost import Plan, show
from loadtests.scoring_runs import Run, costs
from loadtests.targets import fake_upstream

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = Run(0, scored=False, took_s=2.0, candidates_s=8.0, scoring_s=0.0, computed_tokens=100.0)
SCORED = Run(
    0, scored=True, took_s=3.0, candidates_s=9.0, scoring_s=1.0,
    scores=8, calls=2, scored_tokens=1600, told_tokens=240, computed_tokens=420.0,
)  # fmt: skip
PAIRS = [replace(run, prompt=prompt) for prompt in range(3) for run in (WITHOUT, SCORED)]


def measured(url: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "loadtests.scoring_cost", "--upstream", url, "--json"]
    command += ["--prompts=2", "--candidates=3", "--tokens=20", "--checkpoint=8"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)


def test_a_small_run_measures_with_scores_and_without(tmp_path: Path) -> None:
    with fake_upstream(tmp_path, gap_s=0.005) as upstream:
        done = measured(upstream.requests_url.removesuffix("/v1/chat/completions"))
    assert done.returncode == 0, done.stderr.decode()
    (found,) = json.loads(done.stdout)["costs"]
    # All at their end; at the checkpoint too, unless the machine was so busy that they had ended before.
    assert 2 * 3 <= found["scores"] <= 2 * 3 * 2
    assert found["prefix_caching"] is True
    assert found["computed_tokens"] is None  # the fake upstream has no such counter
    assert 0 < found["share"]["median"] < 1
    assert found["extra_time"]["median"] > 0


def test_an_upstream_that_is_not_there_is_told_and_nothing_is_measured() -> None:
    done = measured("http://127.0.0.1:9")
    assert done.returncode == UNABLE
    assert b"does not list a model" in done.stderr


def test_costs_compare_the_two_runs_of_a_prompt() -> None:
    found = costs(PAIRS, prefix_caching=True, block_size=32)
    assert (found.scores, found.calls) == (24, 6)
    assert found.share.median == pytest.approx(0.1)
    assert found.extra_time.median == pytest.approx(1.5)
    assert found.call_ms == pytest.approx(500)
    assert (found.sequence_tokens, found.told_tokens) == (200, 30)
    assert found.computed_tokens == pytest.approx((420 - 100) / 8)


def test_without_scores_or_without_the_other_run_there_are_no_costs() -> None:
    for runs in ([WITHOUT], [SCORED], [WITHOUT, replace(SCORED, prompt=1)]):
        with pytest.raises(ValueError, match="no scores to measure"):
            costs(runs, prefix_caching=None, block_size=None)


def test_the_table_has_a_column_for_each_cache_and_says_what_is_not_known() -> None:
    on = costs(PAIRS, prefix_caching=True, block_size=32)
    unknown = replace(on, prefix_caching=None, block_size=None, computed_tokens=None)
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123  # closed with the test
    with console.file:
        show(console, [on, unknown], Plan(prompts=3))
    text = console.export_text()
    assert "prefix cache on" in text
    assert "prefix cache unknown" in text
    assert "10.0% (10.0% to 10.0%)" in text
    assert "40" in text
