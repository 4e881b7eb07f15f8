"""`preamble eval`, as somebody types it, with an upstream that says what is written down here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.cli import run
from server.self_evaluation_config import FILE
from tests.server.sampling_upstream import NO, YES, Reply, SamplingUpstream

GOOD, BAD = "the answer is 4", "the answer is 5, no doubt about it"


def judge(text: str) -> float:
    """A model that knows; before it has said the number it does not."""
    return 0.95 if GOOD in text else 0.2 if "is 5" in text else 0.5


@contextlib.contextmanager
def served(upstream: SamplingUpstream) -> Iterator[SamplingUpstream]:
    """Serve from another thread: a command takes the main one, with its signals."""
    stop = threading.Event()
    ready = threading.Event()

    async def serve() -> None:
        async with upstream.serving():
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield upstream
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working directory with a data set of three tasks, without settings in the environment."""
    for name in os.environ:
        if name.startswith("PREAMBLE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"2+2, please ({place})?", "verifier": {"kind": "number", "answer": 4}} for place in range(3)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = run(["eval", "sums.jsonl", "--n", "4", "--max-tokens", "40", "--checkpoints", "8,16", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def by_name(report: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in report["strategies"]}


def test_a_report_is_printed_and_written_and_a_second_run_samples_nothing(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = [Reply(GOOD, gap_s=0), Reply(BAD, gap_s=0), Reply(BAD, gap_s=0), Reply("no idea", gap_s=0)]
    with served(SamplingUpstream(replies, judge)) as upstream:
        status, out, err = evaluate(capsys, "--upstream", upstream.url, "--limit", "2")
        assert status == 0, err
        assert "Sampling 8 of 8 candidates from tiny" in err
        assert "sums: 2 prompts, 4 candidates each. The data set: the file sums.jsonl." in out
        assert "best of n, self-evaluation: n=4" in out
        chats = len(upstream.chats)
        status, again, err = evaluate(capsys, "--upstream", upstream.url, "--limit", "2")
        assert (status, err) == (0, "")
        assert again == out
        assert len(upstream.chats) == chats + 1  # which asks for the fingerprint
        status, _, err = evaluate(capsys, "--upstream", upstream.url)
        assert "Sampling 4 of 12 candidates" in err
    place = directory / "results" / "eval-sums"
    assert sorted(path.name for path in place.iterdir()) == [
        "candidates.jsonl",
        "quality.png",
        "report.html",
        "report.json",
    ]
    assert (place / "quality.png").read_bytes().startswith(b"\x89PNG")
    page = (place / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    report = json.loads((place / "report.json").read_text())
    assert len(report["dataset"].pop("prompts_digest")) == 32
    assert report["dataset"] == {
        "name": "sums",
        "about": "the file sums.jsonl",
        "prompts": 3,
        "asked_prompts": 3,
        "incomplete_prompts": 0,
    }
    assert report["model"]["name"] == "tiny"
    assert report["machine"]["cores"] >= 1
    rows = by_name(report)
    assert rows["one sample"]["passed"]["value"] == 0.25
    assert rows["best of n, self-evaluation: n=4"]["passed"]["value"] == 1.0
    assert rows["best of n, oracle: n=4"]["gain_passed"]["value"] == 1.0
    assert rows["best of n, random pick: n=4"]["passed"]["value"] == 0.25
    assert rows["adaptive, self-evaluation: threshold 0.9"]["drawn"]["value"] < 4
    assert {row["checkpoint"] for row in report["pair_accuracy"]} == {8, 16, None}


def test_a_tiny_label_mass_is_reported_as_one(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replies = [Reply(GOOD, gap_s=0), Reply(BAD, gap_s=0)]
    with served(SamplingUpstream(replies, judge, label_mass=2e-17)) as upstream:
        status, _, err = evaluate(capsys, "--upstream", upstream.url, "--limit", "2")
    assert status == 0, err
    assert "2e-17" in (directory / "results" / "eval-sums" / "report.html").read_text()


def test_a_report_can_be_made_of_what_is_there_without_an_upstream(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(SamplingUpstream([Reply(GOOD, gap_s=0), Reply(BAD, gap_s=0)], judge)) as upstream:
        assert evaluate(capsys, "--upstream", upstream.url, "--limit", "2", "--cache", "kept.jsonl")[0] == 0
    lines = (directory / "kept.jsonl").read_text().splitlines(keepends=True)
    (directory / "kept.jsonl").write_text("".join(lines[:-1]) + lines[-1][:50])  # killed while it wrote the last one
    arguments = ("--report-only", "--cache", "kept.jsonl", "--limit", "2", "--json", "--thresholds", "0.3,0.6")
    status, out, err = evaluate(capsys, *arguments)
    assert status == 0, err
    assert "Ignored: 1 lines" in err
    report = json.loads(out)
    assert report["dataset"]["prompts"] == 1
    assert report["dataset"]["incomplete_prompts"] == 1
    assert report["study"]["thresholds"] == {"self_evaluation": [0.3, 0.6]}


def test_another_way_of_scoring_is_studied_on_the_same_candidates_and_goes_on_where_it_was(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = [Reply(GOOD, gap_s=0), Reply(BAD, gap_s=0), Reply(BAD, gap_s=0), Reply("no idea", gap_s=0)]
    with served(SamplingUpstream(replies, lambda _: 0.5)) as upstream:
        assert evaluate(capsys, "--upstream", upstream.url, "--temperature", "0.6")[0] == 0
    source = directory / "results" / "eval-sums" / "candidates.jsonl"
    again = ("--rescore", str(source), "--out", "trained", "--scorers", "self_evaluation")
    with served(SamplingUpstream([Reply("never")], judge, root="/trained")) as upstream:
        status, _, err = evaluate(capsys, "--upstream", upstream.url, *again, "--limit", "2")
        assert status == 0, err
        assert f"Scoring 8 of 8 candidates of {source} by tiny; into trained/candidates.jsonl" in err
        status, out, err = evaluate(capsys, "--upstream", upstream.url, *again)
        assert status == 0, err
        assert "Scoring 4 of 12 candidates" in err
        assert "The candidates were sampled by tiny, and only scored by tiny (/trained)." in out
        assert {chat["max_tokens"] for chat in upstream.chats} == {1}  # which ask for the fingerprint
        status, again_out, err = evaluate(capsys, "--upstream", upstream.url, *again)
        assert (status, again_out, err) == (0, out, "")
    plain, scored = (
        json.loads((directory / place / "report.json").read_text()) for place in ("results/eval-sums", "trained")
    )
    assert scored["sampling"]["candidates_digest"] == plain["sampling"]["candidates_digest"]
    assert scored["dataset"]["prompts_digest"] == plain["dataset"]["prompts_digest"]
    assert scored["sampling"]["scorers"] == ["self_evaluation"]
    assert scored["sampling"]["temperature"] == 0.6
    assert scored["sampling"]["sampled_by"]["root"] is None
    row = by_name(scored)["best of n, self-evaluation: n=4"]
    assert (row["passed"]["value"], row["share_passed"]["value"]) == (1.0, 1.0)
    assert by_name(plain)["best of n, self-evaluation: n=4"]["share_passed"] is None
    status, out, _ = evaluate(capsys, "--report-only", "--cache", "trained/candidates.jsonl", "--json")
    assert status == 0
    assert json.loads(out)["sampling"]["scorers"] == ["self_evaluation"]  # those who judged


def test_staged_is_asked_for_by_name_and_recorded_as_what_it_consists_of(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(SamplingUpstream([Reply(GOOD, gap_s=0), Reply(BAD, gap_s=0)], judge)) as upstream:
        asked = ("--upstream", upstream.url, "--scorers", "staged", "--json")
        status, _, err = evaluate(capsys, *asked)
        assert status == 1
        assert "no labels are known: leave it, and staged, out of --scorers" in " ".join(err.split())
        read_out = {"format": 1, "read_out": {"win_or_tie_ids": [NO], "loss_ids": [YES]}}
        (directory / FILE).write_text(json.dumps(read_out))
        monkeypatch.setenv("PREAMBLE_SELF_EVALUATION", str(directory))
        status, out, err = evaluate(capsys, *asked)
        assert status == 0, err
        report = json.loads(out)
        assert report["sampling"]["scorers"] == ["self_evaluation", "read_out"]
        row = by_name(report)["pruned by read-out, chosen by self-evaluation: 50% at 8"]
        assert (row["policy"]["scorer"], row["policy"]["n_max"]) == ("staged", 4)
        asking = by_name(report)["pruned, self-evaluation: 50% at 8"]
        assert 0 < row["scoring"]["value"] < asking["scoring"]["value"]
    status, out, err = evaluate(capsys, "--report-only", "--scorers", "staged", "--json")
    assert (status, json.loads(out)["strategies"]) == (0, report["strategies"]), err


def test_where_a_scorer_gains_nothing_the_report_says_so(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(SamplingUpstream([Reply(GOOD, gap_s=0), Reply(BAD, gap_s=0)], lambda _: 0.5)) as upstream:
        status, out, err = evaluate(capsys, "--upstream", upstream.url)
    assert status == 0, err
    assert "best of n, self-evaluation: n=4 gains +0.0 [+0, +0] points of passed over one sample: no share" in out
    page = (directory / "results" / "eval-sums" / "report.html").read_text()
    assert "best of n, self-evaluation: n=4 gains +0.0 [+0, +0] points of passed" in page


def test_candidates_that_are_not_there_cannot_be_scored_again(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(SamplingUpstream([Reply(GOOD, gap_s=0)])) as upstream:
        (directory / "empty.jsonl").write_text("")
        status, _, err = evaluate(capsys, "--upstream", upstream.url, "--rescore", "empty.jsonl", "--out", "x")
        assert (status, "empty.jsonl has no candidates that can be scored again" in err) == (1, True)
        evaluate(capsys, "--upstream", upstream.url, "--cache", "full.jsonl")
        arguments = ("--rescore", "full.jsonl", "--out", "x", "--n", "5")
        status, _, err = evaluate(capsys, "--upstream", upstream.url, *arguments)
        assert status == 1
        assert "full.jsonl has no prompt of this data set with 5 candidates of tiny and seed 0. Give --n" in err


def test_a_corrected_verifier_needs_no_new_sampling(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(SamplingUpstream([Reply(BAD, gap_s=0)])) as upstream:
        evaluate(capsys, "--upstream", upstream.url)
    rows = (directory / "sums.jsonl").read_text()
    (directory / "sums.jsonl").write_text(rows.replace('"answer": 4', '"answer": 5'))
    _, out, _ = evaluate(capsys, "--report-only", "--json")
    assert by_name(json.loads(out))["one sample"]["passed"]["value"] == 1.0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_goes_on_where_it_was(
    directory: Path, capsys: pytest.CaptureFixture[str], number: int, status: int
) -> None:
    kept = directory / "results" / "eval-sums" / "candidates.jsonl"
    replies = [Reply(GOOD, gap_s=0), Reply("x" * 39, gap_s=0.5)]
    with served(SamplingUpstream(replies, judge)) as upstream:
        command = [sys.executable, "-m", "server", "eval", "sums.jsonl", "--n", "4", "--max-tokens", "40"]
        command += ["--checkpoints", "8,16", "--upstream", upstream.url]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            while not (kept.exists() and kept.read_bytes().count(b"\n") == 6):  # every other one is slow
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(number)
            _, err = process.communicate(timeout=20)
        assert process.returncode == status
        assert ("6 candidates are kept" in err) == (number != signal.SIGKILL)
        upstream.replies = [Reply(BAD, gap_s=0)]
        found, _, err = evaluate(capsys, "--upstream", upstream.url)
        assert found == 0, err
        assert "Sampling 6 of 12 candidates" in err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--report-only",), 1, "has no candidates to report on"),
        (("--upstream", "http://127.0.0.1:9"), 1, "No upstream answers at http://127.0.0.1:9"),
        (("--checkpoints", "8,x"), 2, "write whole numbers of tokens"),
        (("--checkpoints", "0"), 2, "write whole numbers of tokens"),
        (("--thresholds", "0.5,1.5"), 2, "write numbers from 0 to 1"),
        (("--upstream", "nowhere"), 2, "upstream"),
        (("--scorers", "self_evaluation,magic"), 2, "'magic' is none of self_evaluation, read_out"),
        (("--rescore", "sums.jsonl"), 2, "needs --out DIR"),
        (("--rescore", "sums.jsonl", "--out", "x", "--report-only"), 2, "leave out --report-only"),
        (("--rescore", "gone.jsonl", "--out", "x"), 2, "gone.jsonl is no file"),
    ],
)
def test_what_is_wrong_is_said_with_its_remedy(
    directory: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], status: int, said: str
) -> None:
    found, out, err = evaluate(capsys, *arguments)
    assert (found, out) == (status, "")
    assert said in " ".join(err.split())


def test_a_wrong_data_set_is_named_with_its_line(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "sums.jsonl").write_text('{"prompt": "x"}')
    status, _, err = evaluate(capsys)
    assert status == 1
    assert "sums.jsonl, line 1: verifier is missing" in err
