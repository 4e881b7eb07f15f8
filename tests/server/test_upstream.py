"""The upstream client against servers that misbehave on purpose; each test ends by counting connections and permits."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import re
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from server.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from server.upstream import HIGH_WATER_BYTES, ConnectionLost, Timeouts, UpstreamClient
from tests.server.awkward_server import AwkwardServer, Do, Script, answer, chunked

PATIENT = Timeouts(connect_s=2.0, first_token_s=3.0, stall_s=3.0, total_s=5.0)
CLOSED_WITHIN_S = 0.2
SHORT_S = 0.15  # of a timer that is to fire
LATE_S = 1.0  # how late it may fire on a busy machine

HELLO = answer(b"hello")


LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test once on asyncio's own loop and once on uvloop, which production uses."""

    @functools.wraps(test)
    def on_loop(new_loop: Callable[[], asyncio.AbstractEventLoop], **arguments: Any) -> None:
        async def run() -> None:
            await test(**arguments)

        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(run())

    del on_loop.__wrapped__  # pytest looks for coroutines behind it
    own = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    signature = inspect.signature(test)
    on_loop.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what pytest reads fixtures from
        parameters=[*signature.parameters.values(), own]
    )
    on_each: Callable[..., None] = LOOPS(on_loop)
    return on_each


async def eventually(condition: Callable[[], bool], *, within_s: float = CLOSED_WITHIN_S) -> bool:
    """Return whether `condition` comes true in time."""
    deadline = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110 -- what is waited for has no event
        await asyncio.sleep(0.002)
    return condition()


@contextlib.asynccontextmanager
async def checked(client: UpstreamClient, server: AwkwardServer) -> AsyncIterator[None]:
    """Check at the end that both sides count the same connections, that no permit is lost, and that all can close."""
    pool = client._pool
    permits = pool._free
    try:
        yield
        assert await eventually(lambda: set(pool._idle) == pool.open)
        assert await eventually(lambda: client.open_connections == server.open_connections)
        assert (pool._free, list(pool._waiting)) == (permits, [])
    finally:
        await client.aclose()
    assert client.open_connections == 0
    assert await eventually(lambda: server.open_connections == 0)


@contextlib.asynccontextmanager
async def talking(
    *scripts: Script, timeouts: Timeouts = PATIENT, max_connections: int = 8
) -> AsyncIterator[tuple[AwkwardServer, UpstreamClient]]:
    """A client of a server that follows `scripts`, checked at the end."""
    server = AwkwardServer(*scripts)
    async with server.running() as url:
        client = UpstreamClient(url, timeouts=timeouts, max_connections=max_connections)
        async with checked(client, server):
            yield server, client


async def get(client: UpstreamClient, *, body: bytes = b"", stream: bool = False) -> bytes:
    """Make a request and return the body of the answer."""
    response = await client.request("POST", "/", body=body, stream=stream)
    return await response.read()


# What an answer may look like.

ANSWERS = {
    "content-length": (HELLO, 200, b"hello"),
    "no body": (answer(b""), 200, b""),
    "chunked": (chunked(b"he", b"l", b"lo"), 200, b"hello"),
    "chunked, no body": (chunked(), 200, b""),
    "trailers": (chunked(b"hello", trailers=b"x-checksum: 1\r\nx-b:\r\n"), 200, b"hello"),
    "chunk extensions": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0;c\r\n\r\n",
        200,
        b"hello",
    ),
    "100-continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO, 200, b"hello"),
    "early hints": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\nx-a: 1\r\n\r\n" + HELLO,
        200,
        b"hello",
    ),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "304 of a longer answer": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\n\r\n", 304, b""),
    "error of vLLM": (answer(b'{"detail":"?"}', status=422), 422, b'{"detail":"?"}'),
    "1.0 with keep-alive": (
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello",
        200,
        b"hello",
    ),
    "no reason": (b"HTTP/1.1 200\r\ncontent-length: 5\r\n\r\nhello", 200, b"hello"),
    "white space": (b"HTTP/1.1 200 OK\r\ncontent-length:\t 5 \t\r\n\r\nhello", 200, b"hello"),
    "empty lines before": (b"\r\n\r\n" + HELLO, 200, b"hello"),
}


@pytest.mark.parametrize("kind", ANSWERS)
@on_both_loops
async def test_an_answer_split_at_any_byte_arrives_whole_and_its_connection_is_used_again(kind: str) -> None:
    raw, status, body = ANSWERS[kind]
    script: list[bytes | Do] = []
    for split in range(1, len(raw)):
        script += [Do.READ, raw[:split], raw[split:]]
    async with talking(script) as (server, client):
        for split in range(1, len(raw)):
            response = await client.request("POST", "/", stream=split % 2 == 0)
            assert (response.status, await response.read()) == (status, body), split
        assert len(server.peers) == 1


@on_both_loops
async def test_an_answer_that_comes_byte_by_byte_arrives_whole() -> None:
    raw = ANSWERS["early hints"][0] + ANSWERS["trailers"][0]
    async with talking([Do.READ, *(raw[at : at + 1] for at in range(len(raw)))]) as (_, client):
        assert await get(client) == b"hello"


@on_both_loops
async def test_chunks_are_handed_out_as_they_arrive() -> None:
    async with talking([Do.READ, HELLO[:-5], 0.02, b"he", 0.02, b"llo"]) as (_, client):
        response = await client.request("POST", "/", stream=True)
        assert [chunk async for chunk in response] == [b"he", b"llo"]


