"""The same request to vLLM itself and through the proxy, for a user without a constitution: the answers are the same.

Both sides begin without a cached prefix, the proxy's because the user's tenant is new, vLLM's because of a salt of its
own, so that even `cached_tokens` has to agree.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Vllm
from tests.e2e.comparing import assert_same_answer, told
from tests.e2e.running import Preamble, User, sse_events

pytestmark = pytest.mark.live

Body = dict[str, Any]

QUESTION = [{"role": "user", "content": "Name three fruits."}]
CHAT: Body = {"messages": QUESTION, "temperature": 0, "seed": 1, "max_tokens": 12}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TOOLS: Body = CHAT | {"tools": [WEATHER], "max_tokens": 24}
SCHEMA = {
    "type": "object",
    "properties": {"fruit": {"enum": ["apple", "pear"]}, "ripe": {"type": "boolean"}},
    "required": ["fruit", "ripe"],
    "additionalProperties": False,
}
PARTS = [{"type": "text", "text": "Name three"}, {"type": "text", "text": " fruits."}]
DEVELOPER = [{"role": "developer", "content": "Answer in one word."}, *QUESTION]
CONVERSATION = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Hello", "name": "ada"},
    {"role": "assistant", "content": "Hi."},
    {"role": "system", "content": "Be even terser."},
    *QUESTION,
]
TOOL_RESULT = [
    *QUESTION,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
]

CHATS: dict[str, Body] = {
    "greedy": CHAT,
    "sampled with a seed": CHAT | {"temperature": 0.9, "top_p": 0.9, "seed": 7},
    "two choices": CHAT | {"n": 2, "temperature": 0.9},
    "logprobs": CHAT | {"logprobs": True, "top_logprobs": 3},
    "stop": CHAT | {"stop": ["2", "\n\n"], "max_tokens": 24},
    "penalties and bias": CHAT | {"presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"28": -5}},
    "max_completion_tokens": {"messages": QUESTION, "temperature": 0, "max_completion_tokens": 5},
    "content in parts": CHAT | {"messages": [{"role": "user", "content": PARTS}]},
    "developer role": CHAT | {"messages": DEVELOPER},
    "system messages and names": CHAT | {"messages": CONVERSATION},
    "unknown role": CHAT | {"messages": [{"role": "wizard", "content": "Name three fruits."}]},
    "tool results": CHAT | {"messages": TOOL_RESULT, "tools": [WEATHER]},
    "tools": TOOLS,
    "tools, none": TOOLS | {"tool_choice": "none"},
    "tools, auto": TOOLS | {"tool_choice": "auto", "parallel_tool_calls": False},
    "tools, required": TOOLS | {"tool_choice": "required"},
    "tools, named": TOOLS | {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
    "json_object": CHAT | {"response_format": {"type": "json_object"}, "max_tokens": 20},
    "json_schema": CHAT
    | {"response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": SCHEMA}}, "max_tokens": 30},
    "structured outputs of vLLM": CHAT | {"structured_outputs": {"choice": ["yes", "no"]}},
    "sampling fields of vLLM": CHAT | {"top_k": 5, "min_p": 0.1, "min_tokens": 3, "repetition_penalty": 1.3},
    "token ids": CHAT | {"return_token_ids": True, "logprobs": True, "return_tokens_as_token_ids": True},
    "ignore_eos": CHAT | {"ignore_eos": True, "stop_token_ids": [5]},
    "fields that nobody knows": CHAT | {"shiny": {"new": [1, None]}, "store": True, "metadata": {"a": "b"}},
    "user, safety and tiers": CHAT | {"user": "u-1", "safety_identifier": "s", "service_tier": "auto"},
}
STREAM_OPTIONS: dict[str, Body] = {
    "usage at the end": {"stream_options": {"include_usage": True}},
    "usage all along": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
}
COMPLETIONS: dict[str, Body] = {
    "one prompt": {"prompt": "Fruits: apple,", "temperature": 0, "max_tokens": 6},
    # Whether vLLM computes the two in one batch is chance, and rounds otherwise: each next token leads by a nat.
    "several prompts": {"prompt": ["1, 2, 3, 4,", "A, B, C, D,"], "temperature": 0, "max_tokens": 6},
    "token ids": {"prompt": [1, 520, 9531], "temperature": 0, "max_tokens": 4, "logprobs": 2},
    "echo": {"prompt": "One, two,", "temperature": 0, "max_tokens": 3, "echo": True, "suffix": None, "n": 1},
}
RESPONSES: dict[str, Body] = {
    "text": {"input": "Name three fruits.", "temperature": 0, "max_output_tokens": 10},
    "messages and instructions": {
        "input": [{"role": "user", "content": "Name three fruits."}],
        "instructions": "Be terse.",
        "temperature": 0,
        "max_output_tokens": 10,
    },
}
MESSAGES: dict[str, Body] = {
    "text": {"messages": QUESTION, "temperature": 0, "max_tokens": 10},
    "system and blocks": {
        "messages": [{"role": "user", "content": PARTS}],
        "system": [{"type": "text", "text": "Be terse."}],
        "temperature": 0,
        "max_tokens": 10,
        "stop_sequences": ["2"],
    },
}
ERRORS: dict[str, tuple[str, Body]] = {
    "unknown model": ("/v1/chat/completions", CHAT | {"model": "no-such-model"}),
    "unknown model, completions": ("/v1/completions", {"prompt": "a", "model": "no-such-model"}),
    "unknown model, responses": ("/v1/responses", {"input": "a", "model": "no-such-model"}),
    "unknown model, messages": ("/v1/messages", {"messages": QUESTION, "max_tokens": 1, "model": "no-such-model"}),
    "negative max_tokens": ("/v1/chat/completions", CHAT | {"max_tokens": -1}),
    "temperature of a wrong type": ("/v1/chat/completions", CHAT | {"temperature": "hot"}),
    "content of a wrong type": ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": 5}]}),
    "too many logprobs": ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 99}),
    "stream options without stream": ("/v1/chat/completions", CHAT | {"stream_options": {"include_usage": True}}),
    "tool that is not there": (
        "/v1/chat/completions",
        TOOLS | {"tool_choice": {"type": "function", "function": {"name": "nothing"}}},
    ),
    "schema that is none": (
        "/v1/chat/completions",
        CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": {"type": 5}}}},
    ),
    "context overrun": ("/v1/completions", {"prompt": [1] * 9000, "max_tokens": 1}),
    "no prompt": ("/v1/completions", {}),
    "no input": ("/v1/responses", {}),
    "no max_tokens": ("/v1/messages", {"messages": QUESTION}),
}
OTHER_ROUTES: dict[str, tuple[str, str, Body | None]] = {
    "embeddings": ("POST", "/v1/embeddings", {"input": "hello"}),
    "token count of messages": ("POST", "/v1/messages/count_tokens", {"messages": QUESTION}),
    "batch of chats": (
        "POST",
        "/v1/chat/completions/batch",
        CHAT | {"max_tokens": 2, "messages": [QUESTION, DEVELOPER]},
    ),
    "reranking": ("POST", "/v1/rerank", {"query": "a", "documents": ["b"]}),
    "unknown response": ("GET", "/v1/responses/resp_0000000000000000", None),
    "cancelled unknown response": ("POST", "/v1/responses/resp_0000000000000000/cancel", None),
    "unknown route": ("GET", "/v1/no/such/route", None),
    "unknown route, posted to": ("POST", "/v1/no/such/route", {"a": 1}),
}


@pytest.fixture
def direct(vllm: Vllm) -> Iterator[httpx.Client]:
    """Return a client of vLLM itself."""
    with httpx.Client(
        base_url=vllm.base_url, headers={"authorization": f"Bearer {vllm.api_key}"}, timeout=120
    ) as client:
        yield client


class Both:
    """Sends a request to vLLM and through the proxy."""

    def __init__(self, direct: httpx.Client, proxied: httpx.Client, model: str) -> None:
        self._direct = direct
        self._proxied = proxied
        self._model = model

    def send(self, method: str, path: str, body: Body | None) -> tuple[httpx.Response, httpx.Response]:
        """Return both answers, vLLM's own first, after comparing what is around their bodies."""
        filled = None if body is None else {"model": self._model} | body
        salted = filled if filled is None else filled | {"cache_salt": secrets.token_hex(8)}
        expected = self._direct.request(method, path, json=salted)
        answer = self._proxied.request(method, path, json=filled)
        assert answer.status_code == expected.status_code, answer.text
        assert answer.headers.get("content-type") == expected.headers.get("content-type")
        return expected, answer

    def post(self, path: str, body: Body) -> tuple[Any, Any]:
        """Return both decoded answers to a request that must succeed."""
        expected, answer = self.send("POST", path, body)
        assert expected.status_code == 200, expected.text
        return expected.json(), answer.json()

    def stream(self, path: str, body: Body) -> tuple[list[Any], list[Any]]:
        """Return what both streamed."""
        expected, answer = self.send("POST", path, body | {"stream": True})
        assert expected.headers["content-type"].startswith("text/event-stream"), expected.text
        return told(sse_events(expected.content)), told(sse_events(answer.content))


