"""The load generator sends what it is asked to send, and notices every wrong answer."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.answers import CHUNKS, completion_body, sse_events
from loadtests.fake_upstream import FakeUpstream, Timing
from loadtests.generator import Load, generate, percentiles, raw_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

QUICK = Timing(gap_s=0.0)


def load_on(url: str, **given: object) -> Load:
    return replace(Load(f"{url}/v1/chat/completions", connections=4, requests=40, seconds=10.0), **given)  # type: ignore[arg-type]


@asynccontextmanager
async def answering(answer: Callable[[int], bytes]) -> AsyncIterator[str]:
    """A server that says `answer(n)` to the nth request, and closes the connection when that is empty."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                said = answer(count)
                count += 1
                if not said:
                    break
                writer.write(said)
                if b"connection: close" in said:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def ok(body: bytes, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%b\r\n" % (len(body), extra) + body


async def test_every_request_is_sent_and_every_answer_counted() -> None:
    async with FakeUpstream(record=True) as upstream:
        load = load_on(upstream.url, body_bytes=len(completion_body()), headers=(("Authorization", "Bearer k"),))
        result = await generate(load)
        assert len(upstream.received) == 40 + 4 * load.warm_up
        assert upstream.received[0].header(b"authorization") == b"Bearer k"
        await upstream.until(lambda u: u.connections == 0)
    assert (result.requests, result.errors, result.reconnects) == (40, {}, 0)
    assert result.latency_ms["p50"] <= result.latency_ms["p99"] <= result.latency_ms["max"]
    assert result.requests_per_s == pytest.approx(40 / result.seconds)


async def test_a_streams_pieces_are_the_chunks_that_the_server_wrote() -> None:
    async with FakeUpstream(timing=QUICK) as upstream:
        result = await generate(load_on(upstream.url, stream=True, body_bytes=sum(map(len, sse_events()))))
    assert (result.requests, result.errors, result.pieces) == (40, {}, CHUNKS)


async def test_concurrency_is_the_number_of_connections() -> None:
    async with FakeUpstream(timing=Timing(first_byte_delay_s=0.05), record=True) as upstream:
        running = asyncio.create_task(generate(load_on(upstream.url, connections=7, warm_up=0, requests=14)))
        await upstream.until(lambda u: u.open_requests == 7)
        assert len(upstream.received) == 7
        result = await running
    assert result.latency_ms["p50"] >= 50.0
    assert result.first_byte_ms["p50"] >= 50.0


async def test_time_ends_a_run_that_has_requests_left() -> None:
    async with FakeUpstream(timing=Timing(first_byte_delay_s=0.02)) as upstream:
        result = await generate(load_on(upstream.url, requests=1_000_000, seconds=0.2, warm_up=0))
    assert 4 <= result.requests <= 50
    assert result.errors == {}


async def test_a_given_rate_is_kept_when_the_server_is_fast_enough() -> None:
    async with FakeUpstream() as upstream:
        result = await generate(load_on(upstream.url, connections=16, requests=200, rate=500.0))
    assert result.requests == 200
    # 200 arrivals of a Poisson process with a fixed seed take 0.38 s; a closed loop would take a hundredth of it.
    assert 200 < result.requests_per_s < 700


async def test_latency_at_a_given_rate_includes_the_wait_for_a_connection() -> None:
    async with FakeUpstream(timing=Timing(first_byte_delay_s=0.02)) as upstream:
        result = await generate(load_on(upstream.url, connections=1, requests=20, rate=10_000.0, warm_up=0))
    assert result.requests == 20
    assert result.latency_ms["max"] >= 19 * 20.0


@pytest.mark.parametrize(
    ("answer", "stream", "error"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", False, "status 503"),
        (ok(b"short"), False, "body of 5 bytes"),
        (ok(b"data: {}\n\n"), True, "stream without [DONE]"),
        (b"", False, "connection lost"),
        (b"what?\r\n\r\n", False, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\nconnection: close\r\n\r\ncut", False, "connection lost"),
    ],
)
async def test_a_wrong_answer_is_counted_by_what_is_wrong(answer: bytes, stream: bool, error: str) -> None:
    async with answering(lambda _: answer) as url:
        result = await generate(load_on(url, stream=stream, requests=6, warm_up=0, body_bytes=99))
    assert (result.requests, result.errors) == (6, {error: 6})


async def test_errors_in_the_warm_up_end_the_run_before_it_is_measured() -> None:
    async with answering(lambda _: ok(b"wrong length")) as url:
        result = await generate(load_on(url, body_bytes=1))
    assert result.errors == {"body of 12 bytes": 8}
    assert result.seconds == 0.0


async def test_a_connection_that_the_server_closes_after_an_answer_is_opened_again() -> None:
    async with answering(lambda _: ok(b"bye", b"connection: close\r\n")) as url:
        result = await generate(load_on(url, requests=12, warm_up=0))
    assert (result.requests, result.errors) == (12, {})
    assert result.reconnects >= 8


async def test_cpu_of_the_watched_process_is_given_per_request() -> None:
    async with FakeUpstream() as upstream:
        result = await generate(load_on(upstream.url, requests=2000, pid=os.getpid()))
    assert result.cpu_ms is not None
    # Generator and server share this process, so all of the time is theirs.
    assert 0 < result.cpu_ms <= 1.2 * result.seconds * 1e3 / result.requests


async def test_nothing_listening_is_an_os_error() -> None:
    async with FakeUpstream() as upstream:
        url = upstream.url
    with pytest.raises(OSError, match="Connect call failed"):
        await generate(load_on(url))


@pytest.mark.parametrize("url", ["http://192.0.2.1/", "http://example.org/", "https://127.0.0.1/", "127.0.0.1:8000"])
def test_only_plain_http_to_loopback_is_accepted(url: str) -> None:
    with pytest.raises(ValueError, match="loopback"):
        raw_request(Load(url))


@given(st.lists(st.floats(min_value=0, max_value=1e3), min_size=1, max_size=200))
def test_percentiles_are_values_that_occurred_in_rising_order(seconds: list[float]) -> None:
    found = percentiles(seconds)
    assert list(found) == ["p50", "p90", "p99", "max"]
    assert list(found.values()) == sorted(found.values())
    assert set(found.values()) <= {value * 1e3 for value in seconds}
    assert found["max"] == max(seconds) * 1e3


def test_percentiles_of_nothing_are_nothing() -> None:
    assert percentiles([]) == {}