@on_both_loops
async def test_headers_come_in_order_with_names_in_lower_case_and_without_white_space_around_values() -> None:
    raw = b"HTTP/1.1 200 OK\r\nX-B: 1\r\nx-a:\r\nSet-Cookie:  a=b \t\r\nset-cookie: c\r\ncontent-length: 0\r\n\r\n"
    async with talking([Do.READ, raw]) as (_, client):
        response = await client.request("POST", "/")
    assert response.headers == [
        (b"x-b", b"1"),
        (b"x-a", b""),
        (b"set-cookie", b"a=b"),
        (b"set-cookie", b"c"),
        (b"content-length", b"0"),
    ]


@on_both_loops
async def test_trailers_and_headers_of_interim_answers_do_not_pass_for_headers() -> None:
    raw = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + chunked(b"hello", trailers=b"set-cookie: admin\r\n")
    async with talking([Do.READ, raw]) as (_, client):
        response = await client.request("POST", "/")
    assert response.headers == [(b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@on_both_loops
async def test_a_body_without_a_length_ends_with_the_connection(version: bytes) -> None:
    script: Script = [Do.READ, b"HTTP/%s 200 OK\r\n\r\nhel" % version, 0.02, b"lo", Do.CLOSE]
    async with talking(script) as (server, client):
        assert [await get(client), await get(client)] == [b"hello", b"hello"]
        assert len(server.peers) == 2


@on_both_loops
async def test_connection_close_is_obeyed() -> None:
    async with talking([Do.READ, answer(b"hello", headers=b"Connection: Close\r\n")]) as (server, client):
        assert [await get(client), await get(client)] == [b"hello", b"hello"]
        assert len(server.peers) == 2


@on_both_loops
async def test_an_event_stream_is_returned_at_once_even_if_a_whole_answer_was_asked_for() -> None:
    rest = asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncontent-length: 5\r\n\r\n"
    async with talking([Do.READ, head, b"he", rest, b"llo"]) as (_, client):
        response = await client.request("POST", "/")
        assert response.take_all() is None
        rest.set()
        assert await response.read() == b"hello"


@on_both_loops
async def test_a_long_answer_is_returned_before_it_is_whole_and_handed_out_as_it_arrives() -> None:
    more, last = asyncio.Event(), asyncio.Event()
    body = bytes(4 * HIGH_WATER_BYTES)
    raw = answer(body)
    async with talking([Do.READ, raw[:-2], more, raw[-2:-1], last, raw[-1:]]) as (_, client):
        response = await client.request("POST", "/")
        assert response.take_all() is None
        received = 0
        while received < len(body) - 2:
            received += len(await anext(response))
        more.set()
        assert await asyncio.wait_for(anext(response), 1) == body[-2:-1]
        last.set()
        assert await response.read() == body[-1:]
        assert response.take_all() == b""


@on_both_loops
async def test_a_short_answer_can_be_taken_without_waiting() -> None:
    async with talking([Do.READ, HELLO[:-2], 0.02, HELLO[-2:]]) as (_, client):
        before = time.perf_counter()
        response = await client.request("POST", "/")
        assert response.take_all() == b"hello"
        assert before < response.received_at <= time.perf_counter()


# What a request looks like.


@on_both_loops
async def test_a_request_says_what_it_was_told_to() -> None:
    server = AwkwardServer([Do.READ, HELLO] * 3)
    async with server.running() as url:
        client = UpstreamClient(f"{url}/prefix/", api_key="sk-1", timeouts=PATIENT)
        async with checked(client, server):
            await (await client.request("POST", "/v1/x?y=1", headers=((b"a", b"b"),), body=b"{}")).read()
            await (await client.request("GET", "/health")).read()
            await (await client.request("DELETE", "/v1/x")).read()
    common = f"host: {url.removeprefix('http://')}\r\nauthorization: Bearer sk-1\r\n"
    assert [request.decode() for request in server.requests] == [
        f"POST /prefix/v1/x?y=1 HTTP/1.1\r\n{common}a: b\r\ncontent-length: 2\r\n\r\n{{}}",
        f"GET /prefix/health HTTP/1.1\r\n{common}\r\n",
        f"DELETE /prefix/v1/x HTTP/1.1\r\n{common}content-length: 0\r\n\r\n",
    ]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/ HTTP/1.1\r\nx: y", ()),
        ("/\n", ()),
        ("/", ((b"a", b"b\r\n\r\nGET /admin HTTP/1.1"),)),
        ("/", ((b"a", b"b\rc"),)),
        ("/", ((b"a\n", b"b"),)),
    ],
)
async def test_a_line_break_cannot_make_two_requests_of_one(
    path: str, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    async with talking([Do.READ, HELLO]) as (server, client):
        with pytest.raises(ValueError, match="line break"):
            await client.request("POST", path, headers=headers)
        assert server.peers == []


@on_both_loops
async def test_a_very_large_body_is_sent_whole() -> None:
    body = bytes(range(256)) * (16 * 4096)
    async with talking([Do.READ, HELLO] * 2) as (server, client):
        assert [await get(client, body=body), await get(client)] == [b"hello", b"hello"]
        assert server.requests[0].endswith(b"\r\n\r\n" + body)
        assert len(server.peers) == 1


async def test_json_is_sent_and_decoded() -> None:
    bodies = [b'{"a": [1]}', b"", b"<html>"]
    script = [step for body in bodies for step in (Do.READ, answer(body))]
    async with talking(script) as (server, client):
        assert await client.request_json("POST", "/", {"q": "é"}) == (200, {"a": [1]})
        assert await client.request_json("GET", "/") == (200, None)
        assert await client.request_json("GET", "/") == (200, None)
        first, second, _ = server.requests
        assert first.endswith('content-type: application/json\r\ncontent-length: 10\r\n\r\n{"q":"é"}'.encode())
        assert b"content" not in second


@on_both_loops
async def test_ipv6_addresses_are_reached_and_named_in_brackets() -> None:
    server = AwkwardServer([Do.READ, HELLO])
    async with server.running(host="::1") as url:
        client = UpstreamClient(url, timeouts=PATIENT)
        async with checked(client, server):
            assert await get(client) == b"hello"
    assert re.search(rb"\r\nhost: \[::1\]:\d+\r\n", server.requests[0])


# Servers that close early.

BROKEN_OFF = {
    "in the status line": b"HTTP/1.1 2",
    "in the head": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n",
    "before the body": HELLO[:-5],
    "in the body": HELLO[:-1],
    "in a chunk": chunked(b"hello")[:-8],
    "before the last chunk": chunked(b"hello")[:-5],
    "before the end of the trailers": chunked(b"hello", trailers=b"a: b\r\n")[:-2],
    "after an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n",
    "in a body of unknown coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello",
}


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET, Do.HALF_CLOSE])
@pytest.mark.parametrize("where", BROKEN_OFF)
@on_both_loops
async def test_an_answer_that_breaks_off_is_an_error_and_is_not_asked_for_again(where: str, end: Do) -> None:
    async with talking([Do.READ, HELLO, Do.READ, BROKEN_OFF[where], 0.01, end], [Do.READ, HELLO]) as (server, client):
        assert await get(client) == b"hello"
        with pytest.raises(UpstreamBroken):
            await get(client)
        assert len(server.requests) == 2
        assert await get(client) == b"hello"


