"""Sampling for an evaluation, from an upstream over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adaptive.clock import LoopClock
from adaptive.evaluation.recording import Recording
from adaptive.evaluation.tasks import Task
from adaptive.evaluation.verifiers import Verdict
from adaptive.policy import ScorerName
from adaptive.seeds import candidate_seed
from server.eval_errors import EvalError
from server.eval_sampling import Job, Sampled, Sampler, connect, jobs_of
from server.eval_sampling import record as recorded
from server.self_evaluation_config import FILE
from server.upstream import Timeouts, UpstreamClient
from tests.server.sampling_upstream import END_OF_TURN, MODEL, NO, YES, Reply, SamplingUpstream

TASKS = tuple(
    Task(name, ({"role": "user", "content": f"say {name}"},), lambda _: Verdict(1.0, passed=True)) for name in "ab"
)


@contextlib.asynccontextmanager
async def connected(
    upstream: SamplingUpstream,
    *,
    max_tokens: int = 50,
    checkpoints: tuple[int, ...] = (4, 8),
    scorers: tuple[ScorerName, ...] | None = None,
    self_evaluation: Path | None = None,
) -> AsyncIterator[Sampled]:
    async with upstream.serving():
        client = UpstreamClient(upstream.url, timeouts=Timeouts(5, 5, 5, 20))
        try:
            yield await connect(
                client,
                None,
                temperature=0.8,
                max_tokens=max_tokens,
                checkpoints=checkpoints,
                scorers=scorers,
                self_evaluation=self_evaluation,
            )
        finally:
            await client.aclose()


async def record(sampled: Sampled, jobs: list[Job], concurrency: int = 4) -> tuple[list[Recording], list[str]]:
    kept: list[Recording] = []
    lost: list[str] = []
    sample = Sampler(sampled, LoopClock()).sample
    await recorded(sample, jobs, clock=LoopClock(), concurrency=concurrency, keep=kept.append, lose=lost.append)
    return sorted(kept, key=lambda each: (each.task, each.index)), lost


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 -- the upstream tells nobody
        await asyncio.sleep(0.01)


async def test_a_candidate_is_scored_where_it_is_longer_than_a_checkpoint_and_at_its_end() -> None:
    def judge(text: str) -> float:
        return 0.3 if "abcdefghij" in text else 0.7

    async with connected(SamplingUpstream([Reply("abcdefghij"), Reply("abc")], judge)) as sampled:
        jobs = jobs_of(TASKS[:1], 2, 0, sampled.setup)
        (long, short), lost = await record(sampled, jobs)
    assert lost == []
    assert (long.text, long.tokens, long.finish_reason) == ("abcdefghij", 11, "stop")  # with the end of the turn
    own = [score for score in long.scores if score.scorer == "self_evaluation"]
    assert sorted((score.tokens, score.final, round(score.value, 3)) for score in own) == [
        (4, False, 0.7),
        (8, False, 0.7),
        (11, True, 0.3),
    ]
    assert all(score.computed_tokens > 0 and score.label_mass == pytest.approx(1.0) for score in own)
    free = {score.scorer for score in long.scores if score.computed_tokens == 0}
    assert free == {"mean_log_probability", "group_confidence"}
    assert [(score.tokens, score.final) for score in short.scores if score.scorer == "self_evaluation"] == [(4, True)]


async def test_a_reply_that_max_tokens_ends_at_a_checkpoint_is_judged_there_once() -> None:
    async with connected(SamplingUpstream([Reply("abcdefghij")]), max_tokens=8) as sampled:
        (only,), _ = await record(sampled, jobs_of(TASKS[:1], 1, 0, sampled.setup))
    assert (only.tokens, only.finish_reason) == (8, "length")
    own = [(score.tokens, score.final) for score in only.scores if score.scorer == "self_evaluation"]
    assert sorted(own) == [(4, False), (8, True)]


async def test_seeds_temperature_and_limit_reach_the_upstream_and_prompts_share_no_seed() -> None:
    upstream = SamplingUpstream([Reply("abc")])
    async with connected(upstream) as sampled:
        jobs = jobs_of(TASKS, 3, 5, sampled.setup)
        await record(sampled, jobs)
    chats = [chat for chat in upstream.chats if chat.get("stream")]
    assert sorted(chat["seed"] for chat in chats) == sorted(job.seed for job in jobs)
    assert len({job.seed for job in jobs}) == 6
    assert [job.seed for job in jobs[:3]] == [candidate_seed(jobs[0].seed, index) for index in range(3)]
    assert {(chat["temperature"], chat["max_completion_tokens"], chat["model"]) for chat in chats} == {(0.8, 50, MODEL)}
    (salt,) = {chat["cache_salt"] for chat in chats}
    assert len(salt) == 32


async def test_no_more_candidates_run_at_a_time_than_asked_for() -> None:
    upstream = SamplingUpstream([Reply("abcdef")])
    async with connected(upstream) as sampled:
        kept, _ = await record(sampled, jobs_of(TASKS, 4, 0, sampled.setup), concurrency=3)
    assert len(kept) == 8
    assert upstream.most_running == 3


async def test_a_candidate_that_fails_is_tried_again_and_then_lost_without_the_others() -> None:
    upstream = SamplingUpstream([Reply("abc"), Reply("abcdef", breaks_after=2)])
    async with connected(upstream) as sampled:
        kept, lost = await record(sampled, jobs_of(TASKS[:1], 2, 0, sampled.setup))
    assert [each.index for each in kept] == [0]
    assert len(lost) == 1
    assert lost[0].startswith("candidate 1 of a: ")
    assert sum(request_id.endswith(".c1") for request_id in upstream.chat_ids) == 3


async def test_a_model_that_does_not_answer_the_question_is_recorded_with_its_label_mass() -> None:
    async with connected(SamplingUpstream([Reply("abc")], label_mass=1e-4)) as sampled:
        (only,), _ = await record(sampled, jobs_of(TASKS[:1], 1, 0, sampled.setup))
    (score,) = (score for score in only.scores if score.scorer == "self_evaluation")
    assert score.label_mass == pytest.approx(1e-4)
    assert only.failures == ()


async def test_a_score_that_cannot_be_had_is_noted_and_the_candidate_kept() -> None:
    async with connected(SamplingUpstream([Reply("abc")], score_status=500)) as sampled:
        (only,), _ = await record(sampled, jobs_of(TASKS[:1], 1, 0, sampled.setup))
    assert {score.scorer for score in only.scores} == {"mean_log_probability", "group_confidence"}
    assert only.failures == ("self_evaluation at 4 tokens: scoring was answered with 500: scripted",)


async def test_a_trained_checkpoint_is_asked_in_its_own_way_and_its_records_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "preamble_self_evaluation.json"
    file.write_text(json.dumps({"format": 1, "suffix_ids": [7, 8], "win_or_tie_ids": [5], "loss_ids": [6]}))
    async with connected(SamplingUpstream([Reply("abc")])) as literal:
        pass
    async with connected(SamplingUpstream([Reply("abc")]), self_evaluation=tmp_path) as trained:
        question = await trained.tokens.of(MODEL)
    assert (question.suffix, question.labels.ids) == ((7, 8), (5, 6))
    assert trained.setup.question != literal.setup.question
    bucket = {"weights": [1.0], "bias": 0.0, "knots": [[0.0, 0.25]]}
    calibration = {"features": ["log_odds"], "buckets": [{"up_to": 9, **bucket}, {"final": True, **bucket}]}
    file.write_text(json.dumps({"format": 1, "calibration": calibration}))
    async with connected(SamplingUpstream([Reply("abc")]), self_evaluation=file) as calibrated:
        (only,), _ = await record(calibrated, jobs_of(TASKS[:1], 1, 0, calibrated.setup))
    assert calibrated.setup.question not in {literal.setup.question, trained.setup.question}
    assert [score.value for score in only.scores if score.scorer == "self_evaluation"] == [0.25]
    file.write_text("{}")
    with pytest.raises(EvalError, match="format"):
        async with connected(SamplingUpstream([Reply("abc")]), self_evaluation=file):
            pass


async def test_what_was_generated_is_kept_with_its_tokens() -> None:
    async with connected(SamplingUpstream([Reply("abc")])) as sampled:
        (only,), _ = await record(sampled, jobs_of(TASKS[:1], 1, 0, sampled.setup))
    assert only.token_ids == (*map(ord, "abc"), END_OF_TURN)
    assert only.logprobs == (-0.5,) * 4
    assert "".join(map(chr, only.prompt_ids)) == "\2user\nsay a\3\2assistant\n"
    assert only.scorers == ("self_evaluation", "mean_log_probability", "group_confidence")


async def test_only_who_is_asked_judges_and_is_paid_for() -> None:
    upstream = SamplingUpstream([Reply("abcdefghij")])
    async with connected(upstream, scorers=(ScorerName.MEAN_LOG_PROBABILITY,)) as sampled:
        (only,), _ = await record(sampled, jobs_of(TASKS[:1], 1, 0, sampled.setup))
    assert only.scorers == ("mean_log_probability",)
    assert {score.scorer for score in only.scores} == {"mean_log_probability"}
    assert upstream.scorings == []
    assert upstream.chats[-1]["top_logprobs"] == 0  # no alternatives, which are slow


READ_OUT: dict[str, Any] = {"format": 1, "read_out": {"win_or_tie_ids": [NO], "loss_ids": [YES]}}


async def test_a_read_out_rides_on_the_stream_where_the_checkpoint_has_one(tmp_path: Path) -> None:
    def judge(text: str) -> float:
        reply = text.removesuffix("\3\2assistant\n").rpartition("\2assistant\n")[2]
        return 0.2 + len(reply) / 20

    (tmp_path / FILE).write_text(json.dumps(READ_OUT))
    async with connected(SamplingUpstream([Reply("abcdefghij")], judge), self_evaluation=tmp_path) as sampled:
        (only,), _ = await record(sampled, jobs_of(TASKS[:1], 1, 0, sampled.setup))
    assert only.scorers == ("self_evaluation", "read_out", "mean_log_probability")  # vLLM gives no alternatives beside
    found = [(score.tokens, score.final, round(score.value, 3)) for score in only.scores if score.scorer == "read_out"]
    assert found == [(4, False, 0.35), (8, False, 0.55), (11, True, 0.7)]  # the logits that the token was drawn from
    assert all(score.computed_tokens == 0 for score in only.scores if score.scorer == "read_out")


def constant(partial: float, final: float) -> dict[str, object]:
    """Return a calibration map that says so of whatever goes on, and of whatever has ended."""
    buckets = [{"up_to": 9, "knots": [[0, partial]]}, {"final": True, "knots": [[0, final]]}]
    return {"features": ["log_odds"], "buckets": [{"weights": [1], "bias": 0, **bucket} for bucket in buckets]}


async def test_each_scorer_has_the_calibration_that_is_its_own(tmp_path: Path) -> None:
    read_out = READ_OUT["read_out"] | {"calibration": constant(0.2, 0.7)}
    (tmp_path / FILE).write_text(json.dumps(READ_OUT | {"calibration": constant(0.3, 0.8), "read_out": read_out}))
    async with connected(SamplingUpstream([Reply("abcdef")]), self_evaluation=tmp_path) as sampled:
        (only,), _ = await record(sampled, jobs_of(TASKS[:1], 1, 0, sampled.setup))
    found = {
        (score.scorer, score.final): score.value for score in only.scores if score.scorer != "mean_log_probability"
    }
    assert found == {
        ("self_evaluation", False): 0.3,
        ("self_evaluation", True): 0.8,
        ("read_out", False): 0.2,
        ("read_out", True): 0.7,
    }


async def test_the_least_label_mass_is_the_configurations(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(READ_OUT | {"min_label_mass": 1e-20}))
    async with connected(SamplingUpstream([]), self_evaluation=tmp_path) as sampled:
        assert sampled.setup.min_label_mass == 1e-20


async def test_another_read_out_is_another_setup_and_another_calibration_of_it_too(tmp_path: Path) -> None:
    setups = set()
    plain = {"win_or_tie_ids": [NO], "loss_ids": [YES]}
    for read_out in (plain, plain | {"win_or_tie_ids": [NO + 10]}, plain | {"calibration": constant(0.2, 0.7)}):
        (tmp_path / FILE).write_text(json.dumps(READ_OUT | {"read_out": read_out}))
        async with connected(SamplingUpstream([Reply("abc")]), self_evaluation=tmp_path) as sampled:
            setups.add(sampled.setup)
    assert len(setups) == 3


@pytest.mark.parametrize(
    ("scorers", "config", "said"),
    [
        ((ScorerName.READ_OUT,), None, "read_out needs a model that was trained for it"),
        ((ScorerName.READ_OUT, ScorerName.GROUP_CONFIDENCE), READ_OUT, "cannot ride on the same tokens"),
    ],
)
async def test_scorers_that_do_not_apply_are_refused_with_the_remedy(
    tmp_path: Path, scorers: tuple[ScorerName, ...], config: object, said: str
) -> None:
    (tmp_path / FILE).write_text(json.dumps(config))
    with pytest.raises(EvalError, match=said) as caught:
        async with connected(
            SamplingUpstream([Reply("abc")]), scorers=scorers, self_evaluation=tmp_path if config else None
        ):
            pass
    assert "--scorers" in str(caught.value)


async def test_group_confidence_can_be_asked_for_in_place_of_the_read_out(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(READ_OUT))
    scorers = (ScorerName.GROUP_CONFIDENCE,)
    async with connected(SamplingUpstream([Reply("abc")]), scorers=scorers, self_evaluation=tmp_path) as sampled:
        (only,), _ = await record(sampled, jobs_of(TASKS[:1], 1, 0, sampled.setup))
    assert [(score.scorer, score.final) for score in only.scores] == [("group_confidence", True)]


async def test_an_interrupt_aborts_every_candidate_upstream() -> None:
    upstream = SamplingUpstream([Reply("a" * 40, gap_s=0.05)])
    async with connected(upstream) as sampled:
        running = asyncio.create_task(record(sampled, jobs_of(TASKS, 4, 0, sampled.setup)))
        await until(lambda: len(upstream.running) == 4)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: not upstream.running)
    assert len(upstream.aborted) == 4


async def test_an_upstream_that_goes_away_ends_the_run_with_the_remedy() -> None:
    async with connected(SamplingUpstream([Reply("abc")])) as sampled:
        pass
    client = UpstreamClient("http://127.0.0.1:9", timeouts=Timeouts(1, 1, 1, 1))
    gone = replace(sampled, upstream=client)
    with pytest.raises(EvalError, match="The upstream is gone"):
        await record(gone, jobs_of(TASKS[:1], 1, 0, sampled.setup))
    await client.aclose()


async def test_a_model_that_is_not_served_is_refused_with_those_that_are() -> None:
    async with SamplingUpstream([Reply("abc")]).serving() as upstream:
        client = UpstreamClient(upstream.url, timeouts=Timeouts(5, 5, 5, 20))
        with pytest.raises(EvalError, match=f"does not serve 'big'; it serves {MODEL}"):
            await connect(client, "big", temperature=1, max_tokens=1, checkpoints=())
        await client.aclose()


async def test_no_upstream_at_all_is_said_so() -> None:
    client = UpstreamClient("http://127.0.0.1:9", timeouts=Timeouts(1, 1, 1, 1))
    with pytest.raises(EvalError, match=r"No upstream answers at http://127\.0\.0\.1:9"):
        await connect(client, None, temperature=1, max_tokens=1, checkpoints=())
    await client.aclose()
