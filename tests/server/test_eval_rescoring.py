"""Scoring candidates that are recorded already, by an upstream over real sockets."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adaptive.clock import LoopClock
from adaptive.evaluation.recording import RecordedScore, Recording, Setup
from adaptive.evaluation.tasks import Task
from adaptive.evaluation.verifiers import Verdict
from adaptive.policy import ScorerName
from server.eval_errors import EvalError
from server.eval_rescoring import Rescorer, candidates_of
from server.eval_sampling import Sampled, Sampler, connect, jobs_of, record
from server.self_evaluation_config import FILE
from server.upstream import Timeouts, UpstreamClient
from tests.server.sampling_upstream import NO, YES, Reply, SamplingUpstream

TASKS = tuple(
    Task(name, ({"role": "user", "content": f"say {name}"},), lambda _: Verdict(1.0, passed=True)) for name in "ab"
)
REPLIES = [Reply("abcdefghij"), Reply("abc"), Reply("x" * 30)]  # the last is cut
FREE = ("mean_log_probability", "read_out")
# Asked in the original's own words, with a read-out besides.
BOTH = {
    "format": 1,
    "question": "Would you do better?",
    "win_or_tie": "No",
    "loss": "Yes",
    "read_out": {"win_or_tie_ids": [NO], "loss_ids": [YES]},
}
_CURVE = {"bias": 0.5, "knots": [[-9, 0.0], [9, 1.0]]}
CALIBRATION = {
    "features": ["log_odds", "mean_log_probability", "log_tokens"],
    "buckets": [{"up_to": 9, "weights": [1, 2, 0.1], **_CURVE}, {"final": True, "weights": [2, 1, 0.2], **_CURVE}],
}
CALIBRATED = BOTH | {
    "calibration": CALIBRATION,
    "read_out": {"win_or_tie_ids": [NO], "loss_ids": [YES], "calibration": CALIBRATION},
}


def judge(text: str) -> float:
    """Say something else of every beginning, in a question's words or without."""
    turns = text.split("\2assistant\n")
    asked = "better" in turns[-2] + turns[-1]
    return 0.1 + (len(turns[1].rstrip("\3")) % 13 + asked) / 20


@contextlib.asynccontextmanager
async def connected(upstream: SamplingUpstream, **more: Any) -> AsyncIterator[Sampled]:
    async with upstream.serving():
        client = UpstreamClient(upstream.url, timeouts=Timeouts(5, 5, 5, 20))
        try:
            settings: dict[str, Any] = {"temperature": 0.8, "max_tokens": 20, "checkpoints": (4, 8)}
            yield await connect(client, None, **(settings | more))
        finally:
            await client.aclose()


async def sampled_by(upstream: SamplingUpstream, **more: Any) -> dict[str, Recording]:
    kept: list[Recording] = []
    lost: list[str] = []
    async with connected(upstream, **more) as sampled:
        jobs = jobs_of(TASKS, 3, 0, sampled.setup)
        sample = Sampler(sampled, LoopClock()).sample
        await record(sample, jobs, clock=LoopClock(), concurrency=4, keep=kept.append, lose=lost.append)
    assert (len(kept), lost) == (6, [])
    return {each.key: each for each in kept}


def setup_of(recordings: dict[str, Recording]) -> Setup:
    (setup,) = {each.setup for each in recordings.values()}
    return setup


async def rescored(
    upstream: SamplingUpstream, recordings: dict[str, Recording], **more: Any
) -> tuple[dict[str, Recording], list[str]]:
    kept: list[Recording] = []
    lost: list[str] = []
    origin = setup_of(recordings)
    candidates = candidates_of(recordings, origin, TASKS, 3, 0)
    async with connected(upstream, sampled_by=origin, **more) as sampled:
        rescorer = Rescorer(sampled, candidates, LoopClock())
        await rescorer.check_prompt(TASKS[0])
        jobs = jobs_of(TASKS, 3, 0, sampled.setup)
        await record(rescorer.rescore, jobs, clock=LoopClock(), concurrency=4, keep=kept.append, lose=lost.append)
    return {each.key: each for each in kept}, lost


def timeless(score: RecordedScore) -> RecordedScore:
    return replace(score, took_s=0.0)


