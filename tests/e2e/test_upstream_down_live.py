"""The upstream goes away and comes back, under a proxy that runs on; the openai client is told in its own words.

The upstream is one that can be killed: the session's vLLM serves other tests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from openai import APIError, InternalServerError, OpenAI

from loadtests.answers import MODEL
from tests.e2e.running import FakeVllm, Preamble, User, free_port, until

pytestmark = pytest.mark.live

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeVllm]:
    fake = FakeVllm(gap_ms=50)
    try:
        yield fake
    finally:
        fake.kill()


@pytest.fixture(scope="module")
def proxy(upstream: FakeVllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preamble]:
    """Return a proxy that was started before its upstream."""
    with Preamble(upstream.base_url, tmp_path_factory.mktemp("down"), port=free_port()) as running:
        yield running


@pytest.fixture
def started(upstream: FakeVllm, proxy: Preamble) -> FakeVllm:
    """Return the upstream, running and known to the proxy."""
    upstream.kill()
    upstream.start()
    until(lambda: ready(proxy), timeout_s=10, what="the proxy is ready")
    return upstream


@pytest.fixture
def alice(proxy: Preamble) -> User:
    return proxy.user()


def ready(proxy: Preamble) -> bool:
    return proxy.http().get("/ready").status_code == 200


def test_a_proxy_that_starts_before_its_upstream_waits_for_it(upstream: FakeVllm, proxy: Preamble, alice: User) -> None:
    upstream.kill()
    assert proxy.http().get("/health").status_code == 200
    answer = proxy.http().get("/ready")
    assert answer.status_code == 503
    assert answer.json()["upstream"] == "unreachable"
    with pytest.raises(InternalServerError):
        alice.openai.chat.completions.create(**CHAT)
    alice.put_constitution("What is registered now must hold later.")
    upstream.start()
    until(lambda: ready(proxy), timeout_s=10, what="the proxy has found its upstream")
    raw = alice.openai.chat.completions.with_raw_response.create(**CHAT)
    assert raw.headers["x-preamble-constitution"].endswith("@1")


def test_an_upstream_that_is_down_is_a_503_and_the_next_request_after_its_return_works(
    started: FakeVllm, proxy: Preamble, alice: User
) -> None:
    assert alice.openai.chat.completions.create(**CHAT).choices[0].message.content
    started.kill()
    for stream in (False, True):
        began = time.monotonic()
        with pytest.raises(InternalServerError) as raised:
            alice.openai.chat.completions.create(**CHAT, stream=stream)
        assert time.monotonic() - began < 2
        assert raised.value.status_code == 503
        assert raised.value.code == "upstream_unavailable"
        assert raised.value.type == "server_error"
        assert int(raised.value.response.headers["retry-after"]) >= 1
    assert not ready(proxy)
    started.start()
    assert alice.openai.chat.completions.create(**CHAT).choices[0].message.content
    assert ready(proxy)


def test_the_openai_clients_own_retries_bridge_a_restart(started: FakeVllm, proxy: Preamble, alice: User) -> None:
    started.kill()
    restart = threading.Timer(1.0, started.start)
    restart.start()
    with OpenAI(base_url=f"{proxy.base_url}/v1", api_key=alice.key) as patient:
        assert patient.chat.completions.create(**CHAT).choices[0].message.content
    restart.join()


def test_a_stream_that_the_upstream_breaks_off_does_not_look_complete(started: FakeVllm, alice: User) -> None:
    stream = alice.openai.chat.completions.create(**CHAT, stream=True)
    chunks = iter(stream)
    assert next(chunks).choices[0].delta.role == "assistant"
    started.kill()
    with pytest.raises(APIError) as raised:
        list(chunks)
    assert raised.value.code == "upstream_broken"


def test_failures_are_counted_by_their_code(started: FakeVllm, proxy: Preamble, alice: User) -> None:
    sample = 'preamble_upstream_errors_total{code="upstream_unavailable"}'
    before = proxy.metric(sample)
    started.kill()
    with pytest.raises(InternalServerError):
        alice.openai.chat.completions.create(**CHAT)
    assert proxy.metric(sample) == before + 1