@on_both_loops
async def test_a_whole_answer_that_breaks_off_is_not_returned_at_all() -> None:
    async with talking([Do.READ, HELLO[:-1], Do.CLOSE]) as (_, client):
        with pytest.raises(UpstreamBroken):
            await client.request("POST", "/")


@on_both_loops
async def test_a_stream_that_breaks_off_gives_what_it_had_first() -> None:
    async with talking([Do.READ, HELLO[:-2], Do.CLOSE]) as (_, client):
        response = await client.request("POST", "/", stream=True)
        assert await anext(response) == b"hel"
        with pytest.raises(UpstreamBroken):
            await anext(response)
        with pytest.raises(UpstreamBroken):
            await response.read()


@on_both_loops
async def test_a_body_without_a_length_that_is_reset_is_not_taken_for_whole() -> None:
    async with talking([Do.READ, b"HTTP/1.1 200 OK\r\n\r\nhel", 0.02, Do.RESET]) as (_, client):
        with pytest.raises(UpstreamBroken):
            await get(client)


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET, Do.HALF_CLOSE])
@on_both_loops
async def test_a_new_connection_that_closes_without_a_word_is_unavailable_and_not_tried_again(end: Do) -> None:
    async with talking([Do.READ, end], [Do.READ, HELLO]) as (server, client):
        with pytest.raises(UpstreamUnavailable) as caught:
            await get(client)
        assert caught.value.code == "upstream_connection_lost"
        assert len(server.requests) == 1
        assert await get(client) == b"hello"


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET, Do.HALF_CLOSE])
@on_both_loops
async def test_a_server_that_closes_before_it_reads_is_unavailable_at_once(end: Do) -> None:
    async with talking([Do.STOP_READING, 0.02, end], [Do.READ, HELLO]) as (server, client):
        with pytest.raises(UpstreamUnavailable):
            await get(client, body=bytes(32_000_000))
        assert await get(client) == b"hello"
        server.peers[0].abort()  # it does not read, and so would not notice


@on_both_loops
async def test_an_answer_before_the_body_is_sent_is_taken_and_the_connection_is_not_used_again() -> None:
    refusal = answer(b"too large", status=413)
    async with talking([Do.STOP_READING, 0.02, refusal], [Do.READ, HELLO]) as (server, client):
        response = await client.request("POST", "/", body=bytes(32_000_000))
        assert (response.status, await response.read()) == (413, b"too large")
        assert await get(client) == b"hello"
        assert len(server.peers) == 2
        server.peers[0].abort()  # it does not read, and so would not notice


# The keep-alive race.


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET, Do.HALF_CLOSE])
@on_both_loops
async def test_a_request_that_meets_the_closing_of_an_idle_connection_is_sent_again_on_a_new_one(end: Do) -> None:
    async with talking([Do.READ, HELLO, Do.READ, end], [Do.READ, HELLO]) as (server, client):
        assert await get(client, body=b"1") == b"hello"
        assert await get(client, body=b"2") == b"hello"
        assert [request[-1:] for request in server.requests] == [b"1", b"2", b"2"]


@on_both_loops
async def test_it_is_sent_again_only_once_and_not_on_another_idle_connection() -> None:
    go = asyncio.Event()
    closing: Script = [Do.READ, go, HELLO, Do.READ, Do.CLOSE]
    async with talking(closing, closing, [Do.READ, Do.CLOSE], [Do.READ, HELLO]) as (server, client):
        both = asyncio.gather(get(client), get(client))
        assert await eventually(lambda: len(server.requests) == 2)
        go.set()
        await both
        with pytest.raises(UpstreamUnavailable):
            await get(client, body=b"2")
        assert sorted(len(peer.requests) for peer in server.peers[:2]) == [1, 2]
        assert [peer.requests[-1][-1:] for peer in server.peers[2:]] == [b"2"]


