"""The request path, over real sockets, in front of an upstream that records what reaches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from loadtests.answers import sse_events
from loadtests.fake_upstream import FakeUpstream, Timing
from server.proxy import ROUTES, accepted_request_id
from tests.server.running import RunningProxy, running_proxy
from tests.server.serving_asgi import serving

CHAT = {"model": "fake-model", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream(timing=Timing(gap_s=0.001), record=True) as server:
        yield server


@pytest.fixture
async def proxy(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[RunningProxy]:
    async with running_proxy(upstream.url, tmp_path, max_body_bytes=100_000) as running:
        upstream.received.clear()
        yield running


@pytest.fixture
async def alice(proxy: RunningProxy) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=proxy.url, headers=await proxy.make_key("alice"), timeout=10) as client:
        yield client


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """Return the error of an answer, after checking that it has OpenAI's shape."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return dict(error)


async def test_a_chat_without_a_constitution_is_forwarded_as_it_is_plus_a_salt(
    alice: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    sent = {**CHAT, "temperature": 0.5, "an_unknown_field": {"x": [1, None]}}
    answer = await alice.post("/v1/chat/completions", json=sent)
    assert answer.status_code == 200
    received = orjson.loads(upstream.received[-1].body)
    assert len(received.pop("cache_salt")) == 64
    assert received == sent
    assert "x-preamble-constitution" not in answer.headers


async def test_a_registered_constitution_is_in_the_very_next_request(
    alice: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    put = await alice.put("/v1/constitution", json={"principles": ["Be brief."]})
    answer = await alice.post("/v1/chat/completions", json=CHAT)
    first = orjson.loads(upstream.received[-1].body)["messages"][0]
    assert first["role"] == "system"
    assert "Be brief." in first["content"]
    assert answer.headers["x-preamble-constitution"] == f"{put.json()['id']}@1"


async def test_the_same_version_gives_the_same_bytes(alice: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    await alice.put("/v1/constitution", json={"principles": ["Be brief.", "Be kind."]})
    bodies = []
    for _ in range(3):
        await alice.post("/v1/chat/completions", json=CHAT)
        bodies.append(upstream.received[-1].body)
    assert len(set(bodies)) == 1


@pytest.mark.parametrize("value", ["none", "None", "NONE"])
async def test_a_request_can_opt_out_of_its_constitution(
    alice: httpx.AsyncClient, upstream: FakeUpstream, value: str
) -> None:
    await alice.put("/v1/constitution", json={"principles": ["Be brief."]})
    answer = await alice.post("/v1/chat/completions", json=CHAT, headers={"x-preamble-constitution": value})
    assert "x-preamble-constitution" not in answer.headers
    assert orjson.loads(upstream.received[-1].body)["messages"] == CHAT["messages"]


async def test_a_request_can_name_an_older_version(alice: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    first = await alice.put("/v1/constitution", json={"principles": ["Be brief."]})
    await alice.put("/v1/constitution", json={"principles": ["Be long."]})
    tag = first.headers["x-preamble-constitution"]
    answer = await alice.post("/v1/chat/completions", json=CHAT, headers={"x-preamble-constitution": tag})
    assert answer.headers["x-preamble-constitution"] == tag
    assert b"Be brief." in upstream.received[-1].body


async def test_naming_a_version_that_is_not_there_is_a_404_and_reaches_no_upstream(
    alice: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    put = await alice.put("/v1/constitution", json={"principles": ["Be brief."]})
    tag = f"{put.json()['id']}@7"
    answer = await alice.post("/v1/chat/completions", json=CHAT, headers={"x-preamble-constitution": tag})
    assert answer.status_code == 404
    assert error_of(answer)["code"]
    assert not upstream.received


async def test_responses_take_it_as_instructions_and_messages_as_system(
    alice: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    await alice.put("/v1/constitution", json={"principles": ["Be brief."]})
    await alice.post("/v1/responses", json={"model": "m", "input": "hello", "instructions": "Rhyme."})
    instructions = orjson.loads(upstream.received[-1].body)["instructions"]
    assert "Be brief." in instructions
    assert instructions.endswith("Rhyme.")
    await alice.post("/v1/messages", json={**CHAT, "max_tokens": 5, "system": "Rhyme."})
    system = orjson.loads(upstream.received[-1].body)["system"]
    assert "Be brief." in system
    assert system.endswith("Rhyme.")


async def test_a_batch_of_conversations_gets_it_in_each(alice: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    await alice.put("/v1/constitution", json={"principles": ["Be brief."]})
    batch = {"model": "m", "messages": [CHAT["messages"], CHAT["messages"]]}
    await alice.post("/v1/chat/completions/batch", json=batch)
    assert upstream.received[-1].body.count(b"Be brief.") == 2


async def test_a_clients_salt_is_replaced_and_tenants_differ(
    proxy: RunningProxy, alice: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    await alice.post("/v1/chat/completions", json={**CHAT, "cache_salt": "chosen"})
    of_alice = orjson.loads(upstream.received[-1].body)["cache_salt"]
    await alice.post("/v1/embeddings", json={"model": "m", "input": "x", "cache_salt": "chosen"})
    assert orjson.loads(upstream.received[-1].body)["cache_salt"] == of_alice
    await proxy.admin.post("/v1/chat/completions", json=CHAT, headers=await proxy.make_key("bob"))
    of_bob = orjson.loads(upstream.received[-1].body)["cache_salt"]
    assert len({of_alice, of_bob, "chosen"}) == 3


async def test_sub_users_of_one_key_share_the_salt_but_not_the_constitution(
    proxy: RunningProxy, upstream: FakeUpstream
) -> None:
    key = await proxy.make_key("acme", sub_users=True)
    ann, ben = ({**key, "x-preamble-user": name} for name in ("ann", "ben"))
    await proxy.admin.put("/v1/constitution", json={"principles": ["Be brief."]}, headers=ann)
    await proxy.admin.post("/v1/chat/completions", json=CHAT, headers=ann)
    of_ann = orjson.loads(upstream.received[-1].body)
    await proxy.admin.post("/v1/chat/completions", json=CHAT, headers=ben)
    of_ben = orjson.loads(upstream.received[-1].body)
    assert of_ann["cache_salt"] == of_ben["cache_salt"]
    assert len(of_ann["messages"]) == 2
    assert len(of_ben["messages"]) == 1


async def test_what_reaches_into_the_scheduler_is_dropped_unless_an_admin_sends_it(
    proxy: RunningProxy, alice: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    reaching = {**CHAT, "priority": -100, "request_id": "mine", "kv_transfer_params": {"do_remote_prefill": True}}
    headers = {
        "x-vllm-priority": "-100",
        "x-data-parallel-rank": "0",
        "x-preamble-user": "alice",
        "cookie": "a=b",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    await alice.post("/v1/chat/completions", json=reaching, headers=headers)
    received = upstream.received[-1]
    assert set(orjson.loads(received.body)) == {*CHAT, "cache_salt"}
    names = {name for name, _ in received.headers}
    assert names <= {
        b"host",
        b"accept",
        b"content-type",
        b"content-length",
        b"user-agent",
        b"x-request-id",
        b"traceparent",
    }
    assert b"traceparent" in names
    await proxy.admin.post("/v1/chat/completions", json=reaching)
    assert orjson.loads(upstream.received[-1].body)["priority"] == -100


async def test_two_requests_with_one_id_get_different_ids_upstream_and_their_own_back(
    alice: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    answers = [await alice.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "same"}) for _ in range(2)]
    assert [answer.headers["x-request-id"] for answer in answers] == ["same", "same"]
    assert len({received.header(b"x-request-id") for received in upstream.received}) == 2


def test_a_request_id_that_is_long_or_unprintable_is_not_taken() -> None:
    assert accepted_request_id(b"trace-17") == "trace-17"
    for bad in (b"", b"x" * 129, b"a b", b"a\xe9", b"a\x1b[0m"):
        assert accepted_request_id(bad) is None


async def test_a_streamed_answer_is_relayed_byte_for_byte(alice: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    answer = await alice.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.content == b"".join(sse_events())
    assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"", None),
        (b'{"model": "m"}', "messages"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": "hi"}', "messages"),
        (b'{"messages": ["hi"]}', "messages[0]"),
        (b'{"messages": [{"role": "user", "content": "a"}, {"role": 3}]}', "messages[1].role"),
    ],
)
async def test_a_bad_chat_body_is_a_400_that_names_the_field(
    alice: httpx.AsyncClient, upstream: FakeUpstream, body: bytes, param: str | None
) -> None:
    answer = await alice.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert not upstream.received


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/responses", {"instructions": 3}, "instructions"),
        ("/v1/messages", {**CHAT, "system": 3}, "system"),
        ("/v1/messages", {"system": "x"}, "messages"),
        ("/v1/chat/completions/batch", {"messages": [[]]}, "messages[0]"),
        ("/v1/chat/completions/batch", {"messages": []}, "messages"),
    ],
)
async def test_bad_fields_of_the_other_routes_are_named(
    alice: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    answer = await alice.post(path, json=body)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


async def test_a_wrong_content_type_is_a_415(alice: httpx.AsyncClient) -> None:
    answer = await alice.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    assert error_of(answer)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_the_limit_is_a_413(alice: httpx.AsyncClient, declared: bool) -> None:
    body = orjson.dumps({**CHAT, "pad": "x" * 200_000})

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    answer = await alice.post(
        "/v1/chat/completions",
        content=body if declared else chunks(),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "request_too_large"


async def test_a_body_that_is_not_json_passes_on_routes_that_take_no_constitution(
    alice: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    await alice.post("/v1/audio/transcriptions", content=b"\x00\x01", headers={"content-type": "audio/wav"})
    assert upstream.received[-1].body == b"\x00\x01"
    assert upstream.received[-1].path == "/v1/audio/transcriptions"


async def test_a_query_string_passes_and_a_trailing_slash_does_not(
    alice: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    await alice.get("/v1/models/?limit=3")
    assert upstream.received[-1].path == "/v1/models?limit=3"


@pytest.mark.parametrize("path", ["/v1/../metrics", "/v1//chat/completions", "/v1/./models", "/v1/x/..%2f..%2fmetrics"])
async def test_a_path_that_could_leave_v1_is_a_404(proxy: RunningProxy, upstream: FakeUpstream, path: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    key = proxy.admin.headers["authorization"]
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\nconnection: close\r\n\r\n".encode())
    assert b" 404 " in (await reader.read()).split(b"\r\n")[0]
    writer.close()
    await writer.wait_closed()
    assert not upstream.received


async def test_a_wrong_method_is_a_405_that_says_which_are_right(alice: httpx.AsyncClient) -> None:
    answer = await alice.get("/v1/chat/completions")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert error_of(answer)["code"] == "method_not_allowed"


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer nonsense"}, {"x-api-key": "pre_aaaaaaaa_b"}])
async def test_without_a_valid_key_nothing_is_forwarded(
    proxy: RunningProxy, upstream: FakeUpstream, headers: dict[str, str]
) -> None:
    async with httpx.AsyncClient(base_url=proxy.url, headers=headers) as stranger:
        answer = await stranger.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 401
    assert error_of(answer)["type"] == "authentication_error"
    assert not upstream.received


async def test_a_revoked_key_is_refused_at_once(proxy: RunningProxy, alice: httpx.AsyncClient) -> None:
    assert (await alice.get("/v1/models")).status_code == 200
    keys = (await proxy.admin.get("/v1/keys")).json()["data"]
    (key_id,) = (key["id"] for key in keys if key["user"] == "alice")
    await proxy.admin.delete(f"/v1/keys/{key_id}")
    assert (await alice.get("/v1/models")).status_code == 401


async def test_only_an_admin_may_change_the_upstream_for_everybody(
    proxy: RunningProxy, alice: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    for path in ("/v1/load_lora_adapter", "/v1/load%5Flora_adapter", "/v1/unload_lora_adapter/"):
        assert (await alice.post(path, json={})).status_code == 403
    assert not upstream.received
    await proxy.admin.post("/v1/load_lora_adapter", json={"lora_name": "x"})
    assert upstream.received[-1].path == "/v1/load_lora_adapter"


async def test_the_upstreams_errors_come_back_as_they_are(alice: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    through = await alice.get("/v1/no_such_route")
    async with httpx.AsyncClient(base_url=upstream.url) as client:
        direct = await client.get("/v1/no_such_route")
    assert (through.status_code, through.content) == (direct.status_code, direct.content)
    assert through.status_code == 404


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_byte_ends_the_upstream_request(
    proxy: RunningProxy, alice: httpx.AsyncClient, upstream: FakeUpstream, stream: bool
) -> None:
    upstream.timing = Timing(first_byte_delay_s=30)
    with pytest.raises(httpx.ReadTimeout):
        await alice.post("/v1/chat/completions", json={**CHAT, "stream": stream}, timeout=0.2)
    await upstream.until(lambda server: server.abandoned == 1, timeout_s=1)
    assert await proxy.metric('preamble_client_disconnects_total{phase="waiting"}') == 1
    assert await proxy.metric('preamble_requests_total{route="chat_completions",status="499"}') == 1
    assert await proxy.metric('preamble_requests_in_flight{route="chat_completions"}') == 0


async def test_a_client_that_leaves_while_streaming_ends_the_upstream_request(
    proxy: RunningProxy, alice: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    upstream.timing = Timing(gap_s=0.05)
    async with alice.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        await anext(answer.aiter_bytes())
    await upstream.until(lambda server: server.abandoned == 1, timeout_s=1)
    assert await proxy.metric('preamble_client_disconnects_total{phase="streaming"}') == 1


async def test_a_client_that_leaves_with_the_whole_stream_has_not_hung_up(tmp_path: Path) -> None:
    async def slow_to_end(scope: Any, receive: Any, send: Any) -> None:
        found = scope["path"] == "/v1/chat/completions"
        kind = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200 if found else 404, "headers": kind})
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": found})
        if found:
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass

    async with serving(slow_to_end) as url, running_proxy(url, tmp_path) as proxy:
        headers = await proxy.make_key("alice")
        async with (
            httpx.AsyncClient(base_url=proxy.url, headers=headers, timeout=10) as client,
            client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer,
        ):
            assert "data: [DONE]" in [line async for line in _until_done(answer)]
        async with asyncio.timeout(5):
            while await proxy.metric('preamble_requests_in_flight{route="chat_completions"}'):  # noqa: ASYNC110 -- it tells nobody
                await asyncio.sleep(0.02)
        assert await proxy.metric('preamble_requests_total{route="chat_completions",status="200"}') == 1
        assert await proxy.metric('preamble_client_disconnects_total{phase="streaming"}') == 0


async def _until_done(answer: httpx.Response) -> AsyncIterator[str]:
    """Yield lines up to `[DONE]`, where the openai client stops and closes."""
    async for line in answer.aiter_lines():
        yield line
        if line == "data: [DONE]":
            return


async def test_an_unreachable_upstream_is_a_503_that_says_when_to_try_again(
    proxy: RunningProxy, alice: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    await upstream.aclose()
    answer = await alice.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert error_of(answer)["code"] == "upstream_unavailable"
    assert await proxy.metric('preamble_upstream_errors_total{code="upstream_unavailable"}') == 1
    assert (await alice.get("/ready")).status_code == 503


async def test_every_request_is_counted_once_with_its_own_share_apart(
    proxy: RunningProxy, alice: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    upstream.timing = Timing(first_byte_delay_s=0.2)
    for stream in (False, True):
        await alice.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert await proxy.metric('preamble_requests_total{route="chat_completions",status="200"}') == 2
    assert await proxy.metric('preamble_request_duration_seconds_sum{route="chat_completions"}') > 0.4
    assert await proxy.metric('preamble_overhead_seconds_sum{route="chat_completions"}') < 0.2
    assert await proxy.metric('preamble_time_to_first_token_seconds_count{route="chat_completions"}') == 1


async def test_look_ups_of_constitutions_are_counted_as_miss_then_hit(
    proxy: RunningProxy, alice: httpx.AsyncClient
) -> None:
    for _ in range(3):
        await alice.post("/v1/chat/completions", json=CHAT)
    assert await proxy.metric('preamble_constitution_lookups_total{result="miss"}') == 1
    assert await proxy.metric('preamble_constitution_lookups_total{result="hit"}') == 2
    assert await proxy.metric('preamble_constitution_requests_total{use="none"}') == 3


async def test_label_values_come_from_a_closed_set(proxy: RunningProxy, alice: httpx.AsyncClient) -> None:
    await alice.get("/v1/some/made/up/path")
    await alice.post("/v1/chat/completions", json={**CHAT, "model": "made-up-model"})
    text = (await alice.get("/metrics")).text
    for invented in ("made/up", "made-up-model", "alice"):
        assert invented not in text
    assert 'route="other"' in text


def test_no_two_routes_with_different_handling_share_a_metric_name() -> None:
    by_name: dict[str, set[str]] = {}
    for path, route in ROUTES.items():
        by_name.setdefault(route.name, set()).add(path)
    assert all(len(paths) == 1 or name == "render" for name, paths in by_name.items())


async def test_without_keys_on_loopback_the_user_comes_from_the_header_or_the_body(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    async with (
        running_proxy(upstream.url, tmp_path, auth="off") as proxy,
        httpx.AsyncClient(base_url=proxy.url) as client,
    ):
        for user in ("ann", "ben"):
            await client.put(
                "/v1/constitution", json={"principles": [f"I am {user}."]}, headers={"x-preamble-user": user}
            )
        await client.post("/v1/chat/completions", json=CHAT, headers={"x-preamble-user": "ann"})
        assert b"I am ann." in upstream.received[-1].body
        await client.post("/v1/chat/completions", json={**CHAT, "user": "ben"})
        assert b"I am ben." in upstream.received[-1].body
        await client.post("/v1/chat/completions", json=CHAT)
        assert b"I am" not in upstream.received[-1].body


async def test_under_a_server_without_our_protocol_answers_are_the_same_and_hang_ups_are_seen(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    async with (
        running_proxy(upstream.url, tmp_path, http=HttpToolsProtocol) as proxy,
        httpx.AsyncClient(base_url=proxy.url, headers=await proxy.make_key("alice"), timeout=10) as client,
    ):
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        streamed = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        assert streamed.content == b"".join(sse_events())
        upstream.timing = Timing(first_byte_delay_s=30)
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/chat/completions", json=CHAT, timeout=0.2)
        await upstream.until(lambda server: server.abandoned == 1, timeout_s=1)
