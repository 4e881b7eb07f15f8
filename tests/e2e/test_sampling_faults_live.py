"""Sampled chats through the real proxy as a process, in front of an upstream that can be killed and counts streams."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loadtests.answers import MODEL
from tests.e2e.running import FakeVllm, Preamble, User, until

pytestmark = pytest.mark.live

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
# The upstream gives a prompt that is scored alone 0.5, so that another candidate is drawn.
ADAPTIVE = {"mode": "adaptive", "n_max": 4, "threshold": 0.9, "checkpoints": []}


@pytest.fixture
def upstream() -> Iterator[FakeVllm]:
    fake = FakeVllm(gap_ms=10)
    fake.start()
    try:
        yield fake
    finally:
        fake.kill()


def counts(upstream: FakeVllm) -> dict[str, int]:
    with urllib.request.urlopen(f"{upstream.base_url}/counts", timeout=10) as answer:  # noqa: S310 - our own server
        found: dict[str, int] = json.load(answer)
        return found


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_is_killed_after_one_candidate_finished_still_answers(
    upstream: FakeVllm, tmp_path: Path, stream: bool
) -> None:
    with Preamble(upstream.base_url, tmp_path) as proxy, ThreadPoolExecutor(1) as pool:
        body = CHAT | {"stream": stream, "preamble": ADAPTIVE}
        asking = pool.submit(proxy.user().http.post, "/v1/chat/completions", json=body)
        until(lambda: counts(upstream)["chats"] == 2, timeout_s=20, what="a second candidate is drawn")
        upstream.kill()
        answer = asking.result()
    assert answer.status_code == 200, answer.text
    text = answer.text.removesuffix("data: [DONE]\n\n")
    last = json.loads(text.rstrip().rpartition("\n")[2].removeprefix("data: ")) if stream else answer.json()
    assert last["choices"][0]["finish_reason"] == "stop"
    told = last["preamble"]
    assert [choice["candidate"] for choice in told["choices"]] == [0]
    assert told["candidates"]["drawn"] >= 2
    assert told["stop_reason"] == "engine_failed"


@pytest.mark.parametrize("workers", [1, 3])
def test_the_ceilings_hold_over_all_workers_while_many_users_ask(
    upstream: FakeVllm, tmp_path: Path, workers: int
) -> None:
    settings: dict[str, object] = {"max_candidates": 10, "max_candidates_per_user": 6}
    body = CHAT | {"max_tokens": 20, "preamble": {"mode": "best_of_n", "n_max": 8, "checkpoints": []}}

    def ask(user: User) -> int:
        return user.http.post("/v1/chat/completions", json=body).status_code

    with Preamble(upstream.base_url, tmp_path, workers=workers, settings=settings) as proxy:
        users = [proxy.user() for _ in range(4)]
        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(ask, users[:1] * 16)) == {200}
            assert 1 < counts(upstream)["most_streams"] <= 6
            assert set(pool.map(ask, users * 8)) == {200}
        assert 6 < counts(upstream)["most_streams"] <= 10
