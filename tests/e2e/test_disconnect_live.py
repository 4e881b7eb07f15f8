"""A client that hangs up stops its work in vLLM within a second, in every phase: by vLLM's own count of requests.

Every request asks for thousands of tokens and ignores the end of the text, so that nothing but the hang-up ends it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import struct
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
from openai import AsyncOpenAI

from tests.conftest import Vllm
from tests.e2e.running import Preamble, User, until

pytestmark = pytest.mark.live

ENDLESS: Final[dict[str, Any]] = {
    "messages": [{"role": "user", "content": "Count."}],
    "max_tokens": 4000,
    "ignore_eos": True,
}
_LONG_PROMPT_WORDS: Final = 400
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close sends RST instead of FIN


@pytest.fixture(autouse=True)
def idle_engine(vllm: Vllm) -> None:
    """Wait until vLLM has nothing left to do from before."""
    until(lambda: vllm.running_requests() == 0, timeout_s=30, what="vLLM is idle")


@pytest.fixture
async def client(preamble: Preamble, user: User) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{preamble.base_url}/v1", api_key=user.key, max_retries=0, timeout=60) as openai:
        yield openai


def send(preamble: Preamble, user: User, body: dict[str, Any]) -> socket.socket:
    """Send a chat on a connection of its own and return the socket, without waiting for an answer."""
    connection = socket.create_connection(("127.0.0.1", int(preamble.base_url.rpartition(":")[2])), timeout=60)
    payload = json.dumps(body).encode()
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n%b" % (user.key.encode(), len(payload), payload)
    )
    return connection


def long_prompt() -> dict[str, Any]:
    """Return a request whose prompt takes vLLM a noticeable time: new, so that no cache shortens it."""
    content = f"{secrets.token_hex(8)} " + "word " * _LONG_PROMPT_WORDS
    return ENDLESS | {"messages": [{"role": "user", "content": content}]}


def time_to_first_token_s(user: User, vllm: Vllm) -> float:
    """Return how long vLLM takes for the first token after a long prompt when nobody hangs up."""
    started = time.monotonic()
    answer = user.http.post("/v1/chat/completions", json=long_prompt() | {"model": vllm.model, "max_tokens": 1})
    assert answer.status_code == 200, answer.text
    return time.monotonic() - started


def engine_lets_go(vllm: Vllm) -> None:
    """Fail unless vLLM has no request within a second from now, and generates nothing after that."""
    until(lambda: vllm.running_requests() == 0, timeout_s=1.0, what="vLLM has let go of the request")
    engine_rests(vllm)


def engine_rests(vllm: Vllm) -> None:
    generated = vllm.metric("vllm:generation_tokens_total")
    time.sleep(0.5)
    assert vllm.running_requests() == 0
    assert vllm.metric("vllm:generation_tokens_total") == generated


def disconnects(preamble: Preamble, phase: str) -> float:
    return preamble.metric(f'preamble_client_disconnects_total{{phase="{phase}"}}')


@pytest.mark.parametrize("reset", [False, True], ids=["closing", "resetting"])
def test_hanging_up_while_streaming_ends_the_request(preamble: Preamble, user: User, vllm: Vllm, reset: bool) -> None:
    before = disconnects(preamble, "streaming")
    with send(preamble, user, ENDLESS | {"model": vllm.model, "stream": True}) as connection:
        received = b""
        while received.count(b"data: ") < 5:
            received += connection.recv(65536)
        until(lambda: vllm.running_requests() == 1, timeout_s=10, what="vLLM generates")
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    engine_lets_go(vllm)
    assert disconnects(preamble, "streaming") == before + 1


@pytest.mark.parametrize("reset", [False, True], ids=["closing", "resetting"])
def test_hanging_up_without_streaming_ends_the_request(preamble: Preamble, user: User, vllm: Vllm, reset: bool) -> None:
    before = disconnects(preamble, "waiting")
    with send(preamble, user, ENDLESS | {"model": vllm.model}) as connection:
        until(lambda: vllm.running_requests() == 1, timeout_s=10, what="vLLM generates")
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    engine_lets_go(vllm)
    assert disconnects(preamble, "waiting") == before + 1


def test_hanging_up_before_the_first_token_ends_the_request(preamble: Preamble, user: User, vllm: Vllm) -> None:
    first_token_s = time_to_first_token_s(user, vllm)
    before = disconnects(preamble, "waiting")
    with send(preamble, user, long_prompt() | {"model": vllm.model, "stream": True}) as connection:
        time.sleep(first_token_s / 3)
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
    # vLLM counts a request when the first step on it ends, so 0 means nothing until its prompt would be done.
    time.sleep(max(1.0, first_token_s))
    engine_rests(vllm)
    assert disconnects(preamble, "waiting") == before + 1


def test_many_clients_that_hang_up_together_all_end_their_requests(preamble: Preamble, user: User, vllm: Vllm) -> None:
    body = ENDLESS | {"model": vllm.model, "stream": True}
    with ThreadPoolExecutor(8) as pool:
        connections = list(pool.map(lambda _: send(preamble, user, body), range(8)))
    for connection in connections:
        assert connection.recv(1)
    until(lambda: vllm.running_requests() == 8, timeout_s=10, what="vLLM generates for all of them")
    for connection in connections:
        connection.close()
    engine_lets_go(vllm)


async def test_the_openai_client_closing_a_stream_ends_the_request(client: AsyncOpenAI, vllm: Vllm) -> None:
    stream = await client.chat.completions.create(
        model=vllm.model, messages=ENDLESS["messages"], max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    assert await asyncio.to_thread(vllm.running_requests) == 1
    await stream.close()
    await asyncio.to_thread(engine_lets_go, vllm)


async def test_the_openai_client_cancelled_without_streaming_ends_the_request(client: AsyncOpenAI, vllm: Vllm) -> None:
    task = asyncio.create_task(
        client.chat.completions.create(
            model=vllm.model, messages=ENDLESS["messages"], max_tokens=4000, extra_body={"ignore_eos": True}
        )
    )
    await asyncio.to_thread(until, lambda: vllm.running_requests() == 1, timeout_s=10, what="vLLM generates")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(engine_lets_go, vllm)


async def test_the_openai_client_cancelled_before_the_first_token_ends_the_request(
    client: AsyncOpenAI, preamble: Preamble, user: User, vllm: Vllm
) -> None:
    first_token_s = await asyncio.to_thread(time_to_first_token_s, user, vllm)
    before = disconnects(preamble, "waiting")
    task = asyncio.create_task(
        client.chat.completions.create(
            model=vllm.model,
            messages=long_prompt()["messages"],
            max_tokens=4000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
    )
    await asyncio.sleep(first_token_s / 3)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(max(1.0, first_token_s))
    await asyncio.to_thread(engine_rests, vllm)
    assert disconnects(preamble, "waiting") == before + 1