@on_both_loops
async def test_it_is_sent_again_in_its_turn_and_on_a_new_connection_even_where_an_idle_one_must_make_room() -> None:
    closing: Script = [Do.READ, HELLO, Do.READ, Do.CLOSE]
    async with talking(closing, [Do.READ, HELLO], max_connections=1) as (server, client):
        await get(client)
        await asyncio.gather(get(client, body=b"1"), get(client, body=b"2"))
        assert [peer.requests[-1][-1:] for peer in server.peers] == [b"1", b"2", b"1"]
        assert client.open_connections == 1


@on_both_loops
async def test_an_idle_connection_that_the_server_closes_is_forgotten() -> None:
    async with talking([Do.READ, HELLO, 0.01, Do.CLOSE]) as (_, client):
        await get(client)
        assert client.open_connections == 1
        assert await eventually(lambda: client.open_connections == 0)


@on_both_loops
async def test_the_closing_of_an_idle_connection_is_noticed_before_a_request_is_written_to_it() -> None:
    async with talking([Do.READ, HELLO]) as (server, client):
        await get(client)
        server.peers[0].end_now()
        assert await get(client) == b"hello"
        assert [len(peer.requests) for peer in server.peers] == [1, 1]


# Out of step: nothing that was sent too much may be taken for the answer to the next request.

POISON = answer(b"poison")
TOO_MUCH = {
    "another answer": POISON,
    "an answer in chunks": chunked(b"poison"),
    "an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n",
    "half an answer": POISON[:-1],
    "half a head": POISON[:20],
    "one byte": b"H",
    "a line": b"HTTP/1.1 200 OK\r\n",
    "garbage": b"\x00\xff",
    "a longer body than said": b" and more",
}


@pytest.mark.parametrize("close", [b"", b"connection: close\r\n"])
@pytest.mark.parametrize("what", TOO_MUCH)
@on_both_loops
async def test_what_follows_an_answer_in_one_segment_never_reaches_the_next_request(what: str, close: bytes) -> None:
    first = answer(b"hello", headers=close) + TOO_MUCH[what]
    async with talking([Do.READ, first, Do.READ, POISON], [Do.READ, answer(b"second")]) as (_, client):
        assert await get(client) == b"hello"
        assert await get(client) == b"second"


@pytest.mark.parametrize("what", TOO_MUCH)
@on_both_loops
async def test_what_arrives_on_an_idle_connection_never_reaches_the_next_request(what: str) -> None:
    script: Script = [Do.READ, HELLO, 0.02, TOO_MUCH[what]]
    async with talking(script, [Do.READ, answer(b"second")]) as (server, client):
        assert await get(client) == b"hello"
        assert await eventually(lambda: server.open_connections == 0)
        assert await get(client) == b"second"


@pytest.mark.parametrize("what", TOO_MUCH)
@on_both_loops
async def test_what_waits_unread_on_an_idle_connection_never_reaches_the_next_request(what: str) -> None:
    async with talking([Do.READ, HELLO, Do.READ, POISON], [Do.READ, answer(b"second")]) as (server, client):
        assert await get(client) == b"hello"
        server.peers[0].write_now(TOO_MUCH[what])
        assert await get(client) == b"second"


# Garbage.

GARBAGE = {
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "binary": bytes(range(256)),
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "a version that there is not": b"HTTP/1.7 200 OK\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status below 100": b"HTTP/1.1 099 OK\r\n\r\n" + HELLO,
    "an interim answer with a body": b"HTTP/1.1 199 Wait\r\ncontent-length: 8\r\n\r\nHTTP/1.1" + HELLO,
    "an interim answer in chunks": b"HTTP/1.1 199 Wait\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + HELLO,
    "another protocol from now on": b"HTTP/1.1 101 Go\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n" + HELLO,
    "another protocol without its name": b"HTTP/1.1 101 Go\r\n\r\n" + HELLO,
    "no colon": b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
    "white space before the colon": b"HTTP/1.1 200 OK\r\ncontent-length : 5\r\n\r\nhello",
    "a folded header": b"HTTP/1.1 200 OK\r\na: b\r\n c\r\ncontent-length: 5\r\n\r\nhello",
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "chunks and a length": chunked(b"hello", headers=b"content-length: 5\r\n"),
    "a length and chunks": answer(b"5\r\nhello\r\n0\r\n\r\n", headers=b"transfer-encoding: chunked\r\n"),
    "a negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
    "a length out of range": b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nhello",
    "a chunk without a size": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
    "a chunk longer than said": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
    "a chunk size out of range": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello",
}


@pytest.mark.parametrize("what", GARBAGE)
@on_both_loops
async def test_garbage_is_an_error_at_once_and_harms_nobody_else(what: str) -> None:
    async with talking([Do.READ, GARBAGE[what]], [Do.READ, HELLO]) as (server, client):
        with pytest.raises(UpstreamBroken, match=r"not HTTP/1\.1"):
            await get(client)
        assert await get(client) == b"hello"
        assert len(server.peers) == 2


ENDLESS = {
    "header": (b"HTTP/1.1 200 OK\r\nx: ", b"a" * 8192),
    "header name": (b"HTTP/1.1 200 OK\r\n", b"a" * 8192),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 1024),
    "reason": (b"HTTP/1.1 200 ", b"a" * 8192),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 256),
    "empty lines": (b"", b"\r\n" * 4096),
    "trailers": (chunked(b"hello")[:-2], b"x: y\r\n" * 1024),
    "chunk extension": (chunked()[:-5], b"5" + b";a" * 4096),
}


