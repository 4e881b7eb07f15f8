"""The four timers of the settings really fire, each with its own code, as an openai client sees it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from openai import APIError, APIStatusError, AsyncOpenAI

from loadtests.answers import MODEL, Streamed
from loadtests.fake_upstream import FakeUpstream, Timing
from tests.server.running import RunningProxy, running_proxy

CHAT: Final[dict[str, Any]] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
CONNECT_S: Final = 0.3
FIRST_TOKEN_S: Final = 0.4
STALL_S: Final = 0.5
TOTAL_S: Final = 1.2
SETTINGS: Final[dict[str, Any]] = {
    "connect_timeout_s": CONNECT_S,
    "first_token_timeout_s": FIRST_TOKEN_S,
    "stall_timeout_s": STALL_S,
    "total_timeout_s": TOTAL_S,
}
_LATE_S: Final = 1.0  # how much later than set a timer may fire on a busy machine


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


@pytest.fixture
async def proxy(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[RunningProxy]:
    async with running_proxy(upstream.url, tmp_path, **SETTINGS) as running:
        yield running


@pytest.fixture
async def openai(proxy: RunningProxy) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(proxy) as client:
        yield client


@asynccontextmanager
async def client_of(proxy: RunningProxy) -> AsyncIterator[AsyncOpenAI]:
    key = (await proxy.make_key("alice"))["authorization"].removeprefix("Bearer ")
    async with AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key=key, max_retries=0) as client:
        yield client


@contextlib.contextmanager
def takes(seconds: float) -> Iterator[None]:
    """Fail unless the block takes `seconds`, and not much more."""
    began = time.monotonic()
    yield
    assert seconds <= time.monotonic() - began < seconds + _LATE_S


async def counted(proxy: RunningProxy, code: str) -> float:
    return await proxy.metric(f'preamble_upstream_errors_total{{code="{code}"}}')


async def test_connect_fires_when_the_upstream_does_not_accept(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        # A queue of length 0 that is full: the kernel drops further connection requests, as a firewall would.
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        upstream = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        async with running_proxy(upstream, tmp_path, **SETTINGS) as proxy, client_of(proxy) as openai:
            before = await counted(proxy, "upstream_connect_timeout")
            with takes(CONNECT_S), pytest.raises(APIStatusError) as raised:
                await openai.chat.completions.create(**CHAT)
            assert (raised.value.status_code, raised.value.code) == (503, "upstream_connect_timeout")
            assert int(raised.value.response.headers["retry-after"]) >= 1
            assert await counted(proxy, "upstream_connect_timeout") == before + 1


async def test_connect_fires_when_all_connections_stay_busy(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.timing = Timing(first_byte_delay_s=1.0)
    one = SETTINGS | {"upstream_connections": 1}
    async with running_proxy(upstream.url, tmp_path, **one) as proxy, client_of(proxy) as openai:
        first = asyncio.create_task(openai.chat.completions.create(**CHAT))
        await upstream.until(lambda server: server.open_requests == 1)
        with takes(CONNECT_S), pytest.raises(APIStatusError) as raised:
            await openai.chat.completions.create(**CHAT)
        assert (raised.value.status_code, raised.value.code) == (503, "upstream_connect_timeout")
        assert (await first).choices[0].message.content  # the one that had the connection is not disturbed


async def test_first_token_fires_before_a_stream_begins(
    proxy: RunningProxy, openai: AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.timing = Timing(first_byte_delay_s=60)
    with takes(FIRST_TOKEN_S), pytest.raises(APIStatusError) as raised:
        await openai.chat.completions.create(**CHAT, stream=True)
    assert (raised.value.status_code, raised.value.code) == (504, "upstream_first_token_timeout")
    assert raised.value.type == "timeout_error"
    await upstream.until(lambda server: server.open_requests == 0, timeout_s=1.0)
    assert await counted(proxy, "upstream_first_token_timeout") == 1


async def test_first_token_does_not_concern_answers_that_are_not_streamed(
    openai: AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.timing = Timing(first_byte_delay_s=FIRST_TOKEN_S + 0.3)
    assert (await openai.chat.completions.create(**CHAT)).choices[0].message.content


async def test_stall_fires_in_the_middle_of_a_stream(
    proxy: RunningProxy, openai: AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.timing = Timing(gap_s=60)
    stream = await openai.chat.completions.create(**CHAT, stream=True)
    assert (await anext(stream)).choices[0].delta.role == "assistant"
    with takes(STALL_S - 0.1), pytest.raises(APIError) as raised:  # it runs from the chunk's arrival at the proxy
        await anext(stream)
    assert (raised.value.code, raised.value.type) == ("upstream_stall_timeout", "timeout_error")
    await upstream.until(lambda server: server.open_requests == 0, timeout_s=1.0)
    assert await counted(proxy, "upstream_stall_timeout") == 1


async def test_stall_does_not_fire_while_chunks_keep_coming(openai: AsyncOpenAI, upstream: FakeUpstream) -> None:
    upstream.timing = Timing(gap_s=0.3)
    frames = upstream.prepared.stream(Streamed(), framed=True)
    upstream.prepared.frames[Streamed()] = frames[:3] + frames[-1:]
    stream = await openai.chat.completions.create(**CHAT, stream=True)
    assert [chunk.choices[0].finish_reason async for chunk in stream] == [None, None, None, "stop"]


async def test_total_fires_in_a_stream_that_never_ends(
    proxy: RunningProxy, openai: AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.timing = Timing(gap_s=0.1)
    chunks = []

    async def listen() -> None:
        async for chunk in await openai.chat.completions.create(**CHAT, stream=True):
            chunks.append(chunk)  # noqa: PERF401 - those before the error are what is looked at

    with takes(TOTAL_S), pytest.raises(APIError) as raised:
        await listen()
    assert raised.value.code == "upstream_total_timeout"
    assert len(chunks) > 5
    await upstream.until(lambda server: server.open_requests == 0, timeout_s=1.0)
    assert await counted(proxy, "upstream_total_timeout") == 1


async def test_total_fires_before_an_answer_that_is_not_streamed(
    proxy: RunningProxy, openai: AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.timing = Timing(first_byte_delay_s=60)
    with takes(TOTAL_S), pytest.raises(APIStatusError) as raised:
        await openai.chat.completions.create(**CHAT)
    assert (raised.value.status_code, raised.value.code) == (504, "upstream_total_timeout")
    await upstream.until(lambda server: server.open_requests == 0, timeout_s=1.0)
    assert await counted(proxy, "upstream_total_timeout") == 1


async def test_stall_fires_in_a_whole_answer_that_arrives_in_part(openai: AsyncOpenAI, upstream: FakeUpstream) -> None:
    upstream.completion = upstream.completion[:-20]
    with takes(STALL_S), pytest.raises(APIStatusError) as raised:
        await openai.chat.completions.create(**CHAT)
    assert (raised.value.status_code, raised.value.code) == (504, "upstream_stall_timeout")