@pytest.fixture
def both(direct: httpx.Client, user: User, vllm: Vllm) -> Both:
    """Return what sends a request both ways."""
    return Both(direct, user.http, vllm.model)


@pytest.mark.parametrize("case", CHATS)
def test_a_chat_is_answered_as_by_vllm_itself(both: Both, case: str) -> None:
    assert_same_answer(*both.post("/v1/chat/completions", CHATS[case]))


@pytest.mark.parametrize("case", CHATS)
def test_a_chat_streams_as_from_vllm_itself(both: Both, case: str) -> None:
    expected, streamed = both.stream("/v1/chat/completions", CHATS[case])
    assert expected[-1] == "[DONE]"
    assert_same_answer(expected, streamed)


@pytest.mark.parametrize("case", STREAM_OPTIONS)
def test_stream_options_act_as_with_vllm_itself(both: Both, case: str) -> None:
    expected, streamed = both.stream("/v1/chat/completions", CHAT | STREAM_OPTIONS[case])
    assert expected[0]["usage"]["completion_tokens"] == 12
    assert_same_answer(expected, streamed)


@pytest.mark.parametrize("case", COMPLETIONS)
def test_completions_are_those_of_vllm_itself(both: Both, case: str) -> None:
    assert_same_answer(*both.post("/v1/completions", COMPLETIONS[case]))


