"""The demo's sampled steps, in front of a scripted upstream, and what it says of how the model judges itself."""

from __future__ import annotations

import asyncio
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adaptive.evaluation.families import BENCHMARK
from adaptive.evaluation.tasks import Task
from adaptive.evaluation.verifiers import build
from adaptive.splits import Split, split_of
from server.demo import Demo
from server.demo_judgement import judgement_of
from server.demo_tasks import Tried, short_tasks, tried
from server.self_evaluation_config import FILE
from tests.server.running import running_proxy
from tests.server.sampling_upstream import NO, YES, Reply, SamplingUpstream

FLAT = {
    "features": ["log_odds"],
    "buckets": [
        {"up_to": 48, "weights": [1.0], "bias": 0.0, "knots": [[-9.0, 0.0], [9.0, 1.0]]},
        {"final": True, "weights": [1.0], "bias": 0.0, "knots": [[-9.0, 0.0], [9.0, 1.0]]},
    ],
}
TRAINED: dict[str, Any] = {
    "format": 1,
    "new_ids_from": 1_000_000,
    "suffix_ids": [1_000_000],
    "win_or_tie_ids": [NO],
    "loss_ids": [YES],
}


@pytest.mark.parametrize(
    ("written", "said", "calibrated"),
    [
        (None, "asked the literal question. Its scores are not calibrated", False),
        (TRAINED, "Trained self-evaluation is in force, not calibrated. Its scores are not", False),
        (TRAINED | {"calibration": FLAT}, "Trained self-evaluation is in force, calibrated. A score is P(win", True),
        ({"format": 1, "calibration": FLAT}, f"asked by {FILE}, calibrated. A score is P(win", True),
        ({"format": 3}, "format is 3; this version of Preamble reads 1. The model is asked the literal", False),
    ],
)
def test_it_says_what_the_model_is_asked_by(tmp_path: Path, written: Any, said: str, calibrated: bool) -> None:
    if written is not None:
        (tmp_path / FILE).write_text(json.dumps(written))
    judgement = judgement_of("m", str(tmp_path))
    assert said in judgement.text
    assert judgement.calibrated is calibrated


@pytest.mark.parametrize(("calibrated", "scorer"), [(True, "read_out"), (False, "self_evaluation")])
def test_a_read_out_is_used_where_its_scores_are_probabilities(tmp_path: Path, calibrated: bool, scorer: str) -> None:
    read_out = {"win_or_tie_ids": [NO], "loss_ids": [YES]} | ({"calibration": FLAT} if calibrated else {})
    (tmp_path / FILE).write_text(json.dumps(TRAINED | {"read_out": read_out}))
    assert judgement_of("m", str(tmp_path)).scorer == scorer


@pytest.mark.parametrize("root", [None, 7, "org/model"])
def test_a_model_that_lies_elsewhere_is_asked_the_literal_question(root: object) -> None:
    assert "literal question" in judgement_of("m", root).text


async def shown(tmp_path: Path, share: float, written: Any) -> str:
    """Return what the demo's sampled steps print where the model gives every reply that share."""
    (tmp_path / FILE).write_text(json.dumps(written))
    upstream = SamplingUpstream([Reply("a" * 60, gap_s=0.008)], lambda _: share, root=str(tmp_path))
    text = io.StringIO()
    async with upstream.serving(), running_proxy(upstream.url, tmp_path / "data", auth="auto", admin_key=None) as proxy:

        def walk() -> None:
            demo = Demo(proxy.url, Console(file=text, width=120))
            client = demo._client("grace")
            demo._models(client)
            demo._sampled(client)
            demo._adaptive(client)

        await asyncio.to_thread(walk)
    return text.getvalue()


async def test_calibrated_scores_end_adaptive_sampling_early_and_the_saving_is_told(tmp_path: Path) -> None:
    out = await shown(tmp_path, 0.9995, TRAINED | {"calibration": FLAT})
    best_of_4, _, adaptive = out.partition("As many as are needed")
    assert "Trained self-evaluation is in force, calibrated." in best_of_4
    assert "3 of 4 stopped early." in best_of_4
    assert "Sampling stops at the first reply with a score of 0.9 or more.\n" in adaptive
    assert "1.0 candidates were drawn on average, of eight that there might have been." in adaptive
    assert " fewer than best of eight would take (estimated)." in adaptive


async def test_a_calibrated_read_out_decides_for_no_tokens_at_all(tmp_path: Path) -> None:
    read_out = {"win_or_tie_ids": [NO], "loss_ids": [YES], "calibration": FLAT}
    out = await shown(tmp_path, 0.9995, TRAINED | {"calibration": FLAT, "read_out": read_out})
    best_of_4, _, adaptive = out.partition("As many as are needed")
    assert "comes with every token of a reply and costs nothing: the read-out." in " ".join(best_of_4.split())
    assert "Sampling stops at the first reply with a score of 0.9 or more by the read-out.\n" in adaptive
    assert "1.0 candidates were drawn on average" in adaptive
    asked = TRAINED | {"calibration": FLAT}
    spent = [
        int(re.findall(r"^(\d+) tokens, those of scoring", each, re.MULTILINE)[0])
        for each in (adaptive, await shown(tmp_path, 0.9995, asked))
    ]
    assert spent[0] < spent[1]


async def test_without_calibration_a_threshold_is_said_to_be_no_probability(tmp_path: Path) -> None:
    out = await shown(tmp_path, 0.1, TRAINED)
    adaptive = out.partition("As many as are needed")[2]
    assert "a score of 0.9 or more, which without calibration is no probability." in adaptive
    assert "8.0 candidates were drawn on average" in adaptive
    assert " more than best of eight would take (estimated)." in adaptive


def test_the_tasks_are_one_of_each_kind_and_nothing_was_trained_on_them() -> None:
    tasks = short_tasks()
    assert [task.family for task in tasks] == sorted({task.family for task in tasks}, key=BENCHMARK.index)
    assert len(tasks) == len(BENCHMARK)
    assert all(split_of(task.messages) is Split.TEST for task in tasks)


def test_a_task_is_judged_by_its_first_candidate_and_by_the_answer() -> None:
    task = Task("a", (), build({"kind": "exact", "answer": "4"}), "sums")
    told = {"candidates": {"drawn": 2}, "tokens": {"generated": 7, "scored": 3, "saved": 1.5}}
    trace = {"candidates": [{"index": 1, "text": "4"}, {"index": 0, "text": "5"}]}
    assert tried([task], lambda _: ("4", told, trace)) == [
        Tried("sums", first=False, returned=True, drawn=2, spent=10, saved=1.5)
    ]