@pytest.mark.parametrize("what", ENDLESS)
@on_both_loops
async def test_an_endless_head_or_trailer_is_an_error_long_before_it_fills_the_memory(what: str) -> None:
    begin, more = ENDLESS[what]
    async with talking([Do.READ, begin, *[more] * 1000], [Do.READ, HELLO]) as (_, client):
        with pytest.raises(UpstreamBroken, match=r"without a body|not HTTP/1\.1"):
            await get(client)
        assert await get(client) == b"hello"


@on_both_loops
async def test_a_head_of_many_kilobytes_is_taken() -> None:
    async with talking([Do.READ, answer(b"hello", headers=b"x: " + b"a" * 50_000 + b"\r\n")]) as (_, client):
        assert await get(client) == b"hello"


# The pool.


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("address", ["127.0.0.1", "no-such-host.invalid", "a..b", "[::1]"])
@on_both_loops
async def test_an_upstream_that_cannot_be_reached_is_unavailable_at_once(address: str) -> None:
    client = UpstreamClient(f"http://{address}:{unused_port()}", timeouts=PATIENT, max_connections=1)
    async with checked(client, AwkwardServer()):
        for _ in range(2):  # the permit comes back
            begun = time.monotonic()
            with pytest.raises(UpstreamUnavailable) as caught:
                await get(client)
            assert caught.value.code == "upstream_unavailable"
            assert dict(caught.value.headers)["retry-after"].isdigit()
            assert time.monotonic() - begun < 1