@pytest.mark.parametrize("case", COMPLETIONS)
def test_completions_stream_as_from_vllm_itself(both: Both, case: str) -> None:
    assert_same_answer(*both.stream("/v1/completions", COMPLETIONS[case]))


@pytest.mark.parametrize("case", RESPONSES)
def test_responses_are_those_of_vllm_itself(both: Both, case: str) -> None:
    assert_same_answer(*both.post("/v1/responses", RESPONSES[case]))


@pytest.mark.parametrize("case", RESPONSES)
def test_responses_stream_as_from_vllm_itself(both: Both, case: str) -> None:
    expected, streamed = both.stream("/v1/responses", RESPONSES[case])
    assert expected[-1]["type"] in {"response.completed", "response.incomplete"}
    assert_same_answer(expected, streamed)


@pytest.mark.parametrize("case", MESSAGES)
def test_anthropic_messages_are_those_of_vllm_itself(both: Both, case: str) -> None:
    assert_same_answer(*both.post("/v1/messages", MESSAGES[case]))


@pytest.mark.parametrize("case", MESSAGES)
def test_anthropic_messages_stream_as_from_vllm_itself(both: Both, case: str) -> None:
    expected, streamed = both.stream("/v1/messages", MESSAGES[case])
    assert [event["type"] for event in expected][-1] == "message_stop"
    assert_same_answer(expected, streamed)


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_of_vllm_comes_back_as_it_is(both: Both, case: str) -> None:
    expected, answer = both.send("POST", *ERRORS[case])
    assert 400 <= expected.status_code < 500
    assert answer.json() == expected.json()


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_of_vllm_comes_back_as_it_is_to_a_client_that_asks_for_a_stream(both: Both, case: str) -> None:
    path, body = ERRORS[case]
    expected, answer = both.send("POST", path, body | {"stream": True})
    assert_same_answer(told(sse_events(expected.content)), told(sse_events(answer.content)))
    if "event-stream" not in expected.headers["content-type"]:
        assert answer.json() == expected.json()


@pytest.mark.parametrize("case", OTHER_ROUTES)
def test_every_other_route_answers_as_vllm_does(both: Both, case: str) -> None:
    expected, answer = both.send(*OTHER_ROUTES[case])
    assert_same_answer(expected.json(), answer.json())


def test_the_request_id_of_the_client_comes_back(user: User, preamble: Preamble) -> None:
    assert user.http.get("/v1/models", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert user.http.get("/v1/models").headers["x-request-id"].startswith("req-")
