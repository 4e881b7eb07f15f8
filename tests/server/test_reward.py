"""The upstream reward model: what it is asked, what its answers mean, and what happens when there are none."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from adaptive.selection import Finalist, RewardModel, SelectionFailed
from server.checks import Status
from server.doctor_reward import check_reward
from server.reward import Conversation, RewardUpstream, asked, reward_upstream
from server.settings import RewardRoute, Settings
from tests.server.running import running_proxy
from tests.server.sampling_upstream import MODEL, Reply, SamplingUpstream
from tests.server.scripted_reward import MODEL as JUDGE
from tests.server.scripted_reward import ScriptedReward

SYSTEM: dict[str, Any] = {"role": "system", "content": "<constitution>Be brief.</constitution>"}
TALK: list[dict[str, Any]] = [
    SYSTEM,
    {"role": "user", "content": "What is that?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": [{"type": "text", "text": "Whose "}, {"type": "text", "text": "cat?"}]},
]


def finalist(index: int, *deltas: dict[str, Any]) -> Finalist:
    text = "".join(delta.get("content") or "" for delta in deltas)
    return Finalist(index, text, None, True, 5, tuple({"delta": delta} for delta in deltas))


def says(*texts: str) -> list[Finalist]:
    return [finalist(index, {"role": "assistant"}, {"content": text}) for index, text in enumerate(texts)]


def longest_word(text: str) -> float:
    """Reward of the reply that stands last."""
    return float(text.count("good")) - 1.0


@asynccontextmanager
async def judged_by(scripted: ScriptedReward, **settings: Any) -> AsyncIterator[RewardUpstream]:
    async with scripted.serving():
        reward = reward_upstream(Settings.model_validate({"reward_upstream": scripted.url} | settings))
        assert reward is not None
        try:
            yield reward
        finally:
            await reward.aclose()


TOLD = Conversation(TALK, "req-1", "salt")


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("classifier", "/classify"),
        ("two_classes", "/classify"),
        ("per_token", "/pooling"),
        ("cross_encoder", "/score"),
        ("embedding", "/score"),
    ],
)
async def test_the_route_is_found_out_and_gives_the_rewards_in_order(kind: str, path: str) -> None:
    scripted = ScriptedReward(kind, longest_word)
    async with judged_by(scripted) as reward:
        assert await reward.rewards(TOLD, says("bad", "good good", "good")) == (-1.0, 1.0, 0.0)
        assert (await reward.service()).path == path
        assert {each for each, _ in scripted.judged()} == {path}
        probes = len(scripted.asked) - len(scripted.judged())
        await reward.rewards(TOLD, says("good"))
        assert len(scripted.asked) - len(scripted.judged()) == probes  # asked once, and remembered


async def test_a_classifier_is_given_the_whole_conversation_and_each_reply_in_a_call_of_its_own() -> None:
    scripted = ScriptedReward()
    async with judged_by(scripted) as reward:
        await reward.rewards(TOLD, says("Ada's.", "Mine."))
    first, second = sorted((body for _, body in scripted.judged()), key=lambda body: str(body["request_id"]))
    assert first == {
        "model": JUDGE,
        "messages": [*TALK, {"role": "assistant", "content": "Ada's."}],
        "use_activation": False,
        "request_id": "req-1.r0",
        "cache_salt": "salt",
    }
    assert (second["messages"][-1]["content"], second["request_id"]) == ("Mine.", "req-1.r1")


async def test_a_score_is_asked_for_all_replies_at_once_with_the_constitution_and_the_last_question() -> None:
    scripted = ScriptedReward("embedding")
    async with judged_by(scripted, reward_route="score") as reward:
        await reward.rewards(TOLD, says("Ada's.", "Mine."))
    ((path, body),) = scripted.judged()
    assert path == "/score"
    assert body["text_1"] == "<constitution>Be brief.</constitution>\n\nWhose cat?"
    assert (body["text_2"], body["cache_salt"]) == (["Ada's.", "Mine."], "salt")


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": "a"}], "a"),
        ([{"role": "user", "content": "rules a"}, {"role": "user", "content": "b"}], "rules a\n\nb"),
        ([{"role": "developer", "content": "r"}, {"role": "user", "content": "a"}], "r\n\na"),
        ([SYSTEM], SYSTEM["content"]),
        ([{"role": "assistant", "content": "a"}], ""),
        ([{"role": "user", "content": None}], ""),
    ],
)
def test_what_is_asked_is_the_rules_and_the_last_question(messages: list[dict[str, Any]], text: str) -> None:
    assert asked(messages) == text


async def test_a_gateway_that_lets_only_v1_pass_is_asked_there() -> None:
    scripted = ScriptedReward("embedding", longest_word, paths={"/v1/score"})
    async with judged_by(scripted) as reward:
        assert await reward.rewards(TOLD, says("good")) == (0.0,)


async def test_a_tool_call_is_judged_as_the_client_would_see_it_and_silence_comes_last_unasked() -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"x": 1}'}}
    calling = finalist(0, {"role": "assistant"}, {"tool_calls": [call]}, {"tool_calls": [more]})
    silent, thinking = finalist(1, {"content": " \n"}), finalist(2, {"reasoning": "Hm, good"})
    whole = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"x": 1}'}}
    scripted = ScriptedReward("classifier", lambda _: -7.0)
    async with judged_by(scripted) as reward:
        replies = [calling, silent, thinking]
        assert await reward.rewards(TOLD, replies) == (-7.0, -math.inf, -math.inf)
        assert await RewardModel(reward.of(TOLD)).rank(replies) == (0, 1, 2)
        ((_, body), _again) = scripted.judged()
        assert body["messages"][-1] == {"role": "assistant", "content": "", "tool_calls": [whole]}
        scripted.asked.clear()
        assert await reward.rewards(TOLD, [silent, thinking]) == (-math.inf, -math.inf)
        assert scripted.judged() == []
    pairs = ScriptedReward("embedding")
    async with judged_by(pairs) as reward:
        await reward.rewards(TOLD, [calling])
    assert pairs.judged()[0][1]["text_2"] == ['{"name":"look","arguments":"{\\"x\\": 1}"}']


async def test_a_named_model_is_not_looked_up_and_a_named_route_is_the_only_one_tried() -> None:
    scripted = ScriptedReward()
    async with judged_by(scripted, reward_model=JUDGE, reward_route="pooling") as reward:
        assert (await reward.service()).route is RewardRoute.POOLING
    assert [path for path, _ in scripted.asked] == ["/pooling"]


@pytest.mark.parametrize(
    ("scripted", "settings", "cause"),
    [
        (ScriptedReward("embedding"), {"reward_route": "pooling"}, "/pooling gives 576 numbers for a reply, not one"),
        (ScriptedReward(), {"reward_model": "other"}, "/classify answered 404: The model `other` does not exist"),
        (ScriptedReward(paths=set()), {}, "/classify answered 404; .*/pooling answered 404; .*/v1/score answered 404"),
        (ScriptedReward(reward=lambda _: math.nan), {}, "gave something that is no number"),
        (ScriptedReward(key="right"), {"reward_upstream_api_key": "wrong"}, "lists no model"),
        (ScriptedReward(delay_s=1.0), {"reward_timeout_s": 0.05, "reward_model": JUDGE}, "did not answer|could not be"),
    ],
)
async def test_whatever_goes_wrong_is_a_failed_selection_that_says_why(
    scripted: ScriptedReward, settings: dict[str, Any], cause: str
) -> None:
    async with judged_by(scripted, **settings) as reward:
        with pytest.raises(SelectionFailed, match=cause):
            await reward.rewards(TOLD, says("good"))


async def test_one_reply_that_does_not_fit_fails_the_selection_and_ends_the_other_calls() -> None:
    scripted = ScriptedReward(limit=1000)
    async with judged_by(scripted) as reward:
        await reward.service()
        with pytest.raises(SelectionFailed, match="maximum context length"):
            await reward.rewards(TOLD, says("good", "x" * 2000))


async def test_an_upstream_that_is_away_fails_and_one_that_came_back_as_another_is_asked_anew() -> None:
    scripted = ScriptedReward("classifier", longest_word)
    async with judged_by(scripted) as reward:
        assert await reward.rewards(TOLD, says("good")) == (0.0,)
        scripted.kind = "embedding"
        with pytest.raises(SelectionFailed, match="/classify answered 404"):
            await reward.rewards(TOLD, says("good"))
        assert await reward.rewards(TOLD, says("good")) == (0.0,)
        assert (await reward.service()).path == "/score"
    away = reward_upstream(Settings(reward_upstream="http://127.0.0.1:9"))
    assert away is not None
    with pytest.raises(SelectionFailed, match="lists no model"):
        await away.rewards(TOLD, says("good"))
    await away.aclose()


async def test_doctor_says_how_replies_are_judged_or_what_is_wrong() -> None:
    async with judged_by(ScriptedReward("classifier", lambda _: 0.25)) as reward:
        check = await check_reward(reward, Settings(reward_upstream="http://rm:1"))
    assert check.status is Status.OK
    assert check.message == "http://rm:1 judges replies with judge through /classify: 0.250 for one tiny answer."
    async with judged_by(ScriptedReward(paths=set())) as reward:
        check = await check_reward(reward, Settings(reward_upstream="http://rm:1"))
    assert check.status is Status.WARNING
    assert check.remedy is not None
    assert "reward_route" in check.remedy


# Through the whole proxy

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "seed": 7, "temperature": 0.8}
POLICY = {"mode": "best_of_n", "n_max": 3, "checkpoints": [], "selector": "reward_model"}
Judge = Callable[[str], float]


@asynccontextmanager
async def proxied(
    tmp_path: Path, scripted: ScriptedReward, *replies: str, judge: Judge = lambda _: 0.5, **settings: Any
) -> AsyncIterator[tuple[SamplingUpstream, Any, httpx.AsyncClient]]:
    upstream = SamplingUpstream([Reply(each) for each in replies], judge=judge)
    async with (
        upstream.serving(),
        scripted.serving(),
        running_proxy(upstream.url, tmp_path, reward_upstream=scripted.url, **settings) as proxy,
    ):
        upstream.scorings.clear()
        headers = await proxy.make_key("alice")
        async with httpx.AsyncClient(base_url=proxy.url, headers=headers, timeout=10) as alice:
            yield upstream, proxy, alice


async def test_the_reward_model_picks_by_the_users_own_constitution_and_no_score_is_bought(tmp_path: Path) -> None:
    def reward(chat: str) -> float:
        return float(("French" in chat) == ("bonjour" in chat)) + float("hello there" in chat) / 2

    async with proxied(tmp_path, ScriptedReward(reward=reward), "hi", "hello there", "bonjour") as (up, proxy, alice):
        headers = await proxy.make_key("bob")
        async with httpx.AsyncClient(base_url=proxy.url, headers=headers) as bob:
            await bob.put("/v1/constitution", json={"principles": ["Speak French."]})
            for_bob = (await bob.post("/v1/chat/completions", json=CHAT | {"preamble": POLICY})).json()
        for_alice = (await alice.post("/v1/chat/completions", json=CHAT | {"preamble": POLICY})).json()
    assert for_bob["choices"][0]["message"]["content"] == "bonjour"
    assert for_alice["choices"][0]["message"]["content"] == "hello there"
    assert for_alice["preamble"]["selector"] == "reward_model"
    assert for_alice["preamble"]["degradations"] == []
    assert up.scorings == []


async def test_a_reward_model_that_fails_gives_way_to_the_scores_and_is_counted(tmp_path: Path) -> None:
    def judge(text: str) -> float:
        return 0.9 if "two" in text else 0.2

    scripted = ScriptedReward(delay_s=5.0)
    settings = {"reward_timeout_s": 0.1}
    async with proxied(tmp_path, scripted, "one", "two", "three", judge=judge, **settings) as (up, proxy, alice):
        body = (await alice.post("/v1/chat/completions", json=CHAT | {"preamble": POLICY})).json()
        assert body["choices"][0]["message"]["content"] == "two"
        assert [(each["failed"], each["instead"]) for each in body["preamble"]["degradations"]] == [
            ("reward_model", "self_evaluation")
        ]
        assert [len(scoring["prompt"]) for scoring in up.scorings] == [3]
        name = 'preamble_sampling_degradations_total{instead="self_evaluation",part="selector"}'
        assert await proxy.metric(name) == 1


async def test_a_client_that_leaves_ends_the_calls_to_the_reward_model(tmp_path: Path) -> None:
    scripted = ScriptedReward()
    async with proxied(tmp_path, scripted, "one", "two", "three") as (_, _proxy, alice):
        await alice.post("/v1/chat/completions", json=CHAT | {"preamble": POLICY})
        scripted.delay_s = 5.0
        asking = asyncio.create_task(alice.post("/v1/chat/completions", json=CHAT | {"preamble": POLICY}))
        async with asyncio.timeout(5):
            while scripted.waiting < 3:
                assert not asking.done()
                await asyncio.sleep(0.01)
            asking.cancel()
            while scripted.waiting:
                assert not scripted.asked[-1][0].startswith("/v1")
                await asyncio.sleep(0.01)
        assert scripted.left == ["/classify"] * 3
