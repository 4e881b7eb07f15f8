"""Sampled chats through the whole proxy, over real sockets, in front of an upstream that says what it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from server.self_evaluation_config import FILE
from tests.server.running import RunningProxy, running_proxy
from tests.server.sampling_upstream import MODEL, NO, YES, Reply, SamplingUpstream

CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hello"}],
    "seed": 7,
    "temperature": 0.8,
}
WRITING_MS = 50
"""What settling on an answer and writing its first token may lie apart, on a busy machine."""

BEST_OF_3 = {"mode": "best_of_n", "n_max": 3, "checkpoints": []}
ADAPTIVE = {"mode": "adaptive", "n_max": 4, "threshold": 0.8, "checkpoints": []}


@dataclass
class Setting:
    upstream: SamplingUpstream
    proxy: RunningProxy
    alice: httpx.AsyncClient

    async def chat(self, policy: object = None, **fields: Any) -> httpx.Response:
        body = CHAT | fields | ({} if policy is None else {"preamble": policy})
        return await self.alice.post("/v1/chat/completions", json=body)

    async def stream(self, policy: object, **fields: Any) -> list[Any]:
        """Return the events of a streamed chat; comments as they are."""
        answer = await self.chat(policy, stream=True, **fields)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
        return [json.loads(event) if event.startswith("{") else event for event in events]


Open = Callable[..., Any]


@pytest.fixture
def open_setting(tmp_path: Path) -> Open:
    @asynccontextmanager
    async def opened(
        *replies: Reply | str, settings: dict[str, Any] | None = None, **upstream: Any
    ) -> AsyncIterator[Setting]:
        scripted = SamplingUpstream([Reply(each) if isinstance(each, str) else each for each in replies], **upstream)
        async with scripted.serving(), running_proxy(scripted.url, tmp_path, **(settings or {})) as proxy:
            scripted.chats.clear()
            scripted.scorings.clear()
            headers = await proxy.make_key("alice")
            async with httpx.AsyncClient(base_url=proxy.url, headers=headers, timeout=10) as alice:
                yield Setting(scripted, proxy, alice)

    return opened


def prefers(*words: str) -> Callable[[str], float]:
    """Judge what stands in the latest answer: 0.9 for the first word, less for each that follows, 0.1 without any."""

    def judge(text: str) -> float:
        answer = text.rpartition("\2assistant\n")[0].rpartition("\2assistant\n")[2]
        return next((0.9 - place / 10 for place, word in enumerate(words) if word in answer), 0.1)

    return judge


async def test_the_best_candidate_is_answered_as_vllm_would_have_and_the_report_says_the_rest(
    open_setting: Open,
) -> None:
    async with open_setting("one", "two", "three", judge=prefers("two", "three")) as at:
        answer = await at.chat(BEST_OF_3)
        body = answer.json()
        assert body["choices"][0]["message"]["content"] == "two"
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["choices"][0]["logprobs"] is None
        assert body["choices"][0]["token_ids"] is None
        prompt_tokens = body["usage"]["prompt_tokens"]
        assert body["usage"]["completion_tokens"] == 4
        assert body["usage"]["total_tokens"] == prompt_tokens + 4
        told = body["preamble"]
        assert told["candidates"] == {"drawn": 3, "pruned": 0}
        assert told["tokens"]["generated"] == 4 + 4 + 6
        assert told["choices"] == [{"candidate": 1, "score": 0.9, "label_mass": 1.0, "tokens": 4, "complete": True}]
        assert (told["stop_reason"], told["scorer"], told["seed"]) == ("n_max", "self_evaluation", 7)
        assert answer.headers["x-preamble-sampling"].startswith("mode=best_of_n, drawn=3, pruned=0, generated=14")
        assert "hint" not in told
        assert told["restrained_by"] == []


async def test_candidates_differ_in_seed_and_id_alone_and_share_salt_and_constitution(open_setting: Open) -> None:
    async with open_setting("one") as at:
        await at.alice.put("/v1/constitution", json={"principles": ["Be brief."]})
        answer = await at.chat(BEST_OF_3, max_tokens=9)
        assert answer.headers["x-preamble-constitution"]
        chats = sorted(at.upstream.chats, key=lambda chat: chat["seed"] != 7)
        assert len({chat.pop("seed") for chat in chats}) == 3
        assert chats[0] == chats[1] == chats[2]
        assert "Be brief." in chats[0]["messages"][0]["content"]
        assert len(chats[0]["cache_salt"]) == 64
        assert chats[0]["max_tokens"] == 9
        assert chats[0]["return_token_ids"] is True
        assert not {"preamble", "n"} & set(chats[0])
        assert len(set(at.upstream.chat_ids)) == 3
        assert {scoring["cache_salt"] for scoring in at.upstream.scorings} == {chats[0]["cache_salt"]}


async def test_the_question_follows_the_answer_as_a_turn_of_its_own_and_is_looked_up_once(open_setting: Open) -> None:
    async with open_setting("one", "two", judge=prefers("two")) as at:
        await at.chat(BEST_OF_3)
        sequence = "".join(map(chr, at.upstream.scorings[0]["prompt"][0]))
        assert sequence.startswith("\2user\nhello\3\2assistant\n")
        question = '\3\2user\nWould you do better if you started over? ("Yes." or "No.")\3\2assistant\n'
        assert sequence.endswith(question)
        assert sequence.count("\3") == 3  # the end that the candidate generated is not doubled
        tokenized = at.upstream.tokenized
        await at.chat(BEST_OF_3)
        assert at.upstream.tokenized == tokenized


async def test_one_call_scores_all_that_are_due_at_a_checkpoint_and_the_worst_are_aborted(open_setting: Open) -> None:
    slow = [Reply(word * 40, gap_s=0.02) for word in ("a", "b", "c", "d")]
    policy = {"mode": "best_of_n", "n_max": 4, "checkpoints": [{"tokens": 8, "keep": 0.5}]}
    async with open_setting(*slow, judge=prefers("cccc", "bbbb")) as at:
        body = (await at.chat(policy)).json()
        assert body["choices"][0]["message"]["content"] == "c" * 40
        assert body["preamble"]["candidates"] == {"drawn": 4, "pruned": 2}
        assert len(at.upstream.scorings[0]["prompt"]) == 4
        assert {request_id[-3:] for request_id in at.upstream.aborted} == {".c0", ".c3"}
        trace = (await at.alice.get(f"/v1/traces/{body['id']}")).json()
        assert [each["fate"] for each in trace["candidates"]] == ["pruned", "finished", "returned", "pruned"]
        assert trace["candidates"][2]["scores"][0]["tokens"] == 8
        assert trace["candidates"][0]["text"].startswith("aaaaaaaa")
        pruned = 'preamble_prune_decisions_total{checkpoint="32",decision="pruned"}'
        assert await at.proxy.metric(pruned) == 2
        assert await at.proxy.metric('preamble_candidate_tokens_total{fate="pruned"}') >= 16


async def test_adaptive_sampling_stops_at_the_first_that_is_good_enough(open_setting: Open) -> None:
    async with open_setting("good", "other", judge=prefers("good")) as at:
        told = (await at.chat(ADAPTIVE)).json()["preamble"]
        assert (told["candidates"]["drawn"], told["stop_reason"]) == (1, "threshold")
        assert await at.proxy.metric('preamble_resampling_decisions_total{reason="threshold"}') == 1


async def test_adaptive_sampling_draws_on_with_annealed_temperature_where_none_is(open_setting: Open) -> None:
    async with open_setting("bad", "good", "poor", judge=prefers("good", "poor")) as at:
        answer = await at.chat(ADAPTIVE | {"annealing": {"start": 1, "end": 0.5, "rate": 0}})
        assert answer.json()["choices"][0]["message"]["content"] == "good"
        assert answer.json()["preamble"]["candidates"]["drawn"] == 2
        assert [chat["temperature"] for chat in at.upstream.chats] == [0.8, 0.4]


async def test_a_request_without_a_temperature_leaves_it_to_the_upstream(open_setting: Open) -> None:
    async with open_setting("one") as at:
        body = {name: value for name, value in CHAT.items() if name != "temperature"}
        await at.alice.post("/v1/chat/completions", json=body | {"preamble": BEST_OF_3})
        assert len(at.upstream.chats) == 3
        assert not [chat for chat in at.upstream.chats if "temperature" in chat]


async def test_two_users_with_opposite_constitutions_get_different_winners_from_the_same_candidates(
    open_setting: Open,
) -> None:
    def judge(text: str) -> float:
        french = "bonjour" in text.split("\3\2assistant\n")[1]
        return 0.9 if french == ("Speak French." in text) else 0.2

    async with open_setting("bonjour", "hello there", judge=judge) as at:
        await at.alice.put("/v1/constitution", json={"principles": ["Speak French."]})
        headers = await at.proxy.make_key("bob")
        async with httpx.AsyncClient(base_url=at.proxy.url, headers=headers) as bob:
            await bob.put("/v1/constitution", json={"principles": ["Speak English."]})
            policy = BEST_OF_3 | {"n_max": 2}
            for_alice = (await at.chat(policy)).json()
            for_bob = (await bob.post("/v1/chat/completions", json=CHAT | {"preamble": policy})).json()
        assert for_alice["choices"][0]["message"]["content"] == "bonjour"
        assert for_bob["choices"][0]["message"]["content"] == "hello there"


async def test_n_choices_are_the_n_best_best_first_and_usage_counts_them_all(open_setting: Open) -> None:
    async with open_setting("one", "two", "three", judge=prefers("three", "one")) as at:
        body = (await at.chat(BEST_OF_3, n=2)).json()
        assert [choice["message"]["content"] for choice in body["choices"]] == ["three", "one"]
        assert [choice["index"] for choice in body["choices"]] == [0, 1]
        assert body["usage"]["completion_tokens"] == 6 + 4
        events = await at.stream(BEST_OF_3, n=2)
        texts = ["", ""]
        for event in events[:-1]:
            for choice in event["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
        assert texts == ["three", "one"]
        assert [index for index, event in enumerate(events) if "preamble" in event] == [len(events) - 2]


async def test_a_stream_is_kept_alive_until_a_candidate_is_settled_and_then_flows(open_setting: Open) -> None:
    replies = [Reply("one", gap_s=0.05), Reply("two", gap_s=0.05)]
    async with open_setting(*replies, judge=prefers("two"), settings={"keep_alive_s": 0.05}) as at:
        events = await at.stream(BEST_OF_3 | {"n_max": 2}, stream_options={"include_usage": True})
        comments = [event for event in events if event == ": keep-alive"]
        chunks = events[len(comments) : -1]
        assert comments
        assert events[-1] == "[DONE]"
        assert events[: len(comments)] == comments
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]) == "two"
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        told = chunks[-2]["preamble"]
        assert told["candidates"]["drawn"] == 2
        assert 0 < told["first_token_ms"] <= told["took_ms"] + WRITING_MS
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == 4
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert not [chunk for chunk in chunks if 'token_ids": [' in json.dumps(chunk)]


async def test_the_first_token_is_told_beside_that_of_plain_best_of_n(open_setting: Open) -> None:
    async with open_setting(Reply("good" * 10, gap_s=0.01), Reply("poor", gap_s=0.01), judge=prefers("good")) as at:
        plain = (await at.stream(BEST_OF_3 | {"n_max": 2}))[-2]["preamble"]
        assert plain["best_of_n_first_token_is_estimated"] is False
        assert plain["best_of_n_first_token_ms"] == plain["took_ms"] >= plain["first_token_ms"] - WRITING_MS
        adaptive = (await at.stream(ADAPTIVE | {"checkpoints": [{"tokens": 8, "keep": 1.0}]}))[-2]["preamble"]
        assert adaptive["best_of_n_first_token_is_estimated"] is True
        assert adaptive["first_token_ms"] < adaptive["best_of_n_first_token_ms"]
        whole = (await at.chat(BEST_OF_3)).json()["preamble"]
        assert whole["best_of_n_first_token_ms"] is whole["first_token_ms"] is None
        for mode, told in (("best_of_n", plain), ("adaptive", adaptive)):
            for name, field in (("sampled", "first_token_ms"), ("best_of_n", "best_of_n_first_token_ms")):
                seconds = await at.proxy.metric(f'preamble_{name}_time_to_first_token_seconds_sum{{mode="{mode}"}}')
                assert seconds == pytest.approx(told[field] / 1000, abs=1e-3)


async def test_a_candidate_that_is_settled_on_before_it_says_anything_has_its_first_token_later(
    open_setting: Open,
) -> None:
    settings = {"load_low": 1, "load_high": 4, "load_poll_s": 0.02}
    async with open_setting(Reply("one", gap_s=0.05), waiting=9, settings=settings) as at:
        await at.chat(BEST_OF_3)  # while it runs, the depth becomes known
        told = (await at.stream(BEST_OF_3))[-2]["preamble"]
        assert told["candidates"]["drawn"] == 1
        assert 40 < told["first_token_ms"] < told["took_ms"]


async def test_commit_at_streams_the_best_so_far_while_it_is_still_generated(open_setting: Open) -> None:
    replies = [Reply("a" * 60, gap_s=0.02), Reply("b" * 60, gap_s=0.02)]
    policy = {"mode": "best_of_n", "n_max": 2, "checkpoints": [{"tokens": 5, "keep": 1.0}], "commit_at": 20}
    async with open_setting(*replies, judge=prefers("bbb")) as at:
        events = await at.stream(policy)
        told = events[-2]["preamble"]
        assert told["choices"][0]["candidate"] == 1
        assert told["first_token_ms"] < told["took_ms"] * 0.7
        assert [request_id[-3:] for request_id in at.upstream.aborted] == [".c0"]
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == "b" * 60
        assert told["stop_reason"] == "commit_at"
        assert await at.proxy.metric('preamble_resampling_decisions_total{reason="commit_at"}') == 1


async def test_tool_calls_and_reasoning_are_put_together_from_their_pieces(open_setting: Open) -> None:
    deltas = (
        {"reasoning": "Let me "},
        {"reasoning": "see."},
        {"tool_calls": [{"index": 0, "id": "call-1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
    )
    async with open_setting(Reply("12345", "tool_calls", deltas=deltas)) as at:
        choice = (await at.chat(BEST_OF_3)).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        call = {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
        message = choice["message"]
        assert (message["content"], message["reasoning"], message["tool_calls"]) == (None, "Let me see.", [call])


async def test_logprobs_and_token_ids_are_shown_if_the_client_asks_for_them(open_setting: Open) -> None:
    async with open_setting("one") as at:
        body = (await at.chat(BEST_OF_3, logprobs=True, top_logprobs=1, return_token_ids=True)).json()
        content = body["choices"][0]["logprobs"]["content"]
        assert [entry["token"] for entry in content] == ["o", "n", "e", ""]
        assert {len(entry["top_logprobs"]) for entry in content} == {1}
        assert body["choices"][0]["token_ids"] == [*map(ord, "one"), 3]
        assert len(body["prompt_token_ids"]) == body["usage"]["prompt_tokens"]
        events = await at.stream(BEST_OF_3, return_token_ids=True)
        assert events[0]["prompt_token_ids"] == body["prompt_token_ids"]
        assert [token for event in events[:-1] for token in event["choices"][0].get("token_ids", [])] == [
            *map(ord, "one"),
            3,
        ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"temperature": 0}, "greedy"),
        ({"top_k": 1}, "greedy"),
        ({"preamble": {"mode": "off"}}, "off"),
        ({"preamble": {"n_max": 1}}, "single"),
        ({"use_beam_search": True}, "beam_search"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"n": 0}, "not_understood"),
        ({"temperature": "hot"}, "not_understood"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "not_text"),
    ],
)
async def test_a_request_that_cannot_gain_is_passed_through_and_says_so(
    open_setting: Open, fields: dict[str, Any], reason: str
) -> None:
    async with open_setting("one") as at:
        answer = await at.chat(fields.get("preamble", {"n_max": 3}), **fields)
        assert answer.headers["x-preamble-sampling"] == f"pass_through={reason}"
        assert answer.json()["id"] == "chatcmpl-plain"
        assert "preamble" not in at.upstream.chats[0]
        assert await at.proxy.metric(f'preamble_sampling_passed_through_total{{reason="{reason}"}}') == 1


async def test_without_a_policy_nothing_is_sampled_and_no_header_is_added(open_setting: Open) -> None:
    async with open_setting("one") as at:
        answer = await at.chat()
        assert "x-preamble-sampling" not in answer.headers
        assert len(at.upstream.chats) == 1
        await at.chat(model="library/model:latest")
        assert at.upstream.chats[-1]["model"] == "library/model:latest"


async def test_the_policy_of_body_header_alias_user_and_server_win_in_this_order(open_setting: Open) -> None:
    settings = {"policy": "mode=best_of_n, n_max=2, checkpoints=[]".replace(", checkpoints=[]", "")}
    async with open_setting("one", settings=settings) as at:

        async def drawn(policy: object, **fields: Any) -> int:
            at.upstream.chats.clear()
            headers = fields.pop("headers", {})
            body = CHAT | fields | ({} if policy is None else {"preamble": policy})
            answer = await at.alice.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            return len(at.upstream.chats)

        header = {"x-preamble-policy": "n_max=4"}
        assert await drawn(None) == 2
        assert (await at.alice.put("/v1/policy", json={"n_max": 6})).status_code == 201
        assert await drawn(None) == 6
        assert await drawn(None, model=f"{MODEL}:best-of-3") == 3
        assert at.upstream.chats[0]["model"] == MODEL
        assert await drawn(None, model=f"{MODEL}:best-of-3", headers=header) == 4
        assert await drawn({"n_max": 5}, model=f"{MODEL}:best-of-3", headers=header) == 5
        assert await drawn({"mode": "off"}) == 1
        await at.alice.put("/v1/policy", json={"mode": "off"})
        assert await drawn(None) == 1
        assert await drawn({"n_max": 3, "mode": "best_of_n"}) == 3
        await at.alice.delete("/v1/policy")
        assert await drawn(None) == 2


async def test_a_users_default_is_theirs_alone_and_holds_for_whoever_says_nothing(open_setting: Open) -> None:
    async with open_setting("one", "two", "three", judge=prefers("three")) as at:
        put = await at.proxy.admin.put("/v1/users/alice/policy", json=BEST_OF_3)
        assert put.status_code == 201
        sampled = await at.chat()
        assert sampled.json()["preamble"]["candidates"]["drawn"] == 3
        headers = await at.proxy.make_key("bob")
        async with httpx.AsyncClient(base_url=at.proxy.url, headers=headers) as bob:
            plain = await bob.post("/v1/chat/completions", json=CHAT)
        assert plain.json()["id"] == "chatcmpl-plain"
        assert "x-preamble-sampling" not in plain.headers
        streamed = await at.stream(None)
        assert streamed[-2]["preamble"]["candidates"]["drawn"] == 3


async def test_a_users_default_that_does_not_go_with_a_request_is_named_in_the_400(open_setting: Open) -> None:
    async with open_setting("one") as at:
        await at.alice.put("/v1/policy", json={"commit_at": 9})
        answer = await at.chat({"streaming": "whole"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "policy.commit_at")


async def test_the_aliases_are_listed_beside_the_models(open_setting: Open) -> None:
    async with open_setting("one") as at:
        client = AsyncOpenAI(base_url=f"{at.proxy.url}/v1", api_key=at.alice.headers["authorization"].split()[1])
        async with client:
            names = [model.id async for model in await client.models.list()]
        assert names == [MODEL, f"{MODEL}:adaptive", f"{MODEL}:best-of-8"]


@pytest.mark.parametrize(
    ("policy", "param"),
    [
        ({"n_max": 0}, "preamble.n_max"),
        ({"checkpoints": [{"tokens": 4, "keep": 2}]}, "preamble.checkpoints[0].keep"),
        ({"checkpoints": [{"tokens": 9, "keep": 1}, {"tokens": 9, "keep": 1}]}, "preamble.checkpoints[1].tokens"),
        ({"nmax": 3}, "preamble.nmax"),
        ({"selector": "majority"}, "preamble.selector"),
        ({"selector": "reward_model"}, "preamble.selector"),
        ({"commit_at": 9, "streaming": "whole"}, "preamble.commit_at"),
        ([], "preamble"),
    ],
)
async def test_a_wrong_field_is_a_400_that_names_it(open_setting: Open, policy: object, param: str) -> None:
    async with open_setting("one") as at:
        answer = await at.chat(policy)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        assert param in answer.json()["error"]["message"]
        assert not at.upstream.chats


async def test_a_client_that_leaves_aborts_every_candidate(open_setting: Open) -> None:
    async with open_setting(Reply("x" * 500, gap_s=0.02)) as at:
        asking = asyncio.create_task(at.chat(BEST_OF_3))
        while len(at.upstream.running) < 3:
            assert not asking.done()
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # so that each has some tokens
        asking.cancel()
        async with asyncio.timeout(2):
            while at.upstream.running:
                assert len(at.upstream.running) <= 3
                await asyncio.sleep(0.01)
        assert len(at.upstream.aborted) == 3
        assert await at.proxy.metric('preamble_client_disconnects_total{phase="waiting"}') == 1
        assert await at.proxy.metric('preamble_candidate_tokens_total{fate="aborted"}') > 0


async def test_a_candidate_that_fails_does_not_fail_the_request(open_setting: Open) -> None:
    async with open_setting(Reply("broken", breaks_after=2), Reply("", status=500), "good") as at:
        body = (await at.chat(BEST_OF_3)).json()
        assert body["choices"][0]["message"]["content"] == "good"
        trace = (await at.alice.get(f"/v1/traces/{body['id']}")).json()
        assert [each["fate"] for each in trace["candidates"]] == ["failed", "failed", "returned"]


async def test_an_upstream_that_is_busy_means_no_more_candidates(open_setting: Open) -> None:
    async with open_setting("poor", Reply("", status=503)) as at:
        body = (await at.chat(ADAPTIVE)).json()
        assert body["choices"][0]["message"]["content"] == "poor"
        assert body["preamble"]["stop_reason"] == "engine_busy"
        assert body["preamble"]["restrained_by"] == ["engine_busy"]
        assert "The upstream refused more work" in body["preamble"]["hint"]


async def test_where_every_candidate_is_refused_the_upstreams_own_words_are_relayed(open_setting: Open) -> None:
    async with open_setting(Reply("", status=400)) as at:
        for stream in (False, True):
            answer = await at.chat(BEST_OF_3, stream=stream)
            assert answer.status_code == 400
            assert answer.json() == {"error": {"message": "scripted refusal", "code": 400}}


@pytest.mark.parametrize(
    ("status", "sent"),
    [(400, 1), (404, 1), (422, 1), (408, 2), (409, 2), (425, 2), (500, 2), (429, 1), (503, 1)],
)
async def test_a_request_that_is_refused_as_wrong_is_sent_once(open_setting: Open, status: int, sent: int) -> None:
    async with open_setting(Reply("", status=status)) as at:
        answer = await at.chat(ADAPTIVE)
        assert (answer.status_code, len(at.upstream.chats)) == (status, sent)


async def test_a_candidate_that_is_refused_as_wrong_does_not_fail_the_request_and_is_the_last_drawn(
    open_setting: Open,
) -> None:
    async with open_setting("poor", Reply("", status=400)) as at:
        body = (await at.chat(ADAPTIVE)).json()
        assert body["choices"][0]["message"]["content"] == "poor"
        assert (body["preamble"]["stop_reason"], len(at.upstream.chats)) == ("engine_failed", 2)


async def test_a_committed_candidate_that_breaks_ends_the_stream_with_an_error(open_setting: Open) -> None:
    policy = {"mode": "best_of_n", "n_max": 2, "checkpoints": [], "commit_at": 3}
    async with open_setting(Reply("x" * 50, breaks_after=20, gap_s=0.005)) as at:
        events = await at.stream(policy)
        assert events[0]["choices"]
        assert events[-1]["error"]["code"] == "upstream_broken"


@pytest.mark.parametrize("trouble", [{"score_status": 500}, {"label_mass": 1e-6}])
async def test_scoring_that_fails_degrades_to_mean_log_probability_by_name(
    open_setting: Open, trouble: dict[str, Any]
) -> None:
    async with open_setting("one", "two", **trouble) as at:
        told = (await at.chat(BEST_OF_3)).json()["preamble"]
        assert told["scorer"] == "mean_log_probability"
        assert told["hint"].startswith("The scorer self_evaluation failed (")
        assert told["hint"].endswith("in its place: mean_log_probability. The operator's `preamble doctor` says more.")
        assert told["restrained_by"] == []
        (degradation,) = told["degradations"]
        assert (degradation["failed"], degradation["instead"]) == ("self_evaluation", "mean_log_probability")
        name = 'preamble_sampling_degradations_total{instead="mean_log_probability",part="scorer"}'
        assert await at.proxy.metric(name) == 1


IDS = {"format": 1, "suffix_ids": [3, 9, 10], "win_or_tie_ids": [NO], "loss_ids": [YES]}
READ_OUT = {"read_out": {"win_or_tie_ids": [NO], "loss_ids": [YES]}}


async def test_a_question_in_token_ids_follows_every_response_whether_it_has_ended_or_not(
    open_setting: Open, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(json.dumps(IDS))
    policy = {"mode": "best_of_n", "n_max": 2, "checkpoints": [{"tokens": 2, "keep": 0.5}]}
    async with open_setting(
        Reply("one", gap_s=0.02), Reply("two", gap_s=0.02), settings={"self_evaluation": tmp_path}
    ) as at:
        for each in (policy, BEST_OF_3):
            assert (await at.chat(each)).json()["preamble"]["scorer"] == "self_evaluation"
        endings = {
            "".join(map(chr, ids)).rpartition("\2assistant\n")[2] for s in at.upstream.scorings for ids in s["prompt"]
        }
        # No end of the turn but the suffix's own.
        assert endings == {f"{said}\3\t\n" for said in ("on", "tw", "one", "two")}


# Trained tokens; the highest that the scripted upstream can show as text.
TRAINED = IDS | {"suffix_ids": [1_000_000, 1_000_001], "new_ids_from": 1_000_000}


async def test_a_suffix_of_trained_tokens_follows_a_response_with_the_end_that_it_has(
    open_setting: Open, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(json.dumps(TRAINED))
    policy = {"mode": "best_of_n", "n_max": 2, "checkpoints": [{"tokens": 2, "keep": 0.5}]}
    async with open_setting(
        Reply("one", gap_s=0.02), Reply("two", gap_s=0.02), settings={"self_evaluation": tmp_path}
    ) as at:
        for each in (policy, BEST_OF_3):
            assert (await at.chat(each)).json()["preamble"]["scorer"] == "self_evaluation"
        asked = [ids for scoring in at.upstream.scorings for ids in scoring["prompt"]]
        assert {tuple(ids[-2:]) for ids in asked} == {(1_000_000, 1_000_001)}
        endings = {"".join(map(chr, ids[:-2])).rpartition("\2assistant\n")[2] for ids in asked}
        assert endings == {"on", "tw", "one\3", "two\3"}


async def test_no_client_can_ask_for_the_tokens_of_self_evaluation(open_setting: Open, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(TRAINED))
    async with open_setting("one", "two", root=str(tmp_path)) as at:
        for model in (MODEL, f"{MODEL}:best-of-2"):
            for field, value in (("logit_bias", {"7": 1, "1000001": 100}), ("allowed_token_ids", [7, NO])):
                answer = await at.chat(None, model=model, **{field: value})
                assert answer.status_code == 400
                assert answer.json()["error"]["param"] == field
        assert at.upstream.chats == []
        for prompt in ([5, 1_000_000], [[5], [1_000_000]]):
            answer = await at.alice.post("/v1/completions", json={"model": MODEL, "prompt": prompt})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"].startswith("prompt")


async def test_what_a_client_lowers_stays_above_the_tokens_of_self_evaluation(
    open_setting: Open, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(json.dumps(TRAINED))
    lowest = {str(each): -100 for each in (1_000_000, 1_000_001, YES, NO)}
    async with open_setting("one", "two", settings={"self_evaluation": tmp_path}) as at:
        for policy in (None, BEST_OF_3):
            assert (await at.chat(policy, logit_bias={"7": -100})).status_code == 200
        assert [chat["logit_bias"] for chat in at.upstream.chats] == [{"7": -100} | lowest] * 4
        at.upstream.chats.clear()
        await at.chat(None, logit_bias={})
        await at.chat(None, logit_bias="none", allowed_token_ids={"7": 1})
        assert [chat["logit_bias"] for chat in at.upstream.chats] == [{}, "none"]
    (tmp_path / FILE).write_text(json.dumps(IDS))  # ids of its own text
    async with open_setting("one", settings={"self_evaluation": tmp_path}) as at:
        await at.chat(None, logit_bias={str(NO): 100})
        assert at.upstream.chats[0]["logit_bias"] == {str(NO): 100}


async def test_the_configuration_is_found_where_the_upstream_has_loaded_its_model_from(
    open_setting: Open, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(json.dumps(IDS))
    async with open_setting("one", "two", root=str(tmp_path)) as at:
        await at.chat(BEST_OF_3)
        assert at.upstream.scorings[0]["prompt"][0][-3:] == [3, 9, 10]


async def test_the_read_out_judges_by_labels_that_come_with_the_tokens_and_asks_for_nothing(
    open_setting: Open, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(json.dumps({"format": 1} | READ_OUT))
    async with open_setting("one", "two", judge=prefers("two"), settings={"self_evaluation": tmp_path}) as at:
        body = (await at.chat(BEST_OF_3 | {"scorer": "read_out"})).json()
        assert body["choices"][0]["message"]["content"] == "two"
        assert (body["preamble"]["scorer"], body["preamble"]["choices"][0]["score"]) == ("read_out", 0.9)
        assert body["choices"][0]["logprobs"] is None
        assert {tuple(chat["logprob_token_ids"]) for chat in at.upstream.chats} == {(NO, YES)}
        assert at.upstream.scorings == []


async def test_staged_prunes_by_the_read_out_for_nothing_and_asks_of_what_has_ended(
    open_setting: Open, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(json.dumps({"format": 1} | READ_OUT))
    replies = [Reply(text * 8, gap_s=0.01) for text in "abc"]
    policy = BEST_OF_3 | {"scorer": "staged", "checkpoints": [{"tokens": 4, "keep": 0.6}]}
    # The read-out takes c for the best of all, the question b, once it is whole.
    judge = prefers("b" * 8, "ccc", "bbb")
    async with open_setting(*replies, judge=judge, settings={"self_evaluation": tmp_path}) as at:
        answer = await at.chat(policy)
        told = answer.json()["preamble"]
        assert (told["scorer"], told["degradations"], told["candidates"]["pruned"]) == ("staged", [], 1)
        assert answer.json()["choices"][0]["message"]["content"] == "b" * 8
        trace = (await at.alice.get(f"/v1/traces/{answer.json()['id']}")).json()
        (pruned,) = (each for each in trace["decisions"] if each["decision"] == "pruned")
        assert (pruned["pruned"], pruned["scores"]) == ([0], pytest.approx([0.1, 0.7, 0.8]))
        early = [call for call in trace["scoring"] if call["checkpoint"] == 4]
        assert [(call["candidates"], call["computed_tokens"]) for call in early] == [([0, 1, 2], 0)]
        asked = ["".join(map(chr, sequence)) for call in at.upstream.scorings for sequence in call["prompt"]]
        assert sorted(text.count("b" * 8) for text in asked) == [0, 1], "each of those that have ended, once"
        assert sorted(text.count("c" * 8) for text in asked) == [0, 1]
        assert {tuple(chat["logprob_token_ids"]) for chat in at.upstream.chats} == {(NO, YES)}


async def test_staged_falls_back_where_the_question_is_not_answered(open_setting: Open, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"format": 1} | READ_OUT))
    async with open_setting("one", "two", settings={"self_evaluation": tmp_path}, score_status=500) as at:
        told = (await at.chat(BEST_OF_3 | {"scorer": "staged"})).json()["preamble"]
        assert told["scorer"] == "mean_log_probability"
        assert [(each["failed"], each["instead"]) for each in told["degradations"]] == [
            ("staged", "mean_log_probability")
        ]


# p = 0.25 + 0.05 * (x = mean log-probability); the upstream's is -0.5 for every token.
BY_LOG_PROBABILITY = {
    "features": ["log_odds", "mean_log_probability"],
    "buckets": [
        {"up_to": 2, "weights": [1.0, 1.0], "bias": 0.0, "knots": [[-9.0, 0.9], [9.0, 0.9]]},
        {"final": True, "weights": [0.0, 1.0], "bias": 0.0, "knots": [[-5.0, 0.0], [5.0, 0.5]]},
    ],
}


@pytest.mark.parametrize("scorer", ["self_evaluation", "read_out", "staged"])
async def test_scores_are_calibrated_by_log_probabilities_that_the_client_does_not_see(
    open_setting: Open, tmp_path: Path, scorer: str
) -> None:
    read_out = {"read_out": READ_OUT["read_out"] | {"calibration": BY_LOG_PROBABILITY}}
    (tmp_path / FILE).write_text(json.dumps({"format": 1, "calibration": BY_LOG_PROBABILITY} | read_out))
    policy = BEST_OF_3 | {"scorer": scorer}
    async with open_setting("one", "two", judge=prefers("two"), settings={"self_evaluation": tmp_path}) as at:
        body = (await at.chat(policy)).json()
        assert (body["preamble"]["scorer"], body["preamble"]["choices"][0]["score"]) == (scorer, 0.225)
        assert body["choices"][0]["logprobs"] is None
        assert {chat["logprobs"] for chat in at.upstream.chats} == {True}
        assert {bool(chat.get("top_logprobs")) for chat in at.upstream.chats} == {False}
        events = await at.stream(policy)
        assert "preamble" in json.dumps(events)
        assert "-0.5" not in json.dumps(events)


async def test_a_client_that_asks_for_log_probabilities_itself_gets_those_and_no_alternatives(
    open_setting: Open, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(json.dumps({"format": 1, "calibration": BY_LOG_PROBABILITY}))
    async with open_setting("one", settings={"self_evaluation": tmp_path}) as at:
        body = (await at.chat(BEST_OF_3, logprobs=True)).json()
        assert body["preamble"]["choices"][0]["score"] == 0.225
        content = body["choices"][0]["logprobs"]["content"]
        assert [(entry["logprob"], entry["top_logprobs"]) for entry in content] == [(-0.5, [])] * 4


async def test_a_question_that_is_hardly_answered_is_taken_where_the_configuration_says_that_it_may(
    open_setting: Open, tmp_path: Path
) -> None:
    for least, scorer in ((0.001, "self_evaluation"), (0.01, "mean_log_probability")):
        (tmp_path / FILE).write_text(json.dumps(IDS | {"min_label_mass": least}))
        async with open_setting("one", label_mass=0.005, settings={"self_evaluation": tmp_path}) as at:
            assert (await at.chat(BEST_OF_3)).json()["preamble"]["scorer"] == scorer


async def test_a_tiny_label_mass_is_told_as_one(open_setting: Open, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(IDS | {"min_label_mass": 1e-18}))
    async with open_setting("one", label_mass=2e-17, settings={"self_evaluation": tmp_path}) as at:
        told = (await at.chat(BEST_OF_3)).json()["preamble"]
        assert told["choices"][0]["label_mass"] == pytest.approx(2e-17, rel=1e-3)


@pytest.mark.parametrize(
    ("body", "header", "own", "param"),
    [
        ({"scorer": "read_out"}, None, None, "preamble.scorer"),
        ({"scorer": "staged"}, None, None, "preamble.scorer"),
        (None, "scorer=read_out", None, "x-preamble-policy.scorer"),
        ({"n_max": 2}, None, {"scorer": "read_out"}, "policy.scorer"),
    ],
)
async def test_a_read_out_that_the_model_was_not_trained_for_is_a_400_that_names_field_and_remedy(
    open_setting: Open, body: object, header: str | None, own: object, param: str
) -> None:
    async with open_setting("one") as at:
        if own is not None:
            assert (await at.alice.put("/v1/policy", json=own)).status_code == 201
        headers = {} if header is None else {"x-preamble-policy": header}
        answer = await at.alice.post("/v1/chat/completions", json=CHAT | {"preamble": body}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert "self_evaluation" in answer.json()["error"]["message"]
        assert at.upstream.chats == []


@pytest.mark.parametrize("scorer", ["read_out", "staged"])
async def test_log_probabilities_for_the_client_and_a_read_out_cannot_ride_on_the_same_tokens(
    open_setting: Open, tmp_path: Path, scorer: str
) -> None:
    (tmp_path / FILE).write_text(json.dumps({"format": 1} | READ_OUT))
    async with open_setting("one", settings={"self_evaluation": tmp_path}) as at:
        answer = await at.chat(BEST_OF_3 | {"scorer": scorer}, logprobs=True)
        assert answer.headers["x-preamble-sampling"] == "pass_through=read_out"


async def test_a_read_out_of_a_model_that_is_not_served_is_for_the_upstream_to_refuse(open_setting: Open) -> None:
    async with open_setting(Reply("", status=404)) as at:
        answer = await at.chat({"scorer": "read_out"}, model="nonesuch")
        assert (answer.status_code, answer.json()["error"]["message"]) == (404, "scripted refusal")


async def test_a_read_out_while_the_upstream_has_not_answered_yet_is_a_503_and_no_fault_of_the_client(
    tmp_path: Path,
) -> None:
    async with running_proxy("http://127.0.0.1:9", tmp_path) as proxy:
        answer = await proxy.admin.post("/v1/chat/completions", json=CHAT | {"preamble": {"scorer": "read_out"}})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "upstream_unavailable")


async def test_an_older_upstream_is_asked_through_generative_scoring(open_setting: Open) -> None:
    async with open_setting("one", "two", judge=prefers("two"), can_score_ids=False) as at:
        at.upstream.scorings.clear()
        body = (await at.chat(BEST_OF_3)).json()
        assert body["choices"][0]["message"]["content"] == "two"
        assert body["preamble"]["scorer"] == "self_evaluation"
        assert at.upstream.scorings
        assert all("items" in scoring for scoring in at.upstream.scorings)


async def test_a_deep_queue_leaves_one_candidate(open_setting: Open) -> None:
    settings = {"load_low": 1, "load_high": 4, "load_poll_s": 0.05}
    async with open_setting(Reply("one" * 20, gap_s=0.005), waiting=9, settings=settings) as at:
        await at.chat(BEST_OF_3)  # while it runs, the depth becomes known
        told = (await at.chat(BEST_OF_3)).json()["preamble"]
        assert (told["candidates"]["drawn"], told["stop_reason"]) == (1, "load")
        assert told["restrained_by"] == ["load"]
        assert "queue was deep, so 1 of 3 candidates" in told["hint"]
        assert await at.proxy.metric("preamble_upstream_waiting_requests") == 9
        assert await at.proxy.metric('preamble_sampling_restrained_total{by="load"}') == 1


async def test_load_is_told_and_counted_where_the_deadline_ended_the_run(open_setting: Open) -> None:
    settings = {"load_low": 1, "load_high": 3, "load_poll_s": 0.05}
    async with open_setting(Reply("x" * 500, gap_s=0.01), waiting=2, settings=settings) as at:
        policy = BEST_OF_3 | {"deadline_ms": 300}
        await at.chat(policy)
        told = (await at.chat(policy)).json()["preamble"]
        assert (told["candidates"]["drawn"], told["stop_reason"]) == (2, "deadline")
        assert told["restrained_by"] == ["load"]
        assert "2 of 3" in told["hint"]
        streamed = (await at.stream(policy))[-2]["preamble"]
        assert (streamed["restrained_by"], streamed["hint"]) == (["load"], told["hint"])
        assert await at.proxy.metric('preamble_sampling_restrained_total{by="load"}') == 2


async def test_the_ceilings_hold_over_concurrent_requests(open_setting: Open) -> None:
    settings = {"max_candidates": 4, "max_candidates_per_user": 3}
    async with open_setting(Reply("one", gap_s=0.02), settings=settings) as at:
        answers = await asyncio.gather(*(at.chat(BEST_OF_3) for _ in range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4
        assert at.upstream.most_running <= 3
        restrained = [answer.json()["preamble"] for answer in answers if answer.json()["preamble"]["restrained_by"]]
        assert {each["stop_reason"] for each in restrained} == {"ceiling"}
        assert all("ceiling on concurrent candidates left room for" in each["hint"] for each in restrained)
        assert await at.proxy.metric('preamble_sampling_restrained_total{by="ceiling"}') == len(restrained) > 0


async def test_a_budget_bounds_all_candidates_together_and_leaves_room_for_the_prompt(open_setting: Open) -> None:
    async with open_setting(Reply("x" * 60)) as at:
        told = (await at.chat(BEST_OF_3 | {"token_budget": 90})).json()["preamble"]
        assert told["tokens"]["generated"] <= 90
        assert {chat["max_completion_tokens"] for chat in at.upstream.chats} == {30}
        at.upstream.chats.clear()
        await at.chat(ADAPTIVE | {"n_max": 2, "token_budget": 100_000})
        assert not [chat for chat in at.upstream.chats if "max_completion_tokens" in chat]


async def test_a_deadline_returns_what_there_is_as_cut_by_length(open_setting: Open) -> None:
    async with open_setting(Reply("x" * 500, gap_s=0.01)) as at:
        policy = BEST_OF_3 | {"deadline_ms": 200}
        choice = (await at.chat(policy)).json()["choices"][0]
        assert choice["finish_reason"] == "length"
        assert 0 < len(choice["message"]["content"]) < 100
        events = await at.stream(policy)
        assert events[-2]["choices"][0]["finish_reason"] == "length"
        assert events[-2]["preamble"]["stop_reason"] == "deadline"


async def test_a_trace_is_shown_to_its_user_and_to_admins_only(open_setting: Open) -> None:
    async with open_setting("one") as at:
        response_id = (await at.chat(BEST_OF_3)).json()["id"]
        path = f"/v1/traces/{response_id}"
        assert (await at.alice.get(path)).json()["id"] == response_id
        assert (await at.proxy.admin.get(path)).status_code == 200
        headers = await at.proxy.make_key("bob")
        async with httpx.AsyncClient(base_url=at.proxy.url, headers=headers) as bob:
            refused = await bob.get(path)
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "trace_not_found"
        assert (await at.alice.get("/v1/traces/chatcmpl-unknown")).status_code == 404


async def test_majority_picks_the_answer_that_most_give(open_setting: Open) -> None:
    async with open_setting("it is 4", "is it 5", "so: 5", judge=prefers("it is 4")) as at:
        policy = BEST_OF_3 | {"selector": "majority", "answer_regex": r"(\d+)"}
        body = (await at.chat(policy)).json()
        assert body["choices"][0]["message"]["content"].endswith("5")
        assert body["preamble"]["selector"] == "majority"