@pytest.fixture
def deaf_address() -> Iterator[str]:
    """Return the URL of a listener whose queue is full, so that connecting to it never ends."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            queued = sockets.enter_context(socket.socket())
            queued.setblocking(False)
            queued.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@on_both_loops
async def test_no_more_connections_are_opened_than_allowed_and_all_are_used_again() -> None:
    async with talking([Do.READ, 0.005, HELLO] * 20, max_connections=3) as (server, client):
        assert await asyncio.gather(*(get(client) for _ in range(20))) == [b"hello"] * 20
        assert len(server.peers) == 3


@on_both_loops
async def test_whoever_waits_longest_is_next_and_nobody_overtakes() -> None:
    async with talking([Do.READ, 0.01, HELLO] * 8, max_connections=1) as (server, client):

        async def twice(name: bytes) -> None:
            await get(client, body=name)
            await get(client, body=name)  # at the very moment at which the connection is free

        await asyncio.gather(*(twice(name) for name in (b"a", b"b", b"c", b"d")))
        assert b"".join(request[-1:] for request in server.requests) == b"abcdabcd"


@on_both_loops
async def test_a_newcomer_does_not_take_the_connection_that_was_just_freed_for_somebody_who_waits() -> None:
    go = asyncio.Event()
    streaming: Script = [Do.READ, HELLO[:-5], go, b"h"]
    answering: Script = [Do.READ, go, HELLO, Do.READ, HELLO, Do.READ, HELLO]
    async with talking(streaming, answering, max_connections=2) as (server, client):
        stream = await client.request("POST", "/", stream=True)
        busy = asyncio.create_task(get(client, body=b"1"))
        assert await eventually(lambda: len(server.requests) == 2)
        waiting = asyncio.create_task(get(client, body=b"2"))

        async def come_when_the_stream_goes_on() -> None:
            await anext(stream)  # read together with the answer that frees the other connection, and just before it
            await get(client, body=b"3")

        newcomer = asyncio.create_task(come_when_the_stream_goes_on())
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(busy, waiting, newcomer)
        assert [request[-1:] for request in server.peers[1].requests] == [b"1", b"2", b"3"]
        stream.close()


@on_both_loops
async def test_a_lost_or_refused_connection_passes_its_turn_on() -> None:
    scripts: list[Script] = [[Do.READ, 0.01, Do.RESET], [Do.READ, b"garbage"], [Do.READ, HELLO[:-1], Do.CLOSE]]
    async with talking(*scripts, [Do.READ, HELLO], max_connections=1) as (server, client):
        outcomes = await asyncio.gather(*(get(client) for _ in range(4)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ConnectionLost, UpstreamBroken, UpstreamBroken, bytes]
        assert len(server.peers) == 4


@pytest.mark.parametrize("first", ["the turn", "the cancellation"])
@on_both_loops
async def test_a_turn_that_comes_at_the_moment_of_cancellation_is_passed_on(first: str) -> None:
    async with talking([Do.READ, HELLO[:-1]], [Do.READ, HELLO], max_connections=1) as (_, client):
        busy = await client.request("POST", "/", stream=True)
        waiting = asyncio.create_task(get(client))
        behind = asyncio.create_task(get(client))
        await asyncio.sleep(0)
        if first == "the turn":
            busy.close()
            waiting.cancel()
        else:
            waiting.cancel()
            busy.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await behind == b"hello"


# Cancelling and closing.


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        HELLO[:20],
        HELLO[:-5],
        HELLO[:-1],
        b"HTTP/1.1 200 OK\r\n\r\nhel",
    ],
    ids=["nothing", "an interim answer", "half a head", "a head", "half a body", "half a body without a length"],
)
@pytest.mark.parametrize("stream", [True, False])
@on_both_loops
async def test_cancelling_closes_the_connection_whatever_has_arrived(begin: bytes, stream: bool) -> None:
    async with talking([Do.READ, begin], [Do.READ, HELLO], max_connections=1) as (server, client):
        task = asyncio.create_task(get(client, stream=stream))
        assert await eventually(lambda: len(server.requests) == 1)
        await asyncio.sleep(0.01)
        task.cancel()
        assert await eventually(server.peers[0].gone.is_set)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await get(client) == b"hello"


@on_both_loops
async def test_cancelling_while_the_request_is_being_written_does_not_wait_for_the_server_to_read_it() -> None:
    async with talking([Do.STOP_READING], [Do.READ, HELLO], max_connections=1) as (server, client):
        task = asyncio.create_task(get(client, body=bytes(32_000_000)))
        assert await eventually(lambda: len(server.peers) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await eventually(lambda: client.open_connections == 0)
        assert await get(client) == b"hello"
        server.peers[0].abort()  # it does not read, and so would not notice


@on_both_loops
async def test_cancelling_while_waiting_for_a_turn_leaves_the_line_in_order() -> None:
    async with talking([Do.READ, 0.02, HELLO] * 3, max_connections=1) as (server, client):
        first, second, third = (asyncio.create_task(get(client, body=name)) for name in (b"1", b"2", b"3"))
        assert await eventually(lambda: len(server.peers) == 1)
        second.cancel()
        assert [await first, await third] == [b"hello", b"hello"]
        assert [request[-1:] for request in server.requests] == [b"1", b"3"]


@on_both_loops
async def test_cancelling_while_connecting_gives_the_permit_back(deaf_address: str) -> None:
    client = UpstreamClient(deaf_address, timeouts=PATIENT, max_connections=1)
    async with checked(client, AwkwardServer()):
        task = asyncio.create_task(get(client))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@on_both_loops
async def test_cancelling_at_any_moment_of_connecting_leaves_nothing_behind() -> None:
    for ticks in range(12):
        async with talking([Do.READ, HELLO] * 2, max_connections=1) as (_, client):
            task = asyncio.create_task(get(client))
            for _ in range(ticks):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert await get(client) == b"hello"


@on_both_loops
async def test_closing_an_answer_closes_its_connection_and_ends_whoever_waits_for_it() -> None:
    async with talking([Do.READ, HELLO[:-2]]) as (server, client):
        response = await client.request("POST", "/", stream=True)
        reading = asyncio.create_task(response.read())
        await asyncio.sleep(0.02)
        response.close()
        response.close()
        with pytest.raises(UpstreamBroken, match="closed before its end"):
            await reading
        assert await eventually(server.peers[0].gone.is_set)


@on_both_loops
async def test_closing_a_finished_answer_leaves_its_connection_to_others() -> None:
    async with talking([Do.READ, HELLO] * 2) as (server, client):
        response = await client.request("POST", "/")
        response.close()
        assert await get(client) == b"hello"
        assert await response.read() == b"hello"
        assert len(server.peers) == 1


@pytest.mark.parametrize(
    "script",
    [[Do.READ], [Do.READ, HELLO[:-1]], [Do.READ, b"HTTP/1.1 200 OK\r\n\r\nhel"]],
    ids=["before the head", "in the body", "in a body without a length"],
)
@pytest.mark.parametrize("stream", [True, False])
@on_both_loops
async def test_shutting_down_ends_exchanges_under_way_waiting_and_new(script: Script, stream: bool) -> None:
    async with talking(script, max_connections=1) as (server, client):
        tasks = [asyncio.create_task(get(client, stream=stream)) for _ in range(3)]
        assert await eventually(lambda: len(server.requests) == 1)
        await asyncio.sleep(0.02)
        await client.aclose()
        assert client.open_connections == 0
        for task in (*tasks, asyncio.create_task(get(client))):
            with pytest.raises(UpstreamUnavailable) as caught:
                await task
            assert caught.value.code == "shutting_down"
        assert len(server.peers) == 1


@on_both_loops
async def test_shutting_down_closes_a_connection_that_is_just_being_made() -> None:
    for ticks in range(12):
        async with talking([Do.READ]) as (_, client):
            task = asyncio.create_task(get(client))
            for _ in range(ticks):
                await asyncio.sleep(0)
            await client.aclose()
            with pytest.raises(UpstreamUnavailable):
                await task


# Back-pressure and the timers.


async def fires(code: str, error: type[UpstreamError], waiting: Awaitable[object]) -> None:
    """Check that `waiting` ends with the timer `code` after `SHORT_S`."""
    begun = time.monotonic()
    with pytest.raises(error) as caught:
        await waiting
    assert caught.value.code == code
    assert SHORT_S - 0.02 <= time.monotonic() - begun <= SHORT_S + LATE_S


@on_both_loops
async def test_the_connect_timer_fires_while_connecting(deaf_address: str) -> None:
    client = UpstreamClient(deaf_address, timeouts=Timeouts(SHORT_S, 3.0, 3.0, 5.0), max_connections=1)
    async with checked(client, AwkwardServer()):
        await fires("upstream_connect_timeout", UpstreamUnavailable, get(client))


@on_both_loops
async def test_the_connect_timer_fires_while_waiting_for_a_turn() -> None:
    timeouts = Timeouts(SHORT_S, 3.0, 3.0, 5.0)
    async with talking([Do.READ], timeouts=timeouts, max_connections=1) as (server, client):
        busy = asyncio.create_task(get(client))
        assert await eventually(lambda: len(server.requests) == 1)
        await fires("upstream_connect_timeout", UpstreamUnavailable, get(client))
        assert not client._pool._waiting
        busy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy


@on_both_loops
async def test_a_slow_reader_holds_the_server_back_without_losing_a_byte() -> None:
    body = bytes(range(256)) * (64 * 1024)
    timeouts = Timeouts(connect_s=2.0, first_token_s=3.0, stall_s=SHORT_S, total_s=5.0)
    async with talking([Do.READ, answer(body)] * 2, timeouts=timeouts) as (server, client):
        response = await client.request("POST", "/", stream=True)
        await asyncio.sleep(3 * SHORT_S)  # the stall timer does not fire: the silence is ours
        held_back = server.peers[0].unsent_bytes
        await asyncio.sleep(0.05)
        assert server.peers[0].unsent_bytes == held_back > 0
        assert HIGH_WATER_BYTES < response.buffered_bytes <= 3 * HIGH_WATER_BYTES
        received = []
        async for chunk in response:
            received.append(chunk)
            await asyncio.sleep(0)
        assert b"".join(received) == body
        assert await get(client) == body
        assert len(server.peers) == 1


@on_both_loops
async def test_a_sink_is_given_every_piece_as_it_arrives() -> None:
    async with talking([Do.READ, HELLO[:-4], 0.02, b"el", 0.02, b"lo", Do.READ, HELLO]) as (server, client):
        response = await client.request("POST", "/", stream=True)
        pieces: list[bytes] = []
        await response.pump(pieces.append)
        assert pieces == [b"h", b"el", b"lo"]
        await response.pump(pieces.append)
        assert len(pieces) == 3
        assert await get(client) == b"hello"
        assert len(server.peers) == 1


@on_both_loops
async def test_a_sink_is_given_what_arrived_before_an_answer_broke_off() -> None:
    async with talking([Do.READ, HELLO[:-4], 0.02, b"el", 0.02, Do.CLOSE]) as (_, client):
        response = await client.request("POST", "/", stream=True)
        pieces: list[bytes] = []
        with pytest.raises(UpstreamBroken):
            await response.pump(pieces.append)
        assert pieces == [b"h", b"el"]


@on_both_loops
async def test_cancelling_while_a_sink_is_fed_closes_the_connection() -> None:
    async with talking([Do.READ, HELLO[:-1]]) as (server, client):
        response = await client.request("POST", "/", stream=True)
        pumping = asyncio.create_task(response.pump(lambda _: None))
        await asyncio.sleep(0.01)
        pumping.cancel()
        assert await eventually(server.peers[0].gone.is_set)
        with pytest.raises(asyncio.CancelledError):
            await pumping


@on_both_loops
async def test_a_sink_that_pauses_holds_the_server_back_without_losing_a_byte_or_stalling() -> None:
    body = bytes(range(256)) * (64 * 1024)
    timeouts = Timeouts(connect_s=2.0, first_token_s=3.0, stall_s=SHORT_S, total_s=5.0)
    async with talking([Do.READ, answer(body), Do.READ, HELLO], timeouts=timeouts) as (server, client):
        response = await client.request("POST", "/", stream=True)
        received = bytearray()

        def pause_at_each_piece(piece: bytes) -> None:
            received.extend(piece)
            response.pause()

        pumping = asyncio.create_task(response.pump(pause_at_each_piece))
        await asyncio.sleep(3 * SHORT_S)
        assert server.peers[0].unsent_bytes > 0
        before = len(received)
        await asyncio.sleep(0.05)
        assert len(received) == before <= 3 * HIGH_WATER_BYTES
        while not pumping.done():
            response.resume()
            await asyncio.sleep(0)
        await pumping
        assert received == body
        assert await get(client) == b"hello"
        assert len(server.peers) == 1


@on_both_loops
async def test_the_stall_timer_counts_from_the_end_of_a_pause_of_the_sink() -> None:
    timeouts = Timeouts(connect_s=2.0, first_token_s=3.0, stall_s=SHORT_S, total_s=5.0)
    async with talking([Do.READ, HELLO[:-1]], timeouts=timeouts) as (_, client):
        response = await client.request("POST", "/", stream=True)
        pumping = asyncio.create_task(response.pump(lambda _: response.pause()))
        await asyncio.sleep(2 * SHORT_S)
        response.resume()
        await fires("upstream_stall_timeout", UpstreamTimeout, pumping)


@on_both_loops
async def test_the_stall_timer_counts_from_the_end_of_our_own_pause() -> None:
    timeouts = Timeouts(connect_s=2.0, first_token_s=3.0, stall_s=SHORT_S, total_s=5.0)
    raw = answer(bytes(HIGH_WATER_BYTES + 2))  # we pause just when all that is sent of it has arrived
    async with talking([Do.READ, raw[:-1]], timeouts=timeouts) as (_, client):
        response = await client.request("POST", "/", stream=True)
        await asyncio.sleep(2 * SHORT_S)
        await fires("upstream_stall_timeout", UpstreamTimeout, response.read())


@pytest.mark.parametrize("stream", [True, False])
@on_both_loops
async def test_the_stall_timer_fires_when_the_server_falls_silent_in_a_body(stream: bool) -> None:
    timeouts = Timeouts(connect_s=2.0, first_token_s=3.0, stall_s=SHORT_S, total_s=5.0)
    async with talking([Do.READ, 0.2, HELLO[:-1]], timeouts=timeouts) as (server, client):
        request = asyncio.create_task(get(client, stream=stream))
        assert await eventually(lambda: len(server.requests) == 1)
        await asyncio.sleep(0.2)
        await fires("upstream_stall_timeout", UpstreamTimeout, request)
        assert await eventually(server.peers[0].gone.is_set)


@on_both_loops
async def test_the_stall_timer_does_not_fire_while_bytes_keep_coming() -> None:
    timeouts = Timeouts(connect_s=2.0, first_token_s=3.0, stall_s=0.2, total_s=5.0)
    trickle = [step for at in range(-5, 0) for step in (0.1, HELLO[at:][:1])]
    async with talking([Do.READ, HELLO[:-5], *trickle], timeouts=timeouts) as (_, client):
        assert await get(client, stream=True) == b"hello"


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", HELLO[:-5]])
@on_both_loops
async def test_the_first_token_timer_fires_until_the_first_byte_of_a_streamed_body(before: bytes) -> None:
    timeouts = Timeouts(connect_s=2.0, first_token_s=SHORT_S, stall_s=3.0, total_s=5.0)
    async with talking([Do.READ, before], timeouts=timeouts) as (server, client):
        await fires("upstream_first_token_timeout", UpstreamTimeout, get(client, stream=True))
        assert await eventually(server.peers[0].gone.is_set)


@on_both_loops
async def test_an_answer_that_is_not_streamed_has_no_first_token_timer() -> None:
    timeouts = Timeouts(connect_s=2.0, first_token_s=0.05, stall_s=0.05, total_s=5.0)
    async with talking([Do.READ, 0.2, HELLO], timeouts=timeouts) as (_, client):
        assert await get(client) == b"hello"


@pytest.mark.parametrize("stream", [True, False])
@on_both_loops
async def test_the_total_timer_fires_however_steadily_bytes_come(stream: bool) -> None:
    timeouts = Timeouts(connect_s=2.0, first_token_s=3.0, stall_s=3.0, total_s=SHORT_S)
    trickle = [step for _ in range(100) for step in (0.02, b"x")]
    async with talking([Do.READ, answer(bytes(1000))[:-1000], *trickle], timeouts=timeouts) as (server, client):
        await fires("upstream_total_timeout", UpstreamTimeout, get(client, stream=stream))
        assert await eventually(server.peers[0].gone.is_set)


@on_both_loops
async def test_the_total_timer_fires_before_any_answer_too() -> None:
    timeouts = Timeouts(connect_s=2.0, first_token_s=3.0, stall_s=3.0, total_s=SHORT_S)
    async with talking([Do.READ], timeouts=timeouts) as (_, client):
        await fires("upstream_total_timeout", UpstreamTimeout, get(client))


@on_both_loops
async def test_the_total_timer_counts_the_time_spent_waiting_for_a_turn() -> None:
    timeouts = Timeouts(connect_s=2.0, first_token_s=3.0, stall_s=3.0, total_s=0.4)
    async with talking([Do.READ, 0.3, HELLO, Do.READ], timeouts=timeouts, max_connections=1) as (_, client):
        begun = time.monotonic()
        first, second = await asyncio.gather(get(client), get(client), return_exceptions=True)
        assert (first, type(second)) == (b"hello", UpstreamTimeout)
        assert time.monotonic() - begun < 0.65


@on_both_loops
async def test_an_answer_that_nobody_takes_or_closes_is_let_go_by_the_total_timer() -> None:
    timeouts = Timeouts(connect_s=2.0, first_token_s=3.0, stall_s=3.0, total_s=SHORT_S)
    async with talking([Do.READ, answer(bytes(4 * HIGH_WATER_BYTES))], timeouts=timeouts) as (server, client):
        await client.request("POST", "/", stream=True)
        assert await eventually(server.peers[0].gone.is_set, within_s=SHORT_S + LATE_S)


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a self-signed certificate for 127.0.0.1 and its key."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "1", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", path, "-out", path.with_suffix(".crt")),
        ],
        check=True,
        capture_output=True,
    )
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


@contextlib.asynccontextmanager
async def talking_tls(certificate: Path, *scripts: Script) -> AsyncIterator[tuple[AwkwardServer, UpstreamClient]]:
    """As `talking`, over TLS."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    server = AwkwardServer(*scripts)
    async with server.running(tls=tls) as url:
        client = UpstreamClient(url, timeouts=PATIENT)
        async with checked(client, server):
            yield server, client


