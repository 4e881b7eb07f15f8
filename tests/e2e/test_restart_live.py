"""The proxy ends, by `kill -9` or in good order: what it has acknowledged stays, and what it has begun it finishes."""

from __future__ import annotations

import secrets
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Vllm
from tests.e2e.running import Preamble, sse_events, until

pytestmark = pytest.mark.live

TAG = "x-preamble-constitution"


@pytest.fixture
def proxy(vllm: Vllm, tmp_path: Path) -> Iterator[Preamble]:
    with Preamble(
        vllm.base_url, tmp_path, upstream_api_key=vllm.api_key, settings={"shutdown_timeout_s": 10}
    ) as running:
        yield running


def chat(vllm: Vllm, **fields: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"{secrets.token_hex(4)} Count."}]
    return {"model": vllm.model, "messages": messages, "max_tokens": 1, "ignore_eos": True} | fields


def refuses(proxy: Preamble) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", int(proxy.base_url.rpartition(":")[2])), timeout=1):
            return False
    except ConnectionRefusedError:
        return True


def test_what_was_acknowledged_survives_kill_9(proxy: Preamble, vllm: Vllm) -> None:
    alice = proxy.user("alice")
    headers = {"authorization": f"Bearer {alice.key}"}
    for number in range(1, 4):
        principles = {"principles": [f"Speak of {number}."]}
        written = httpx.put(f"{proxy.base_url}/v1/constitution", json=principles, headers=headers)
        proxy.kill()
        assert written.status_code in {200, 201}
        proxy.start()
        # The key was acknowledged too.
        stored = httpx.get(f"{proxy.base_url}/v1/constitution", headers=headers).json()
        assert (stored["version"], stored["principles"]) == (number, [{"text": f"Speak of {number}."}])
        answer = httpx.post(f"{proxy.base_url}/v1/chat/completions", json=chat(vllm), headers=headers, timeout=60)
        assert answer.headers[TAG] == f"{stored['id']}@{number}"


def test_a_default_policy_samples_for_its_user_alone_and_survives_kill_9(proxy: Preamble, vllm: Vllm) -> None:
    body = chat(vllm, temperature=0.9, max_tokens=6)
    alice, bob = (proxy.user(name) for name in ("alice", "bob"))
    policy = {"mode": "best_of_n", "n_max": 3, "checkpoints": []}

    def asked_by(key: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(f"{proxy.base_url}/v1/chat/completions", json=body, headers=headers, timeout=60)

    assert "preamble" not in asked_by(alice.key).json()
    written = alice.http.put("/v1/policy", json=policy)
    proxy.kill()
    assert written.status_code == 201
    proxy.start()
    told = asked_by(alice.key).json()["preamble"]
    assert (told["mode"], told["candidates"]["drawn"]) == ("best_of_n", 3)
    plain = asked_by(bob.key)
    assert plain.status_code == 200
    assert "preamble" not in plain.json()
    assert "x-preamble-sampling" not in plain.headers


def test_the_prefix_cache_outlives_the_proxy(proxy: Preamble, vllm: Vllm) -> None:
    alice = proxy.user("alice")
    body = chat(vllm, messages=[{"role": "user", "content": secrets.token_hex(60)}])
    headers = {"authorization": f"Bearer {alice.key}"}

    def cached_tokens() -> int:
        answer = httpx.post(f"{proxy.base_url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached_tokens() == 0
    proxy.stop()
    proxy.start()
    assert cached_tokens() >= 32


def test_a_proxy_told_to_stop_finishes_its_streams_and_takes_no_more(proxy: Preamble, vllm: Vllm) -> None:
    alice = proxy.user()
    body = chat(vllm, max_tokens=60, stream=True)
    with alice.http.stream("POST", "/v1/chat/completions", json=body) as stream:
        parts = stream.iter_raw()
        received = next(parts)
        proxy.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(proxy), timeout_s=2, what="no connection is accepted any more")
        rest = b"".join(parts)
    assert len(rest) > len(received)
    events = sse_events(received + rest)
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert proxy.wait() == 0


def test_a_proxy_told_to_stop_does_not_wait_for_ever(vllm: Vllm, tmp_path: Path) -> None:
    with Preamble(vllm.base_url, tmp_path, upstream_api_key=vllm.api_key, settings={"shutdown_timeout_s": 1}) as proxy:
        alice = proxy.user()
        body = chat(vllm, max_tokens=4000, stream=True)
        with alice.http.stream("POST", "/v1/chat/completions", json=body) as stream:
            parts = stream.iter_raw()
            assert b"data:" in next(parts)
            began = time.monotonic()
            assert proxy.stop() == 0
            assert time.monotonic() - began < 5
            with pytest.raises(httpx.RemoteProtocolError):
                b"".join(parts)
    until(lambda: vllm.running_requests() == 0, timeout_s=1, what="vLLM has let go of the stream")