@pytest.mark.parametrize("config", [BOTH, CALIBRATED])
async def test_scoring_again_says_what_was_said_while_the_candidates_grew(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    """The same upstream, twice: nothing differs but times and where the candidates come from."""
    (tmp_path / FILE).write_text(json.dumps(config))
    upstream = SamplingUpstream(REPLIES, judge)
    once = await sampled_by(upstream, self_evaluation=tmp_path)
    again, lost = await rescored(upstream, once, self_evaluation=tmp_path)
    assert lost == []
    origin = setup_of(once)
    assert setup_of(again) == replace(origin, sampled_by=origin)
    by_place = {(each.prompt, each.index): each for each in again.values()}
    assert len(by_place) == 6
    for first in once.values():
        second = by_place[first.prompt, first.index]
        assert second.key == replace(origin, sampled_by=origin).key(first.prompt, first.seed) != first.key
        assert list(map(timeless, second.scores)) == list(map(timeless, first.scores))
        assert {score.scorer for score in second.scores} == {"self_evaluation", *FREE}
        assert len({score.value for score in second.scores if score.scorer == "read_out"}) == (
            1 if first.tokens == 4 else 3
        )
        times = {"key": "", "setup": origin, "scores": (), "scored_at": 0.0}
        assert replace(second, **times) == replace(first, **times)  # type: ignore[arg-type]


async def test_another_checkpoint_judges_the_same_candidates_in_its_own_way(tmp_path: Path) -> None:
    once = await sampled_by(SamplingUpstream(REPLIES, judge))
    (tmp_path / FILE).write_text(
        json.dumps({"format": 1, "suffix_ids": [3, 9, 10], "win_or_tie_ids": [5], "loss_ids": [6]})
    )
    trained = SamplingUpstream([Reply("never")], lambda text: 0.75 if text.endswith("\3\t\n") else 0.5)
    trained.labels = ((5, 6),)
    again, lost = await rescored(trained, once, self_evaluation=tmp_path, checkpoints=(2, 4))
    assert lost == []
    assert [chat for chat in trained.chats if chat.get("stream")] == []
    assert sorted(each.text for each in again.values()) == sorted(each.text for each in once.values())
    for each in again.values():
        own = [score for score in each.scores if score.scorer == "self_evaluation"]
        assert {round(score.value, 6) for score in own} == {0.75}
        assert {score.scorer for score in each.scores} == {"self_evaluation", "mean_log_probability"}
        assert [score.tokens for score in own] == [2, *([4] if each.tokens > 4 else []), each.tokens]
        assert each.checkpoints == (2, 4)
    assert setup_of(again).question != setup_of(once).question


async def test_the_cache_is_filled_as_by_the_candidates_stream_before_a_score_is_paid_for() -> None:
    once = await sampled_by(SamplingUpstream([Reply("abcdefghij")], judge))
    upstream = SamplingUpstream([Reply("never")], judge)
    await rescored(upstream, once)
    asked = [("".join(map(chr, scoring["prompt"][0])), scoring["cache_salt"]) for scoring in upstream.scorings]
    assert len({salt for _, salt in asked}) == 1
    filled = {text for text, _ in asked if "better" not in text}
    assert filled == {
        f"\2user\nsay {name}\3\2assistant\nabcdefghij" for name in "ab"
    }  # the last token is never computed
    for name in "ab":
        of_prompt = [text for text, _ in asked if f"say {name}" in text]
        assert of_prompt[0] in filled


async def test_a_rescored_recording_can_be_scored_again_and_names_who_sampled_it() -> None:
    once = await sampled_by(SamplingUpstream(REPLIES, judge))
    twice, _ = await rescored(SamplingUpstream(REPLIES, judge, root="/trained"), once)
    setup = setup_of(twice)
    assert (setup.root, setup.sampled_by) == ("/trained", setup_of(once))
    assert candidates_of(twice, setup, TASKS, 3, 0).keys() == candidates_of(once, setup_of(once), TASKS, 3, 0).keys()


async def test_a_prompt_without_all_its_candidates_is_left_out() -> None:
    once = await sampled_by(SamplingUpstream(REPLIES, judge))
    dropped = next(key for key, each in once.items() if (each.task, each.index) == ("a", 1))
    found = candidates_of({key: each for key, each in once.items() if key != dropped}, setup_of(once), TASKS, 3, 0)
    assert {prompt for prompt, _ in found} == {TASKS[1].digest}
    assert candidates_of(once, setup_of(once), TASKS, 4, 0) == {}
    assert candidates_of(once, setup_of(once), TASKS, 3, 1) == {}


async def test_an_upstream_with_another_template_is_refused() -> None:
    once = await sampled_by(SamplingUpstream(REPLIES, judge))
    other = {key: replace(each, prompt_ids=(1, *each.prompt_ids)) for key, each in once.items()}
    with pytest.raises(EvalError, match="its tokenizer or chat template is another"):
        await rescored(SamplingUpstream(REPLIES, judge), other)


async def test_group_confidence_is_left_out_and_refused_where_it_is_asked_for() -> None:
    once = await sampled_by(SamplingUpstream(REPLIES, judge))
    assert "group_confidence" in next(iter(once.values())).scorers
    with pytest.raises(EvalError, match="group_confidence reads the alternatives"):
        await rescored(SamplingUpstream(REPLIES, judge), once, scorers=(ScorerName.GROUP_CONFIDENCE,))


async def test_only_log_probabilities_ask_the_upstream_for_nothing() -> None:
    once = await sampled_by(SamplingUpstream(REPLIES, judge))
    upstream = SamplingUpstream(REPLIES, judge)
    again, _ = await rescored(upstream, once, scorers=(ScorerName.MEAN_LOG_PROBABILITY,))
    assert upstream.scorings == []
    values = {round(score.value, 4) for each in again.values() for score in each.scores}
    assert values == {0.6065}  # exp(-0.5)


async def test_a_candidate_that_cannot_be_scored_is_lost_and_not_recorded_without_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    once = await sampled_by(SamplingUpstream(REPLIES, judge))
    again, lost = await rescored(SamplingUpstream(REPLIES, judge, score_status=500), once)
    assert again == {}
    assert len(lost) == 6
    assert "scoring was answered with 500" in lost[0]


async def test_an_upstream_that_goes_away_ends_the_run() -> None:
    once = await sampled_by(SamplingUpstream(REPLIES, judge))
    candidates = candidates_of(once, setup_of(once), TASKS, 3, 0)
    async with connected(SamplingUpstream(REPLIES, judge), sampled_by=setup_of(once)) as sampled:
        pass
    client = UpstreamClient("http://127.0.0.1:9", timeouts=Timeouts(1, 1, 1, 1))
    rescorer = Rescorer(replace(sampled, upstream=client), candidates, LoopClock())
    jobs = jobs_of(TASKS[:1], 1, 0, sampled.setup)
    kept: list[Recording] = []
    with pytest.raises(EvalError, match="The upstream is gone"):
        await record(rescorer.rescore, jobs, clock=LoopClock(), concurrency=1, keep=kept.append, lose=pytest.fail)
    assert kept == []
    await client.aclose()
