"""Ways of scoring beside each other, as somebody types it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adaptive.evaluation.study import Design, Prompt, study
from adaptive.policy import ScorerName
from server.cli_selfeval import selfeval_app
from server.eval_compare import PAPER, Way, compare
from server.eval_compare_report import table
from server.eval_errors import EvalError
from server.eval_report import Report
from server.machine import Machine
from tests.adaptive.evaluation.recordings import CHECKPOINTS, SETUP, Made, prompt

MACHINE = Machine("a cpu", 2, 8.0, (), "Linux", "CPython", "0", None)
SELF, READ_OUT, MEAN = ScorerName.SELF_EVALUATION, ScorerName.READ_OUT, ScorerName.MEAN_LOG_PROBABILITY
PROMPTS = 6


def prompts(*, good: float, bad: float, candidates: int = 5) -> list[Prompt]:
    """One reply of each prompt passes. good, bad: what the way of scoring says of it and of the others."""
    made = [Made(good, 1.0, read_out=bad), *[Made(bad, 0.0, read_out=good)] * (candidates - 1)]
    return [prompt(f"p{place}", made) for place in range(PROMPTS)]


def report(
    directory: Path,
    found: Sequence[Prompt],
    scorers: tuple[ScorerName, ...] = (SELF, MEAN),
    *,
    name: str = "sums",
    prompts_digest: str = "same",
    candidates_digest: str = "same",
) -> Path:
    """Write what `preamble eval` writes."""
    n = len(found[0].candidates)
    design = Design(n, CHECKPOINTS, SETUP.max_tokens, scorers, thresholds=(0.5, 0.95), orders=10, resamples=40)
    made = Report(
        dataset=name,
        about="made up",
        asked_prompts=len(found),
        incomplete=0,
        setup=replace(SETUP, root=f"/weights/{directory.name}"),
        seed=0,
        study=study(found, design, min_label_mass=0.01),
        candidates=n * len(found),
        tokens=10 * n * len(found),
        cut=0,
        failures=0,
        sampled_from=0.0,
        sampled_to=1.0,
        prompts_digest=prompts_digest,
        candidates_digest=candidates_digest,
        machine=MACHINE,
    )
    directory.mkdir(parents=True)
    (directory / "report.json").write_text(json.dumps(made.plain()))
    return directory


@pytest.fixture
def right(tmp_path: Path) -> Path:
    return report(tmp_path / "right", prompts(good=0.9, bad=0.2))


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    return report(tmp_path / "wrong", prompts(good=0.1, bad=0.6))


def way(named: Sequence[str | Path], name: str) -> Way:
    (found,) = (each for each in compare([str(each) for each in named]).ways if each.name == name)
    return found


def cells(named: Sequence[str], measure: str) -> list[str]:
    _, lines = table(compare(named))
    (found,) = (line[1:] for line in lines if line[0] == measure)
    return found


def typed(*arguments: str) -> Any:
    return CliRunner().invoke(selfeval_app, ["compare", *arguments])


def test_a_way_has_the_figures_of_its_report(right: Path, wrong: Path) -> None:
    good = way([f"trained={right}", wrong], "trained")
    assert (good.scorer, good.model["root"], good.baseline) == (SELF, "/weights/right", False)
    assert good.one.of("passed").value == pytest.approx(0.2)
    assert good.best.of("passed").value == 1.0
    assert [point.threshold for point in good.adaptive] == [0.5, 0.95]  # by samples
    assert [(point.tokens, point.keep) for point in good.pruned_at(8)] == [(8, 0.5), (8, 0.25)]
    assert good.tokens == 9
    assert good.seconds == pytest.approx(0.1)
    whole = good.pairs["passed"][-1]
    assert (whole.checkpoint, whole.pairs, whole.prompts) == (None, 4 * PROMPTS, PROMPTS)
    assert whole.accuracy is not None
    assert whole.accuracy.value == 1.0


def test_ways_baselines_and_the_paper_stand_beside_each_other(right: Path, wrong: Path) -> None:
    named = [f"trained={right}", f"literal={wrong}"]
    heading, lines = table(compare(named))
    assert heading == ["", "trained", "literal", "mean log-probability", "the paper"]
    assert {len(line) for line in lines} == {5}
    assert cells(named, "passed: best of 5, %") == ["100.0 [100, 100]", "0.0 [0, 0]", "20.0 [20, 20]", ""]
    good = way(named, "trained")
    # Only the right reply reaches 0.5: one to five are drawn until it is there, and all of the gain is, too.
    first = good.adaptive[0]
    assert good.near(PAPER.samples) is first
    samples = f"{first.of('drawn').value:.2f}"
    assert 1 < float(samples) < 5
    share = cells(named, "passed: share of it at about 1.2 samples, %")
    assert share == [f"100 [100, 100] at {samples}", "-", "-", "74 at 1.2"]
    assert cells(named, "passed: samples for 74% of it") == [samples, "-", "-", "1.2"]
    kept = cells(named, "passed: kept, 25% go on at 8, % (stopped)")
    assert kept == ["100 [100, 100] (60)", "-", "100 [100, 100] (60)", "minimal loss (75)"]
    ranked = cells(named, "passed: pairs ranked rightly, whole replies, %")
    assert ranked == ["100.0 [100, 100]", "0.0 [0, 0]", "50.0 [50, 50]", ""]
    assert cells(named, "best of 5: tokens for scores") == ["50", "50", "0", ""]
    assert cells(named, "best of 5: seconds of scores") == ["0.50", "0.50", "0.00", ""]


def test_a_checkpoint_that_judges_in_two_ways_is_two_of_them_and_the_one_after_the_other(tmp_path: Path) -> None:
    both = report(tmp_path / "both", prompts(good=0.9, bad=0.2), (SELF, READ_OUT))
    ways = compare([str(both)]).ways
    assert [each.name for each in ways] == ["both, self-evaluation", "both, read-out", "both, staged"]
    asked, read, staged = ways
    assert staged.best == asked.best
    assert staged.adaptive == asked.adaptive
    whole, cut = staged.pairs["passed"][-1], staged.pairs["passed"][:-1]
    assert (whole, cut) == (asked.pairs["passed"][-1], read.pairs["passed"][:-1])
    assert {point.label for point in staged.pruned} == {point.label for point in asked.pruned}
    assert staged.pruned[0].of("scoring").value < asked.pruned[0].of("scoring").value
    assert 0 == read.tokens < staged.tokens < asked.tokens


def test_where_best_of_n_gains_nothing_it_is_said(right: Path, wrong: Path) -> None:
    lines = compare([str(right), str(wrong)]).heading()
    assert any(line.startswith("wrong: best of 5 gains nothing in passed and reward") for line in lines)
    assert not any(line.startswith("right: ") for line in lines)


def test_other_candidates_of_the_same_prompts_are_compared_and_told(tmp_path: Path, right: Path) -> None:
    other = report(tmp_path / "other", prompts(good=0.9, bad=0.1), candidates_digest="other")
    assert "judged the same candidates" in compare([str(right)]).heading()[1]
    assert "The candidates are not the same" in compare([str(right), str(other)]).heading()[1]


def test_reports_of_other_prompts_or_another_n_are_refused(tmp_path: Path, right: Path) -> None:
    other = report(tmp_path / "prompts", prompts(good=0.9, bad=0.1), prompts_digest="other")
    with pytest.raises(EvalError, match=r"right \(6 prompts\) and .*prompts \(6\) are not of the same prompts"):
        compare([str(right), str(other)])
    fewer = report(tmp_path / "fewer", prompts(good=0.9, bad=0.1, candidates=4))
    with pytest.raises(EvalError, match=r"right has 5 candidates per prompt, and .*fewer 4"):
        compare([str(right), str(fewer)])


def test_what_is_no_report_is_refused_with_the_remedy(tmp_path: Path, right: Path) -> None:
    with pytest.raises(EvalError, match=r"nowhere/report.json cannot be read .* `preamble eval --out DIR`"):
        compare([f"x={tmp_path / 'nowhere'}"])
    file = right / "report.json"
    value = json.loads(file.read_text())
    del value["dataset"]["prompts_digest"]
    file.write_text(json.dumps(value))
    with pytest.raises(EvalError, match="older version; make it anew"):
        compare([str(right)])
    file.write_text("{")
    with pytest.raises(EvalError, match="no JSON"):
        compare([str(right)])


def test_two_of_one_name_are_refused(right: Path) -> None:
    with pytest.raises(EvalError, match="NAME=DIR"):
        compare([str(right), f"right={right}"])


def test_a_report_without_a_way_of_scoring_is_refused(tmp_path: Path) -> None:
    free = report(tmp_path / "free", prompts(good=0.9, bad=0.1), (MEAN,))
    with pytest.raises(EvalError, match="nothing to compare"):
        compare([str(free)])


def test_a_directory_may_have_an_equals_sign_in_its_name(tmp_path: Path) -> None:
    odd = report(tmp_path / "a=b", prompts(good=0.9, bad=0.1))
    assert compare([str(odd)]).ways[0].name == "a=b"


def test_the_comparison_is_printed_and_written(tmp_path: Path, right: Path, wrong: Path) -> None:
    out = tmp_path / "out"
    done = typed(f"trained={right}", f"literal={wrong}", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "sums: 6 prompts, 5 candidates each" in done.output
    assert "trained" in done.output
    assert sorted(path.name for path in out.iterdir()) == [
        "compare-passed.png",
        "compare-reward.png",
        "compare.html",
        "compare.json",
    ]
    for better in ("passed", "reward"):
        assert (out / f"compare-{better}.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "compare.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page
    assert "arXiv 2410.02725" in page
    value = json.loads((out / "compare.json").read_text())
    assert value["paper"] == json.loads(json.dumps(asdict(PAPER)))
    assert [each["name"] for each in value["ways"]] == ["trained", "literal", "mean log-probability"]
    assert value["ways"][0]["best"]["figures"]["share_passed"]["value"] == 1.0
    assert value["ways"][1]["best"]["figures"]["share_passed"] is None
    printed = typed(f"trained={right}", f"literal={wrong}", "--out", str(out), "--json")
    assert json.loads(printed.output) == value
