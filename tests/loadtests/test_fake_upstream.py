"""The fake upstream speaks HTTP as vLLM's server does, whatever the reads look like, and tells what it saw."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.answers import CHUNKS, MODEL, Streamed, completion_body, sse_events
from loadtests.fake_upstream import FakeUpstream, Timing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FAST = Timing(gap_s=0.0)


def chat(*, stream: bool = False, extra: bytes = b"", version: bytes = b"1.1", model: str = MODEL) -> bytes:
    body = orjson.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream})
    head = b"POST /v1/chat/completions HTTP/%b\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n" % (version, len(body), extra)
    return head + body


def get(path: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path


@asynccontextmanager
async def connected(upstream: FakeUpstream) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return the status and the body of the next answer, chunked or with a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    if b"transfer-encoding: chunked" not in head:
        found = re.search(rb"content-length: (\d+)", head)
        assert found is not None
        return status, await reader.readexactly(int(found[1]))
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return status, b"".join(parts)


async def test_a_chat_is_answered_again_and_again_on_one_connection() -> None:
    async with FakeUpstream() as upstream, connected(upstream) as (reader, writer):
        for _ in range(3):
            writer.write(chat())
            assert await read_answer(reader) == (200, completion_body())
        assert upstream.connections == 1


async def test_a_stream_is_64_chunks_of_vllms_shape_and_then_done() -> None:
    async with FakeUpstream(timing=FAST) as upstream, connected(upstream) as (reader, writer):
        writer.write(chat(stream=True))
        status, body = await read_answer(reader)
    *events, done, rest = body.split(b"\n\n")
    assert (status, done, rest, len(events)) == (200, b"data: [DONE]", b"", CHUNKS)
    chunks = [orjson.loads(event.removeprefix(b"data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (CHUNKS - 1) + ["stop"]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == orjson.loads(completion_body())["choices"][0]["message"]["content"]


async def test_usage_comes_before_done_for_a_client_that_asks_for_it() -> None:
    body = b'{"stream": true, "stream_options": {"include_usage": true}}'
    async with FakeUpstream(timing=FAST) as upstream, connected(upstream) as (reader, writer):
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        _, answer = await read_answer(reader)
    *events, usage, done, _ = answer.split(b"\n\n")
    assert (len(events), done) == (CHUNKS, b"data: [DONE]")
    chunk = orjson.loads(usage.removeprefix(b"data: "))
    assert (chunk["choices"], chunk["usage"]["completion_tokens"]) == ([], CHUNKS - 1)


async def test_a_reader_that_keeps_up_sees_every_chunk_in_a_read_of_its_own() -> None:
    async with FakeUpstream(timing=Timing(gap_s=0.02), chunks=8) as upstream, connected(upstream) as (reader, writer):
        writer.write(chat(stream=True))
        reads = [await reader.read(65536)]
        while not reads[-1].endswith(b"0\r\n\r\n"):
            reads.append(await reader.read(65536))
    assert len(reads) == 8


@settings(max_examples=40)
@given(
    kinds=st.lists(st.sampled_from(["chat", "stream", "health"]), min_size=1, max_size=4),
    cuts=st.lists(st.integers(min_value=1, max_value=600), max_size=6),
)
def test_answers_are_the_same_however_pipelined_requests_are_cut(kinds: list[str], cuts: list[int]) -> None:
    requests = {"chat": chat(), "stream": chat(stream=True), "health": get(b"/health")}
    expected = {
        "chat": (200, completion_body(4)),
        "stream": (200, b"".join(sse_events(Streamed(4)))),
        "health": (200, b""),
    }

    async def converse() -> list[tuple[int, bytes]]:
        sent = b"".join(requests[kind] for kind in kinds)
        upstream = FakeUpstream(timing=FAST, chunks=4)
        async with upstream, connected(upstream) as (reader, writer):
            for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(sent)], strict=True):
                writer.write(sent[begin:end])
                await writer.drain()
                await asyncio.sleep(0)
            return [await read_answer(reader) for _ in kinds]

    assert asyncio.run(converse()) == [expected[kind] for kind in kinds]


@pytest.mark.parametrize(
    ("request_bytes", "status", "said"),
    [
        (chat(model="other"), 404, "The model `other` does not exist."),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{", 400, "not a JSON object"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]", 400, "not a JSON object"),
        (get(b"/v1/chat/completions"), 405, "Method Not Allowed"),
        (get(b"/nowhere"), 404, "Not Found"),
        (b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 400, "Give `prompt`"),
    ],
)
async def test_a_wrong_request_gets_vllms_status_and_the_connection_goes_on(
    request_bytes: bytes, status: int, said: str
) -> None:
    async with FakeUpstream() as upstream, connected(upstream) as (reader, writer):
        writer.write(request_bytes)
        answered, body = await read_answer(reader)
        assert answered == status
        assert said in body.decode()
        writer.write(get(b"/health"))
        assert await read_answer(reader) == (200, b"")


async def test_the_routes_that_a_proxy_asks_for_answer_like_vllm() -> None:
    async with FakeUpstream() as upstream, connected(upstream) as (reader, writer):

        async def ask(request_bytes: bytes) -> bytes:
            writer.write(request_bytes)
            status, body = await read_answer(reader)
            assert status == 200
            return body

        assert orjson.loads(await ask(get(b"/version"))) == {"version": "0.32.0"}
        assert orjson.loads(await ask(get(b"/v1/models")))["data"][0]["id"] == MODEL
        assert b'vllm:num_requests_running{engine="0",model_name="fake-model"} 1.0' in await ask(get(b"/metrics"))
        text = b'{"prompt": "one, two"}'
        head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(text)
        assert orjson.loads(await ask(head + text))["count"] == 3


async def test_what_is_not_http_is_refused_and_the_connection_closed() -> None:
    async with FakeUpstream() as upstream, connected(upstream) as (reader, writer):
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")


async def test_an_http_1_0_client_gets_a_stream_that_ends_with_the_connection() -> None:
    async with FakeUpstream(timing=FAST) as upstream, connected(upstream) as (reader, writer):
        writer.write(chat(stream=True, version=b"1.0"))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body == b"".join(sse_events())


async def test_a_client_that_asks_to_close_is_closed_after_its_answer() -> None:
    async with FakeUpstream() as upstream, connected(upstream) as (reader, writer):
        writer.write(chat(extra=b"Connection: close\r\n"))
        assert (await reader.read()).endswith(completion_body())


async def test_a_client_that_waits_for_100_continue_is_told_to_go_on() -> None:
    async with FakeUpstream() as upstream, connected(upstream) as (reader, writer):
        head, _, body = chat(extra=b"Expect: 100-continue\r\n").partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert await read_answer(reader) == (200, completion_body())


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_before_the_first_byte_is_counted_as_gone(stream: bool) -> None:
    async with FakeUpstream(timing=Timing(first_byte_delay_s=60.0)) as upstream:
        async with connected(upstream) as (_, writer):
            writer.write(chat(stream=stream))
            await upstream.until(lambda u: u.open_requests == 1)
        await upstream.until(lambda u: u.open_requests == 0)
        assert (upstream.abandoned, upstream.connections) == (1, 0)


async def test_a_client_that_goes_away_in_a_stream_is_counted_with_what_it_had_queued() -> None:
    async with FakeUpstream(timing=Timing(gap_s=60.0)) as upstream:
        async with connected(upstream) as (reader, writer):
            writer.write(chat(stream=True) + chat())
            await reader.readuntil(b'"role":"assistant"')
        await upstream.until(lambda u: u.open_requests == 0)
        assert upstream.abandoned == 2


async def test_a_finished_request_is_neither_open_nor_abandoned() -> None:
    async with FakeUpstream(timing=FAST) as upstream:
        async with connected(upstream) as (reader, writer):
            writer.write(chat(stream=True))
            await read_answer(reader)
        await upstream.until(lambda u: u.connections == 0)
        assert (upstream.open_requests, upstream.abandoned) == (0, 0)


async def test_a_recording_upstream_keeps_what_it_received_and_another_does_not() -> None:
    async with FakeUpstream(record=True) as recording, connected(recording) as (reader, writer):
        writer.write(chat(extra=b"X-Request-ID: abc\r\n"))
        await read_answer(reader)
    (received,) = recording.received
    assert (received.method, received.path) == ("POST", "/v1/chat/completions")
    assert received.header(b"x-request-id") == b"abc"
    assert received.json()["messages"] == [{"role": "user", "content": "hello"}]
    async with FakeUpstream() as silent, connected(silent) as (reader, writer):
        writer.write(chat())
        await read_answer(reader)
    assert silent.received == []
    assert silent.last_chat == received.body


async def test_a_new_timing_holds_for_the_requests_that_follow() -> None:
    async with FakeUpstream() as upstream, connected(upstream) as (reader, writer):
        upstream.timing = Timing(first_byte_delay_s=0.1)
        began = asyncio.get_running_loop().time()
        writer.write(chat())
        await read_answer(reader)
        assert asyncio.get_running_loop().time() - began >= 0.1


async def test_a_client_that_does_not_read_holds_the_stream_back() -> None:
    async with FakeUpstream(timing=FAST, chunks=50_000) as upstream, connected(upstream) as (reader, writer):
        writer.write(chat(stream=True))
        await asyncio.sleep(1.0)
        (transport,) = upstream.transports
        assert transport.get_write_buffer_size() < 1_000_000
        assert upstream.open_requests == 1
        size, tail = 0, b""
        while not tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            part = await reader.read(1 << 20)
            size, tail = size + len(part), (tail + part)[-64:]
        assert size > sum(map(len, sse_events(Streamed(50_000))))


async def test_asking_for_the_address_before_the_start_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        _ = FakeUpstream().url


def post(path: bytes, value: object) -> bytes:
    body = orjson.dumps(value)
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (path, len(body), body)


async def test_a_stream_has_the_token_ids_and_log_probabilities_that_were_asked_for_and_ends_at_the_limit() -> None:
    body = {"stream": True, "return_token_ids": True, "logprobs": True, "max_tokens": 5}
    async with FakeUpstream(timing=FAST) as upstream, connected(upstream) as (reader, writer):
        writer.write(post(b"/v1/chat/completions", body))
        _, answer = await read_answer(reader)
    chunks = [orjson.loads(event.removeprefix(b"data: ")) for event in answer.split(b"\n\n")[:-2]]
    assert len(chunks[0]["prompt_token_ids"]) == 100
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [len(choice["token_ids"] or []) for choice in choices] == [0, 1, 1, 1, 1, 1]
    assert [choice["logprobs"]["content"][0]["token"] for choice in choices[1:]] == [
        choice["delta"]["content"] for choice in choices[1:]
    ]
    assert choices[-1]["finish_reason"] == "length"


async def test_a_batch_of_prompts_is_scored_in_one_answer_and_counted() -> None:
    body = {"prompt": [[1, 2], [3]], "logprob_token_ids": [7, 8], "max_tokens": 1, "logprobs": 1}
    async with FakeUpstream() as upstream, connected(upstream) as (reader, writer):
        writer.write(post(b"/v1/completions", body))
        answer = orjson.loads((await read_answer(reader))[1])
        writer.write(get(b"/counts"))
        counted = orjson.loads((await read_answer(reader))[1])
        writer.write(post(b"/v1/completions", {"prompt": "hello"}))
        assert (await read_answer(reader))[0] == 400
    tops = [choice["logprobs"]["top_logprobs"][0] for choice in answer["choices"]]
    assert [set(top) for top in tops] == [{"token_id:7", "token_id:8"}] * 2
    assert tops[0]["token_id:7"] < tops[1]["token_id:7"]
    assert counted == {"chats": 0, "scorings": 1, "scored": 2, "abandoned": 0, "most_streams": 0}


async def test_streams_at_a_time_are_counted_also_those_that_are_left() -> None:
    async with FakeUpstream(timing=Timing(gap_s=60.0)) as upstream:
        async with connected(upstream) as (reader, writer), connected(upstream) as (other_reader, other_writer):
            for each, answer in ((writer, reader), (other_writer, other_reader)):
                each.write(chat(stream=True))
                await answer.readuntil(b'"role":"assistant"')
        await upstream.until(lambda u: u.streams == 0)
        assert upstream.most_streams == 2


async def test_a_chat_that_ends_inside_a_turn_is_a_prefix_of_the_same_chat_with_a_turn_after_it() -> None:
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello there"}]
    question = {"role": "user", "content": "Better?"}
    async with FakeUpstream() as upstream, connected(upstream) as (reader, writer):

        async def tokens(**payload: object) -> list[int]:
            writer.write(post(b"/tokenize", payload))
            found: list[int] = orjson.loads((await read_answer(reader))[1])["tokens"]
            return found

        inside = await tokens(messages=chat, continue_final_message=True)
        after = await tokens(messages=[*chat, question], add_generation_prompt=True)
        assert after[: len(inside)] == inside
        assert len(after) > len(inside)
        assert await tokens(prompt="Yes") != await tokens(prompt="No")
