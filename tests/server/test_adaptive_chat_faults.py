"""What a sampled chat keeps to when clients leave, places are few, time is short, and the upstream fails.

Over real sockets, in front of an upstream whose replies, times and failures are written down.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.running import RunningProxy, running_proxy
from tests.server.sampling_upstream import MODEL, Reply, SamplingUpstream

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "seed": 7}
BEST_OF_2 = {"mode": "best_of_n", "n_max": 2, "checkpoints": []}
ADAPTIVE = {"mode": "adaptive", "n_max": 4, "threshold": 0.8, "checkpoints": []}
LONG = Reply("x" * 500, gap_s=0.01)


@dataclass
class Setting:
    upstream: SamplingUpstream
    proxy: RunningProxy
    users: list[httpx.AsyncClient]

    def ask(self, policy: object, *, user: int = 0, **fields: Any) -> asyncio.Task[httpx.Response]:
        """Send a chat; cancelling the task hangs up."""
        body = CHAT | fields | {"preamble": policy}
        return asyncio.create_task(self.users[user].post("/v1/chat/completions", json=body))

    async def until(self, condition: Callable[[], object], timeout_s: float = 2.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 -- any expression over plain counters
                await asyncio.sleep(0.005)


Open = Callable[..., Any]


@pytest.fixture
def open_setting(tmp_path: Path) -> Open:
    @asynccontextmanager
    async def opened(
        *replies: Reply, users: int = 1, settings: dict[str, Any] | None = None, **upstream: Any
    ) -> AsyncIterator[Setting]:
        scripted = SamplingUpstream(list(replies), **upstream)
        async with scripted.serving(), running_proxy(scripted.url, tmp_path, **(settings or {})) as proxy:
            scripted.scorings.clear()
            clients = [
                httpx.AsyncClient(base_url=proxy.url, headers=await proxy.make_key(f"user-{number}"), timeout=10)
                for number in range(users)
            ]
            yield Setting(scripted, proxy, clients)
            for client in clients:
                await client.aclose()

    return opened


async def leaves(asking: asyncio.Task[httpx.Response]) -> None:
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


# A client that leaves.


async def test_leaving_while_the_first_candidate_waits_for_a_place_draws_nothing_and_holds_nothing(
    open_setting: Open,
) -> None:
    async with open_setting(Reply("x" * 40, gap_s=0.01), users=3, settings={"max_candidates": 1}) as at:
        first = at.ask(BEST_OF_2)
        await at.until(lambda: at.upstream.running)
        waiting = at.ask(BEST_OF_2, user=1)
        await asyncio.sleep(0.05)
        after = at.ask(BEST_OF_2, user=2)
        await asyncio.sleep(0.05)
        await leaves(waiting)
        assert [(await each).status_code for each in (first, after)] == [200, 200]
        assert len(at.upstream.chats) == 2
        assert at.upstream.most_running == 1
        assert await at.proxy.metric('preamble_client_disconnects_total{phase="waiting"}') == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_candidates_are_generated_aborts_them_all(open_setting: Open, stream: bool) -> None:
    async with open_setting(LONG, settings={"keep_alive_s": 0.02}) as at:
        asking = at.ask(BEST_OF_2, stream=stream)
        await at.until(lambda: len(at.upstream.running) == 2)
        await asyncio.sleep(0.1)
        await leaves(asking)
        await at.until(lambda: not at.upstream.running, timeout_s=1)
        assert len(at.upstream.aborted) == 2


async def test_leaving_while_scores_are_waited_for_aborts_the_scoring_too(open_setting: Open) -> None:
    async with open_setting(Reply("one"), Reply("two"), score_s=30.0) as at:
        asking = at.ask(BEST_OF_2)
        await at.until(lambda: at.upstream.scoring == 1 and not at.upstream.running)
        await leaves(asking)
        await at.until(lambda: not at.upstream.scoring, timeout_s=1)
        assert [request_id[-3:] for request_id in at.upstream.aborted] == [".s1"]


async def test_leaving_while_the_reply_is_streamed_live_aborts_it(open_setting: Open) -> None:
    async with open_setting(LONG) as at:
        body = CHAT | {"stream": True, "preamble": BEST_OF_2 | {"commit_at": 3}}
        async with at.users[0].stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            while '"content":"x"' not in await anext(lines):
                pass
        await at.until(lambda: not at.upstream.running, timeout_s=1)
        assert len(at.upstream.aborted) == 2
        assert await at.proxy.metric('preamble_client_disconnects_total{phase="streaming"}') == 1


# Places.


async def test_both_ceilings_hold_at_all_times_over_the_requests_of_several_users(open_setting: Open) -> None:
    settings = {"max_candidates": 5, "max_candidates_per_user": 3}
    async with open_setting(Reply("one" * 5, gap_s=0.005), users=3, settings=settings) as at:
        policy = BEST_OF_2 | {"n_max": 4}
        answers = await asyncio.gather(*(at.ask(policy, user=number % 3) for number in range(9)))
        assert {answer.status_code for answer in answers} == {200}
        assert at.upstream.most_running == 5
        assert len(at.upstream.most_running_of) == 3
        assert max(at.upstream.most_running_of.values()) == 3


# Time and tokens.


@pytest.mark.parametrize("n", [1, 2])
async def test_a_deadline_before_the_first_token_gives_an_empty_reply_in_full_shape(open_setting: Open, n: int) -> None:
    async with open_setting(Reply("late", gap_s=5.0, starts_s=5.0)) as at:
        policy = BEST_OF_2 | {"deadline_ms": 60}
        began = time.monotonic()
        whole = (await at.ask(policy, n=n)).json()
        chunks = events((await at.ask(policy, n=n, stream=True)).text)
        assert time.monotonic() - began < 2
        assert whole["preamble"]["stop_reason"] == "deadline"
        assert [choice["message"]["content"] for choice in whole["choices"]] == [""] * n
        assert {choice["finish_reason"] for choice in whole["choices"]} == {"length"}
        for answer in (whole, *chunks):
            assert answer["model"] == MODEL
            assert abs(answer["created"] - time.time()) < 60
        assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"role": "assistant", "content": ""}] * n


async def test_a_budget_of_one_token_is_an_answer_of_one_token(open_setting: Open) -> None:
    async with open_setting(Reply("one"), Reply("two")) as at:
        body = (await at.ask(BEST_OF_2 | {"token_budget": 1})).json()
        assert body["choices"][0]["message"]["content"] == "o"
        assert body["usage"]["completion_tokens"] == 1
        assert (body["preamble"]["stop_reason"], body["preamble"]["tokens"]["generated"]) == ("budget", 1)


async def test_tokens_that_were_held_back_come_at_once_and_the_rest_as_they_are_generated(open_setting: Open) -> None:
    replies = [Reply(word * 60, gap_s=0.01) for word in "ab"]
    policy = BEST_OF_2 | {"checkpoints": [{"tokens": 20, "keep": 0.5}]}
    async with open_setting(*replies, judge=lambda text: 0.9 if "bbb" in text else 0.1) as at:
        body = CHAT | {"stream": True, "preamble": policy}
        async with at.users[0].stream("POST", "/v1/chat/completions", json=body) as answer:
            arrivals = [time.monotonic() async for line in answer.aiter_lines() if '"content":"b"' in line]
        assert len(arrivals) == 60
        assert arrivals[19] - arrivals[0] < 0.05  # generating them took 0.2 s
        assert arrivals[59] - arrivals[19] > 0.25


async def test_a_client_that_reads_late_gets_all_of_a_stream_and_the_proxy_waits_for_it(open_setting: Open) -> None:
    pieces = ({"content": "y" * 8192},) * 900  # more than the kernel's buffers hold
    async with open_setting(Reply("x" * 900, gap_s=0.0, deltas=pieces)) as at:
        body = json.dumps(CHAT | {"stream": True, "preamble": BEST_OF_2 | {"commit_at": 3}}).encode()
        with socket.create_connection(("127.0.0.1", at.proxy.port)) as client:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            head += f"Authorization: {at.users[0].headers['authorization']}\r\nContent-Type: application/json\r\n\r\n"
            client.sendall(head.encode() + body)
            await at.until(lambda: at.upstream.chats and not at.upstream.running, timeout_s=20)
            await asyncio.sleep(0.2)
            client.setblocking(False)
            received = b""
            async with asyncio.timeout(20):
                while b"[DONE]" not in received[-64:]:
                    received += await asyncio.get_running_loop().sock_recv(client, 65536)
        assert received.count(b"y" * 8192) == 900


# An upstream that fails.


async def test_an_upstream_too_busy_to_score_is_asked_for_no_more_and_the_best_so_far_is_answered(
    open_setting: Open,
) -> None:
    async with open_setting(Reply("one"), score_status=503) as at:
        body = (await at.ask(ADAPTIVE)).json()
        assert body["choices"][0]["message"]["content"] == "one"
        assert (body["preamble"]["stop_reason"], body["preamble"]["candidates"]["drawn"]) == ("engine_busy", 1)
        assert body["preamble"]["scorer"] == "mean_log_probability"


async def test_where_every_candidate_is_refused_for_load_the_503_is_relayed(open_setting: Open) -> None:
    async with open_setting(Reply("", status=503)) as at:
        answer = await at.ask(BEST_OF_2)
        assert (answer.status_code, answer.json()["error"]["message"]) == (503, "scripted refusal")
        assert len(at.upstream.chats) == 2


async def test_an_upstream_that_can_score_in_neither_way_degrades_to_mean_log_probability(open_setting: Open) -> None:
    async with open_setting(Reply("one"), Reply("two"), can_score_ids=False, can_score_items=False) as at:
        told = (await at.ask(BEST_OF_2)).json()["preamble"]
        assert told["scorer"] == "mean_log_probability"
        assert told["degradations"][0]["cause"] == "the upstream has no way to read the labels' probabilities"
        assert not at.upstream.scorings


async def test_a_reply_that_leaves_no_room_for_the_question_is_judged_by_its_log_probability(
    open_setting: Open,
) -> None:
    async with open_setting(Reply("x" * 60), Reply("y" * 60)) as at:
        chat = [{"role": "user", "content": "h" * 3980}]  # of 4096 characters; the question has some 90
        body = (await at.ask(BEST_OF_2, messages=chat)).json()
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["preamble"]["scorer"] == "mean_log_probability"
        assert "does not fit" in body["preamble"]["degradations"][0]["cause"]
        assert not at.upstream.scorings


def events(text: str) -> list[Any]:
    """Return the chunks of a stream that has ended well."""
    *chunks, done = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    assert done == "[DONE]"
    return [json.loads(chunk) for chunk in chunks if not chunk.startswith(":")]
