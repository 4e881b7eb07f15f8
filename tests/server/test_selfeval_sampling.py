"""Answers to a prompt: all in one request, or logged ones in the model's tokens."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from adaptive.engine import EngineBusy, EngineFailed, EngineRejected
from adaptive.splits import Split
from constitutions.compose import Placement
from server.selfeval_prompts import NamedConstitution, Prompt
from server.selfeval_sampling import ChatSampler, DrawnGroup, LoggedAnswers, Setup
from server.upstream import Timeouts, UpstreamClient
from tests.server.sampling_upstream import END_OF_TURN, MODEL, Reply, SamplingUpstream
from tests.server.scripted_upstream import ScriptedUpstream, fixed, refused_connection

PROMPT = Prompt("f/1", "f", Split.TRAIN, ({"role": "user", "content": "2+2?"},))
RULED = replace(PROMPT, constitution=NamedConstitution("brief", "<constitution>Be brief.</constitution>"))
SETUP = Setup(MODEL, None, "fp", 0.8, 6, 3)
NOT_SAMPLED = replace(SETUP, temperature=None, max_tokens=None, n=None)


@contextlib.asynccontextmanager
async def client_of(upstream: SamplingUpstream) -> AsyncIterator[UpstreamClient]:
    async with upstream.serving():
        client = UpstreamClient(upstream.url, timeouts=Timeouts(5, 5, 5, 20))
        try:
            yield client
        finally:
            await client.aclose()


def sampler(
    client: Any, *, setup: Setup = SETUP, seed: int = 0, placement: Placement = Placement.SYSTEM
) -> ChatSampler:
    return ChatSampler(client, setup, seed=seed, placement=placement)


def logged(client: Any) -> LoggedAnswers:
    return LoggedAnswers(client, NOT_SAMPLED, placement=Placement.SYSTEM)


def codes(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


async def test_all_answers_are_one_request_and_come_with_tokens_and_log_probabilities() -> None:
    upstream = SamplingUpstream([Reply("four"), Reply("five and more"), Reply("4")])
    async with client_of(upstream) as client:
        found = await sampler(client).answers(PROMPT)
    (chat,) = upstream.chats
    assert (chat["n"], chat["temperature"], chat["max_completion_tokens"]) == (3, 0.8, 6)
    assert chat["logprobs"] is chat["return_token_ids"] is True
    assert "top_logprobs" not in chat
    assert found.prompt_ids == codes("\2user\n2+2?\3\2assistant\n")
    assert [answer.text for answer in found.answers] == ["four", "five a", "4"]  # in order, though they came in none
    assert found.answers[0].token_ids == (*codes("four"), END_OF_TURN)
    assert found.answers[0].logprobs == (-0.5,) * 5
    assert [answer.finish_reason for answer in found.answers] == ["stop", "length", "stop"]
    assert found.tokens == 5 + 6 + 2
    assert DrawnGroup.from_plain(found.to_plain()) == found


async def test_a_constitution_goes_where_the_template_takes_it() -> None:
    upstream = SamplingUpstream([Reply("4")])
    async with client_of(upstream) as client:
        await sampler(client).answers(RULED)
        await sampler(client, placement=Placement.FIRST_USER).answers(RULED)
    system, first_user = (chat["messages"] for chat in upstream.chats)
    assert [message["role"] for message in system] == ["system", "user"]
    assert first_user == [{"role": "user", "content": "<constitution>Be brief.</constitution>\n\n2+2?"}]


async def test_prompts_have_seeds_of_their_own_by_the_run_and_every_run_its_salt() -> None:
    upstream = SamplingUpstream([Reply("4")])
    async with client_of(upstream) as client:
        one = sampler(client)
        for prompt in (PROMPT, PROMPT, RULED):
            await one.answers(prompt)
        await sampler(client, seed=1).answers(PROMPT)
    seeds = [chat["seed"] for chat in upstream.chats]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    salts = [chat["cache_salt"] for chat in upstream.chats]
    assert salts[0] == salts[2] != salts[3]


async def test_the_key_is_of_everything_that_changes_the_answers() -> None:
    client = ScriptedUpstream({})
    longer = replace(SETUP, max_tokens=7)
    keys = [
        sampler(client).key(PROMPT),
        sampler(client).key(RULED),
        sampler(client, placement=Placement.FIRST_USER).key(RULED),
        sampler(client, seed=1).key(PROMPT),
        sampler(client, setup=longer).key(PROMPT),
        sampler(client, setup=replace(SETUP, fingerprint="other")).key(PROMPT),
        logged(client).key(replace(PROMPT, logged=("a", "b"))),
        logged(client).key(replace(PROMPT, logged=("b", "a"))),
    ]
    assert len(set(keys)) == len(keys)
    assert sampler(client).key(replace(PROMPT, id="other", family="g")) == keys[0]


@pytest.mark.parametrize(
    ("status", "kind"), [(503, EngineBusy), (429, EngineBusy), (400, EngineRejected), (500, EngineFailed)]
)
async def test_a_refusal_says_whether_to_come_again(status: int, kind: type[Exception]) -> None:
    client = ScriptedUpstream({"/v1/chat/completions": fixed(status, {"error": {"message": "no"}})})
    with pytest.raises(kind, match=f"{status}: no"):
        await sampler(client).answers(PROMPT)


async def test_an_upstream_that_is_gone_is_the_cause_of_the_failure() -> None:
    client = ScriptedUpstream({"/v1/chat/completions": refused_connection})
    with pytest.raises(EngineFailed, match="cannot be reached") as raised:
        await sampler(client).answers(PROMPT)
    assert raised.value.__cause__ is not None


CHOICE = {"index": 0, "message": {"content": "x"}, "token_ids": [1], "logprobs": {"content": [{"logprob": -1.0}]}}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        None,
        {"choices": [CHOICE] * 3},
        {"choices": [CHOICE | {"token_ids": None}] * 3, "prompt_token_ids": [1]},
        {"choices": [CHOICE | {"logprobs": None}] * 3, "prompt_token_ids": [1]},
        {"choices": [CHOICE | {"token_ids": [1, 2]}] * 3, "prompt_token_ids": [1]},
        {"choices": [CHOICE], "prompt_token_ids": [1]},
    ],
)
async def test_an_answer_without_what_was_asked_for_is_a_failure(answer: Any) -> None:
    client = ScriptedUpstream({"/v1/chat/completions": fixed(200, answer)})
    with pytest.raises(EngineFailed, match="upstream"):
        await sampler(client).answers(PROMPT)


async def test_logged_answers_are_tokenized_as_turns_that_have_ended_and_not_sampled() -> None:
    upstream = SamplingUpstream([])
    async with client_of(upstream) as client:
        found = await logged(client).answers(replace(PROMPT, logged=("four", "5")))
    prompt_ids = codes("\2user\n2+2?\3\2assistant\n")
    assert found.prompt_ids == prompt_ids
    assert [answer.token_ids for answer in found.answers] == [
        (*codes("four"), END_OF_TURN),
        (*codes("5"), END_OF_TURN),
    ]
    assert found.answers[1].logprobs == (-0.053, -0.003)  # of these very tokens
    assert [answer.text for answer in found.answers] == ["four", "5"]
    assert upstream.chats == []


async def test_a_template_that_changes_the_prompt_when_there_is_an_answer_is_refused() -> None:
    def tokenize(payload: Any) -> tuple[int, Any]:
        return 200, {"tokens": [len(payload["messages"]), 5]}

    client = ScriptedUpstream({"/tokenize": tokenize})
    with pytest.raises(EngineFailed, match="changes what came before"):
        await logged(client).answers(replace(PROMPT, logged=("a", "b")))