@on_both_loops
async def test_tls_with_a_trusted_certificate_is_spoken_and_kept_alive(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    body = bytes(4 * HIGH_WATER_BYTES)
    script: Script = [Do.READ, HELLO, Do.READ, answer(body), Do.READ, HELLO + POISON]
    async with talking_tls(certificate, script, [Do.READ, HELLO[:-1]]) as (server, client):
        assert await get(client) == b"hello"
        response = await client.request("POST", "/", body=body)
        await asyncio.sleep(0.02)
        assert await response.read() == body
        assert await get(client) == b"hello"
        assert len(server.peers) == 1
        response = await client.request("POST", "/", stream=True)
        response.close()
        assert await eventually(server.peers[1].gone.is_set)


@on_both_loops
async def test_a_tls_body_without_a_length_ends_with_the_connection(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    script: Script = [Do.READ, b"HTTP/1.1 200 OK\r\n\r\nhel", 0.02, b"lo", Do.CLOSE]
    async with talking_tls(certificate, script) as (_, client):
        assert await get(client) == b"hello"


@on_both_loops
async def test_a_certificate_that_is_not_trusted_is_refused(certificate: Path) -> None:
    async with talking_tls(certificate, [Do.READ, HELLO]) as (server, client):
        with pytest.raises(UpstreamUnavailable, match="SSLCertVerificationError"):
            await get(client)
        assert server.requests == []
