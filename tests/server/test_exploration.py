"""Explorations: full best-of-N beside answered requests, through the whole proxy and on its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from adaptive.clock import LoopClock
from adaptive.limits import Ceiling, LoadShedding
from server.adaptive_chat import ChatRun, ChatSampling, Services
from server.exploration import Explorations
from server.load_watch import LoadWatch
from server.policy import PolicyFields
from server.sampling_metrics import SamplingMetrics
from server.self_evaluation_config import FILE
from server.self_evaluation_tokens import SelfEvaluationTokens
from server.settings import Settings, SettingsError, load_settings
from server.traces import TraceFiles, TraceWriter
from server.upstream import Timeouts, UpstreamClient
from tests.server.running import RunningProxy, running_proxy
from tests.server.sampling_upstream import MODEL, NO, YES, Reply, SamplingUpstream

CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hello"}],
    "seed": 7,
    "temperature": 0.8,
}
STAGED = {"format": 1, "read_out": {"win_or_tie_ids": [NO], "loss_ids": [YES]}}
ADAPTIVE = {"mode": "adaptive", "n_max": 3, "threshold": 0.5, "checkpoints": []}
DONE, BUSY = (f'preamble_explorations_total{{result="{result}"}}' for result in ("done", "busy"))


def scores(**of: float) -> Callable[[str], float]:
    """Judge by the word that stands in the latest answer."""

    def judge(text: str) -> float:
        answer = text.rpartition("\2assistant\n")[0].rpartition("\2assistant\n")[2]
        return next((score for word, score in of.items() if word in answer), 0.1)

    return judge


async def until(condition: Callable[[], Any]) -> None:
    async def met() -> bool:
        return bool(condition())

    await until_answered(met)


async def until_answered(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.005)


@dataclass
class Setting:
    upstream: SamplingUpstream
    proxy: RunningProxy
    alice: httpx.AsyncClient

    async def chat(self, policy: object = ADAPTIVE, **fields: Any) -> dict[str, Any]:
        answer = await self.alice.post("/v1/chat/completions", json=CHAT | fields | {"preamble": policy})
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def explored(self, sample: str = DONE, count: int = 1) -> None:
        """Return when that many explorations have come to that result."""

        async def counted() -> bool:
            return await self.proxy.metric(sample) >= count

        await until_answered(counted)

    def of_explorations(self) -> list[dict[str, Any]]:
        return [chat for chat, name in zip(self.upstream.chats, self.upstream.chat_ids, strict=True) if ".x." in name]


Open = Callable[..., Any]


@pytest.fixture
def open_setting(tmp_path: Path) -> Open:
    @asynccontextmanager
    async def opened(
        *replies: Reply | str, settings: dict[str, Any] | None = None, **upstream: Any
    ) -> AsyncIterator[Setting]:
        scripted = SamplingUpstream([Reply(each) if isinstance(each, str) else each for each in replies], **upstream)
        values = {"exploration_share": 1.0} | (settings or {})
        async with scripted.serving(), running_proxy(scripted.url, tmp_path, **values) as proxy:
            scripted.chats.clear()
            scripted.chat_ids.clear()
            scripted.scorings.clear()
            headers = await proxy.make_key("alice")
            async with httpx.AsyncClient(base_url=proxy.url, headers=headers, timeout=10) as alice:
                yield Setting(scripted, proxy, alice)

    return opened


async def test_what_full_best_of_n_took_and_what_it_was_better_by_is_exported_and_apart_from_clients_series(
    open_setting: Open,
) -> None:
    def of(fate: str) -> str:
        return f'preamble_candidate_tokens_total{{fate="{fate}"}}'

    async with open_setting("poor", "good!", "other", judge=scores(poor=0.6, good=0.9)) as at:
        told = (await at.chat())["preamble"]
        assert told["candidates"]["drawn"] == 1
        await at.explored()
        spent = told["tokens"]["generated"] + told["tokens"]["scored"]
        assert await at.proxy.metric("preamble_exploration_full_tokens_total") == 5 + 6 + 6
        assert await at.proxy.metric("preamble_exploration_spent_tokens_total") == spent
        assert await at.proxy.metric("preamble_regret_count") == 1
        assert await at.proxy.metric("preamble_regret_sum") == pytest.approx(0.3)
        assert await at.proxy.metric("preamble_exploration_full_engine_seconds_total") > 0
        spent_s = await at.proxy.metric("preamble_spent_engine_seconds_total")
        assert await at.proxy.metric("preamble_exploration_spent_engine_seconds_total") == spent_s > 0
        assert await at.proxy.metric("preamble_best_of_n_engine_seconds_total") > 0
        assert await at.proxy.metric('preamble_candidates_per_request_sum{mode="adaptive"}') == 1
        assert await at.proxy.metric('preamble_candidates_per_request_count{mode="best_of_n"}') == 0
        assert await at.proxy.metric("preamble_win_or_tie_probability_count") == 1
        assert await at.proxy.metric('preamble_resampling_decisions_total{reason="drew"}') == 1
        assert await at.proxy.metric("preamble_scoring_duration_seconds_count") == 1
        assert await at.proxy.metric("preamble_spent_tokens_total") == spent
        assert await at.proxy.metric(of("returned")) + await at.proxy.metric(of("finished")) == 5
        assert await at.proxy.metric(of("exploration")) > 17  # and the scores


async def test_its_candidates_differ_from_the_requests_in_seed_and_priority_alone(open_setting: Open) -> None:
    async with open_setting("good", judge=scores(good=0.9)) as at:
        await at.alice.put("/v1/constitution", json={"principles": ["Be brief."]})
        await at.chat(max_tokens=9)
        await at.explored()
        own, *others = at.upstream.chats
        assert len(others) == len(at.of_explorations()) == 3
        seeds = {chat.pop("seed") for chat in others} | {own.pop("seed")}
        assert len(seeds) == 4
        assert {chat.pop("priority") for chat in others} == {10}
        assert "priority" not in own
        for name in ("logprobs", "top_logprobs"):  # only read by the scorer that takes over, which none does here
            own.pop(name)
        assert all(chat == own for chat in others)
        first, *later = at.upstream.scorings
        assert "priority" not in first
        assert {scoring["priority"] for scoring in later} == {10}
        assert {scoring["cache_salt"] for scoring in later} == {own["cache_salt"]}
        assert len(set(at.upstream.chat_ids)) == 4


async def test_its_candidates_carry_the_log_probabilities_that_the_calibration_reads(
    open_setting: Open, tmp_path: Path
) -> None:
    bucket = {"weights": [0.0, 1.0], "bias": 0.0, "knots": [[-1.0, 0.6], [0.0, 0.8]]}
    buckets = [{"up_to": 9, **bucket}, {"final": True, **bucket}]
    calibration = {"features": ["log_odds", "mean_log_probability"], "buckets": buckets}
    (tmp_path / FILE).write_text(orjson.dumps({"format": 1, "calibration": calibration}).decode())
    async with open_setting("good", settings={"self_evaluation": tmp_path}) as at:
        assert (await at.chat())["preamble"]["choices"][0]["score"] == 0.7
        await at.explored()
        assert {(chat["logprobs"], chat["top_logprobs"]) for chat in at.of_explorations()} == {(True, 0)}


async def test_a_trace_tells_of_the_exploration_once_it_is_done(open_setting: Open) -> None:
    async with open_setting("poor", "good!", judge=scores(poor=0.6, good=0.9)) as at:
        path = f"/v1/traces/{(await at.chat(ADAPTIVE | {'n_max': 2}))['id']}"

        async def told() -> bool:
            return "exploration" in (await at.alice.get(path)).json()

        await until_answered(told)
        trace = (await at.alice.get(path)).json()
        section = trace["exploration"]
        assert section["scores"] == {"returned": pytest.approx(0.6), "best_of_n": pytest.approx(0.9)}
        assert section["regret"] == pytest.approx(0.3)
        assert section["tokens"]["best_of_n"] == 5 + 6
        assert [each["text"] for each in section["candidates"]] == ["poor", "good!"]
        assert len(trace["candidates"]) == 1
        assert section["seed"] != trace["seed"]


def test_it_is_off_by_default() -> None:
    assert Settings().exploration_share == 0.0


async def test_a_client_that_leaves_after_its_answer_changes_nothing(open_setting: Open) -> None:
    async with open_setting(Reply("good" * 4, gap_s=0.01), judge=scores(good=0.9)) as at:
        async with httpx.AsyncClient(base_url=at.proxy.url, headers=at.alice.headers) as bob:
            await bob.post("/v1/chat/completions", json=CHAT | {"preamble": ADAPTIVE})
            await until(lambda: len(at.upstream.running) == 3)
        await at.explored()
        assert at.upstream.aborted == []


async def test_a_deep_queue_leaves_no_room_for_it(open_setting: Open) -> None:
    settings = {"load_low": 1, "load_high": 40, "load_poll_s": 0.02}
    async with open_setting(Reply("good", gap_s=0.02), judge=scores(good=0.9), waiting=9, settings=settings) as at:
        await at.chat()
        assert await at.proxy.metric(BUSY) == 1
        assert at.of_explorations() == []


async def test_its_share_of_the_ceiling_is_its_own(open_setting: Open) -> None:
    """Of eight places a client gets six, and an exploration that needs more than two gets none."""
    settings = {"max_candidates": 8}
    async with open_setting(Reply("good", gap_s=0.01), judge=scores(good=0.9), settings=settings) as at:
        await at.chat()
        assert await at.proxy.metric(BUSY) == 1
        told = (await at.chat({"mode": "best_of_n", "n_max": 8, "checkpoints": []}))["preamble"]
        assert (told["candidates"]["drawn"], told["stop_reason"]) == (6, "ceiling")
        await at.chat(ADAPTIVE | {"n_max": 2})
        await at.explored()


def test_a_ceiling_that_leaves_no_room_stops_the_start() -> None:
    with pytest.raises(SettingsError, match=r"max_candidates .*give at least 16, or set exploration_share to 0"):
        load_settings(environ={}, exploration_share=0.1, max_candidates=15, workers=2)
    assert load_settings(environ={}, exploration_share=0.1, max_candidates=16, workers=2).exploration_candidates == 2
    assert load_settings(environ={}, max_candidates=1).exploration_candidates == 0


# Without a proxy around it


@dataclass
class Slow:
    """A client to whom the last byte is not given before the test says so."""

    told: bytes = b""
    at_the_end: asyncio.Event = field(default_factory=asyncio.Event)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    async def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        assert status == 200

    async def write(self, data: bytes, *, is_token: bool = True) -> None:
        self.told += data

    async def end(self, data: bytes = b"") -> None:
        self.at_the_end.set()
        await self.may_end.wait()
        self.told += data


@dataclass
class Bare:
    upstream: SamplingUpstream
    explorations: Explorations
    sampling: ChatSampling
    registry: CollectorRegistry

    def run(self, **fields: Any) -> ChatRun:
        body = CHAT | {"preamble": ADAPTIVE} | fields
        run = self.sampling.prepare(body, None, "alice", ((b"x-request-id", b"req"),))
        assert isinstance(run, ChatRun)
        return run

    async def answer(self, **fields: Any) -> Any:
        client = Slow()
        client.may_end.set()
        await self.run(**fields).serve(client)
        return None if fields.get("stream") else orjson.loads(client.told)

    def results(self, result: str) -> float:
        return self.sample("preamble_explorations_total", result=result)

    def sample(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def explored_chats(self) -> int:
        return sum(".x." in name for name in self.upstream.chat_ids)


@asynccontextmanager
async def bare(
    tmp_path: Path,
    *replies: Reply,
    share: float = 1.0,
    chances: Iterator[float] | None = None,
    most: int = 2,
    ceiling: int = 16,
    **upstream_fields: Any,
) -> AsyncIterator[Bare]:
    clock, registry = LoopClock(), CollectorRegistry()
    timeouts = Timeouts(connect_s=5, first_token_s=5, stall_s=5, total_s=5)
    fields = {"judge": scores(good=0.9, poor=0.6)} | upstream_fields
    async with SamplingUpstream(list(replies), **fields).serving() as scripted:
        upstream = UpstreamClient(scripted.url, timeouts=timeouts)
        metrics = SamplingMetrics(registry)
        traces = TraceWriter(TraceFiles(tmp_path, ttl_s=60, most=10))
        explorations = Explorations(
            share=share,
            most=most,
            chance=(lambda: next(chances)) if chances is not None else lambda: 0.0,
            ceiling=Ceiling(ceiling, ceiling),
            calm=lambda _: True,
            clock=clock,
            traces=traces,
            metrics=metrics,
        )
        services = Services(
            upstream=upstream,
            profile=lambda: None,
            suspect=lambda: None,
            tokens=SelfEvaluationTokens(upstream, upstream_now=lambda: None),
            lacks_read_out=lambda _: True,
            ceiling=Ceiling(16, 16),
            shedding=LoadShedding(),
            load=LoadWatch(upstream, clock, period_s=1.0, publish=lambda _: None),
            traces=traces,
            metrics=metrics,
            keep_alive_s=5.0,
            explorations=explorations,
        )
        try:
            yield Bare(scripted, explorations, ChatSampling(services, PolicyFields(), lambda _: None), registry)
        finally:
            await upstream.aclose()


@pytest.mark.parametrize("stream", [False, True])
async def test_it_begins_when_the_client_has_the_last_byte_and_keeps_nobody_waiting(
    tmp_path: Path, stream: bool
) -> None:
    async with bare(tmp_path, Reply("good" * 10, gap_s=0.01)) as at, at.explorations.running():
        client = Slow()
        serving = asyncio.create_task(at.run(stream=stream, max_tokens=4).serve(client))
        await client.at_the_end.wait()
        await asyncio.sleep(0.05)
        assert len(at.upstream.chats) == 1
        client.may_end.set()
        await serving
        assert client.told.endswith(b"[DONE]\n\n" if stream else b"}")
        assert len(at.upstream.chats) == 1  # the answer is over, and the exploration has not even begun
        await until(lambda: len(at.upstream.running) == 3)
        await until(lambda: at.results("done"))


async def test_the_given_chance_decides_who_is_explored(tmp_path: Path) -> None:
    async with bare(tmp_path, Reply("good"), share=0.25, chances=iter([0.25, 0.2, 0.9])) as at:
        for done in (0, 1, 1):  # only the second answer is explored
            await at.answer()
            await asyncio.sleep(0.02)
            await until(lambda: at.results("done") == at.explored_chats() / 3)
            assert at.results("done") == done
        assert at.results("busy") == 0


async def test_those_under_way_are_aborted_at_the_end_and_none_begins_after_it(tmp_path: Path) -> None:
    async with bare(tmp_path, Reply("good" * 100, gap_s=0.01)) as at:
        async with at.explorations.running():
            await at.answer(max_tokens=4)
            await until(lambda: len(at.upstream.running) == 3)
        assert at.results("cancelled") == 1
        await until(lambda: len(at.upstream.aborted) == 3)
        await at.answer(max_tokens=4)
        await asyncio.sleep(0.03)
        assert len(at.upstream.chats) == 5


@pytest.mark.parametrize(
    "policy", [{"mode": "best_of_n", "n_max": 2, "checkpoints": []}, {"mode": "adaptive", "n_max": 1}]
)
async def test_a_policy_that_cannot_save_anything_is_not_explored(tmp_path: Path, policy: dict[str, Any]) -> None:
    async with bare(tmp_path, Reply("good"), Reply("poor")) as at, at.explorations.running():
        await at.answer(preamble=policy, n=2)
        await asyncio.sleep(0.03)
        assert at.explored_chats() == 0
        assert at.results("busy") == 0


async def test_a_run_whose_scorer_failed_is_not_explored(tmp_path: Path) -> None:
    async with bare(tmp_path, Reply("good"), score_status=500) as at, at.explorations.running():
        assert (await at.answer())["preamble"]["scorer"] == "mean_log_probability"
        await asyncio.sleep(0.03)
        assert at.explored_chats() == 0


async def test_a_reply_without_a_final_score_is_scored_afterwards_and_not_at_the_clients_cost(tmp_path: Path) -> None:
    policy = {"mode": "best_of_n", "n_max": 2, "checkpoints": [{"tokens": 4, "keep": 0.5}]}
    replies = [Reply("poor" * 5, gap_s=0.003), Reply("good" * 5, gap_s=0.003)]
    async with bare(tmp_path, *replies) as at, at.explorations.running():
        await at.answer(preamble=policy, stream=True)
        before = at.sample("preamble_candidate_tokens_total", fate="scoring")
        await until(lambda: at.results("done"))
        # The survivor of the checkpoint was streamed and never scored to its end: that is asked for first.
        assert [len(each["prompt"]) for each in at.upstream.scorings][:2] == [2, 1]
        assert at.sample("preamble_regret_sum") == pytest.approx(0.0)
        assert at.sample("preamble_candidate_tokens_total", fate="scoring") == before
        again = at.upstream.scorings[1]["prompt"][0]
        generated = at.sample("preamble_exploration_full_tokens_total")
        assert at.sample("preamble_candidate_tokens_total", fate="exploration") > generated + len(again) / 2


async def test_a_reply_that_a_deadline_cut_is_judged_as_the_whole_that_the_client_got(
    open_setting: Open, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(orjson.dumps(STAGED).decode())
    policy = {"mode": "best_of_n", "n_max": 2, "deadline_ms": 300, "scorer": "staged"}
    replies = [Reply(text * 50, gap_s=0.005) for text in ("poor", "good")]
    judge = scores(good=0.9, poor=0.6)
    async with open_setting(*replies, judge=judge, settings={"self_evaluation": tmp_path}) as at:
        body = await at.chat(policy | {"checkpoints": [{"tokens": 4, "keep": 0.5}]})
        assert body["preamble"]["stop_reason"] == "deadline"
        await at.explored()
        # Those of best-of-N are asked about, so it is too: its read-out was of what it might have become.
        first = "".join(map(chr, at.upstream.scorings[0]["prompt"][0]))
        assert f"\2assistant\n{body['choices'][0]['message']['content']}\3" in first


async def test_no_more_run_at_once_than_allowed(tmp_path: Path) -> None:
    async with bare(tmp_path, Reply("good"), Reply("good" * 20, gap_s=0.005), most=1) as at, at.explorations.running():
        await at.answer()
        await until(at.explored_chats)
        await at.answer()
        assert (at.results("busy"), at.explored_chats()) == (1, 3)
        await until(lambda: at.results("done"))
        await at.answer()
        await until(lambda: at.explored_chats() == 6)


async def test_it_has_a_place_for_every_candidate_or_does_not_begin(tmp_path: Path) -> None:
    replies = [Reply("good"), Reply("good" * 20, gap_s=0.005)]
    async with bare(tmp_path, *replies, ceiling=5) as at, at.explorations.running():
        await at.answer()
        await until(at.explored_chats)
        await at.answer()  # while the first exploration holds three of five places
        assert (at.results("busy"), at.explored_chats()) == (1, 3)
        await until(lambda: at.results("done"))
        await at.answer()
        await until(lambda: at.results("done") == 2)


@pytest.mark.parametrize(("status", "result", "logged"), [(500, "failed", 1), (503, "busy", 0)])
async def test_one_that_loses_a_candidate_is_counted_and_its_client_never_knows(
    tmp_path: Path, status: int, result: str, logged: int
) -> None:
    async with bare(tmp_path, Reply("good"), Reply("", status=status)) as at, at.explorations.running():
        with capture_logs() as logs:
            assert (await at.answer())["choices"][0]["message"]["content"] == "good"
            await until(lambda: at.results(result))
        assert [entry["event"] for entry in logs] == ["exploration_failed"] * logged
        assert at.results("done") == at.sample("preamble_regret_count") == 0
        assert at.sample("preamble_exploration_full_tokens_total") == 0
        assert at.sample("preamble_candidate_tokens_total", fate="exploration") > 0


async def test_an_administrators_own_priority_stays_ahead_of_its_exploration(tmp_path: Path) -> None:
    async with bare(tmp_path, Reply("good")) as at, at.explorations.running():
        await at.answer(priority=5)
        await until(lambda: at.results("done"))
        assert [chat["priority"] for chat in at.upstream.chats] == [5, 15, 15, 15]
