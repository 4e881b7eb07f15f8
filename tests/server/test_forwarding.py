"""What a client sends arrives, every field of it, and what the upstream answers comes back, every byte of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtests.answers import MODEL, Streamed
from loadtests.fake_upstream import FakeUpstream, Received, Timing
from tests.server.running import RunningProxy, running_proxy

UPSTREAM_KEY: Final = "the-key-of-the-upstream"
MESSAGES: Final[list[Any]] = [
    {"role": "developer", "content": "Be brief.", "name": "ops"},
    {"role": "system", "content": [{"type": "text", "text": "And kind."}]},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this? \u2603 \U0001f600"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            {"type": "a_part_of_tomorrow", "x": 1},
        ],
    },
    {
        "role": "assistant",
        "content": None,
        "reasoning": "hm",
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    {"role": "wizard", "content": "hello", "unknown": {"deep": [None, True, 1.5, "x"]}},
]
TOOL: Final = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}
CHAT: Final[dict[str, Any]] = {"model": MODEL, "messages": MESSAGES}
CHAT_FIELDS: Final[dict[str, Any]] = {
    # OpenAI's
    "audio": {"voice": "alloy", "format": "wav"},
    "frequency_penalty": -0.5,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 5,
    "max_tokens": 5,
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 1e-7,
    "prompt_cache_key": "k",
    "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
    "safety_identifier": "s",
    "seed": 2**63 - 1,
    "service_tier": "flex",
    "stop": ["\n", "\u0000"],
    "store": False,
    "temperature": 0,
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "tools": [TOOL],
    "top_logprobs": 20,
    "top_p": 0.1,
    "user": "someone",
    "verbosity": "low",
    "web_search_options": {},
    # vLLM's
    "add_generation_prompt": False,
    "allowed_token_ids": [1, 2],
    "bad_words": ["no"],
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"thinking": True},
    "continue_final_message": True,
    "documents": [{"title": "t", "text": "x"}],
    "ignore_eos": True,
    "logprob_token_ids": [1],
    "min_p": 0.05,
    "min_tokens": 3,
    "prompt_logprobs": 1,
    "repetition_penalty": 1.1,
    "return_token_ids": True,
    "skip_special_tokens": False,
    "stop_token_ids": [2],
    "structured_outputs": {"choice": ["a", "b"]},
    "top_k": -1,
    "truncate_prompt_tokens": 100,
    "vllm_xargs": {"x": 1},
    # nobody's
    "": "a name that is empty",
    "a field of tomorrow": [{"deep": {"er": [[], {}, None, "", 0.1, -0.0, 12345678901234567890]}}],
}
ROUTES: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": CHAT | CHAT_FIELDS,
    "/v1/chat/completions/batch": {"model": MODEL, "messages": [MESSAGES, MESSAGES], "top_k": 1},
    "/v1/chat/completions/render": CHAT,
    "/v1/completions": {"model": MODEL, "prompt": ["a", "b"], "echo": True, "best_of": 2, "suffix": "x", "new": {}},
    "/v1/responses": {
        "model": MODEL,
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        "instructions": None,
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "text"}},
        "truncation": "auto",
        "new": [1],
    },
    "/v1/messages": {
        "model": MODEL,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}
        ],
        "system": [{"type": "text", "text": "y"}],
        "thinking": {"type": "enabled", "budget_tokens": 10},
        "new": {},
    },
    "/v1/messages/count_tokens": {"model": MODEL, "messages": [{"role": "user", "content": "x"}]},
    "/v1/embeddings": {"model": MODEL, "input": ["a"], "encoding_format": "base64", "dimensions": 8},
    "/v1/rerank": {"model": MODEL, "query": "a", "documents": ["b"], "top_n": 1},
    "/v1/a/route/of/tomorrow": {"anything": [1, {"at": "all"}]},
}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
# What JSON can say and a 64-bit parser can hold.
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
# SSE as the standard allows it and vLLM does not write it: a comment, CRLF and CR line ends, other fields, a byte order
# mark, bytes that are no UTF-8, events of one byte, an end without a blank line.
ODD_SSE: Final = (
    b'\xef\xbb\xbf: keep-alive\n\ndata: {"choices":[]}\r\n\r\nevent: ping\rid: 7\rretry: 10\rdata\r\r'
    b'data:{"a":\ndata:1}\n\n:\n\ndata: \xff\xfe\x00\n\ndata: [DONE]\n\n: after the end\ndata: cut of'
)


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream(timing=Timing(gap_s=0.0), record=True) as server:
        yield server


@pytest.fixture
async def proxy(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[RunningProxy]:
    async with running_proxy(upstream.url, tmp_path, upstream_api_key=UPSTREAM_KEY) as running:
        yield running


@pytest.fixture
async def alice(proxy: RunningProxy) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=proxy.url, headers=await proxy.make_key("alice"), timeout=10) as client:
        yield client


async def arrived(client: httpx.AsyncClient, upstream: FakeUpstream, path: str, body: bytes) -> Received:
    """Send `body` as JSON and return the one request that reached the upstream because of it."""
    upstream.received.clear()
    await client.post(path, content=body, headers={"content-type": "application/json"})
    (received,) = upstream.received
    return received


@pytest.mark.parametrize("path", ROUTES)
async def test_every_field_of_a_request_arrives_and_only_a_salt_is_added(
    alice: httpx.AsyncClient, upstream: FakeUpstream, path: str
) -> None:
    received = await arrived(alice, upstream, path, orjson.dumps(ROUTES[path]))
    assert (received.method, received.path) == ("POST", path)
    body = received.json()
    assert len(body.pop("cache_salt")) == 64
    assert body == ROUTES[path]
    assert list(body) == list(ROUTES[path])  # in the order in which they were sent, too


async def test_each_field_of_a_chat_arrives_alone_and_streamed(
    alice: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    for field, value in CHAT_FIELDS.items():
        sent = CHAT | {field: value, "stream": True, "stream_options": {"include_usage": True}}
        body = (await arrived(alice, upstream, "/v1/chat/completions", orjson.dumps(sent))).json()
        del body["cache_salt"]
        assert orjson.dumps(body) == orjson.dumps(sent)  # 1 and 1.0 are equal in Python, and not the same in JSON


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(TEXTS, JSON_VALUES, max_size=4))
async def test_any_fields_at_all_arrive_unchanged(
    alice: httpx.AsyncClient, upstream: FakeUpstream, fields: dict[str, Any]
) -> None:
    # Names that mean something to the proxy; what becomes of those is tested by name.
    known = {"model", "messages", "cache_salt", "priority", "request_id", "kv_transfer_params", "stream", "preamble"}
    sent = CHAT | {name: value for name, value in fields.items() if name not in known}
    body = (await arrived(alice, upstream, "/v1/chat/completions", orjson.dumps(sent))).json()
    del body["cache_salt"]
    assert orjson.dumps(body) == orjson.dumps(sent)


async def test_the_other_methods_arrive_without_a_body(alice: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    upstream.received.clear()
    await alice.get("/v1/responses/resp_1?after=2&stream=true")
    await alice.delete("/v1/files/file%2F1")
    assert [(one.method, one.path, one.body) for one in upstream.received] == [
        ("GET", "/v1/responses/resp_1?after=2&stream=true", b""),
        ("DELETE", "/v1/files/file%2F1", b""),
    ]


async def test_only_headers_that_a_client_may_set_arrive(proxy: RunningProxy, upstream: FakeUpstream) -> None:
    key = await proxy.make_key("acme", sub_users=True)
    passing = {
        "accept": "text/event-stream",
        "anthropic-beta": "b",
        "anthropic-version": "2023-06-01",
        "content-type": "application/json",
        "endpoint-load-metrics-format": "JSON",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b",
        "user-agent": "a test",
        "x-session-id": "s",
    }
    stopping = {
        "accept-encoding": "gzip",
        "cookie": "a=b",
        "forwarded": "for=1.2.3.4",
        "openai-organization": "org",
        "x-api-key": "another",
        "x-data-parallel-rank": "3",
        "x-forwarded-for": "1.2.3.4",
        "x-preamble-constitution": "none",
        "x-preamble-user": "ada",
        "x-vllm-priority": "-10",
        "x-something-of-tomorrow": "1",
    }
    upstream.received.clear()
    async with httpx.AsyncClient(base_url=proxy.url, headers=key | passing | stopping) as client:
        answer = await client.post("/v1/chat/completions", content=orjson.dumps(CHAT), headers={"x-request-id": "mine"})
    assert answer.status_code == 200
    (received,) = upstream.received
    headers = {name.decode(): value.decode() for name, value in received.headers}
    assert len(headers) == len(received.headers)
    assert headers.pop("host") == upstream.url.removeprefix("http://")
    assert int(headers.pop("content-length")) == len(received.body)
    assert headers.pop("authorization") == f"Bearer {UPSTREAM_KEY}"
    assert headers.pop("x-request-id").startswith("mine-")
    assert headers == passing


@pytest.mark.parametrize("piece", [1, 7, 64, 10_000])
async def test_the_bytes_of_an_event_stream_come_back_as_they_are(
    alice: httpx.AsyncClient, upstream: FakeUpstream, piece: int
) -> None:
    """The upstream writes `piece` bytes at a time, its chunks cut without regard to events or to the pieces."""
    chunks = [ODD_SSE[at : at + 5] for at in range(0, len(ODD_SSE), 5)]
    framed = b"".join(b"%x;odd=1\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    upstream.prepared.frames[Streamed()] = tuple(framed[at : at + piece] for at in range(0, len(framed), piece))
    answer = await alice.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.content == ODD_SSE


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b' { "id" : "x", "id" : "y", "n" : 1e2, "text" : "\\u2603 \xe2\x98\x83" }\r\n'),
        (200, b"no JSON at all \xff\x00"),
        (200, b""),
        (400, b'{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}'),
        (401, b'{"error":"Unauthorized"}'),
        (404, b'{"detail":"Not Found"}'),
        (422, b'{"detail":[{"loc":["body","x"]}]}'),
        (429, b'{"error":{"message":"slow down"}}'),
        (500, b"Internal Server Error"),
        (503, b'{"error":{"message":"The queue is full.","code":503}}'),
    ],
)
async def test_the_bytes_and_status_of_an_answer_come_back_as_they_are(
    alice: httpx.AsyncClient, upstream: FakeUpstream, status: int, body: bytes
) -> None:
    head = b"HTTP/1.1 %d Whatever\r\ncontent-type: application/json\r\nretry-after: 7\r\nx-of-vllm: 1\r\n" % status
    upstream.completion = head + b"content-length: %d\r\n\r\n%b" % (len(body), body)
    answer = await alice.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.content) == (status, body)
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["x-of-vllm"] == "1"
    assert answer.headers["content-length"] == str(len(body))
