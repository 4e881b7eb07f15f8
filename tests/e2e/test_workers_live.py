"""Two worker processes answer as one: what one is told the other knows, and the death of one is survived."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Vllm
from tests.e2e.running import Preamble, User, until

pytestmark = pytest.mark.live

TAG = "x-preamble-constitution"
EMBEDDINGS = 'preamble_requests_total{route="embeddings",status="404"}'  # this vLLM has no such route
MODELS = 'preamble_requests_total{route="models",status="200"}'
_COUNTED_WITHIN_S = 2.0  # a worker does not write every count at once


@pytest.fixture(scope="module")
def proxy(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preamble]:
    data_dir = tmp_path_factory.mktemp("workers")
    with Preamble(vllm.base_url, data_dir, upstream_api_key=vllm.api_key, workers=2) as running:
        yield running
    assert running.process.returncode == 0


@pytest.fixture
def alice(proxy: Preamble) -> User:
    return proxy.user()


def worker_of(answer: httpx.Response) -> str:
    """Return what tells the worker that answered: the part of the request id that is drawn once per process."""
    return answer.headers["x-request-id"][:16]


def connections(proxy: Preamble, user: User) -> dict[str, httpx.Client]:
    """Return a kept-alive connection to each of the two workers."""
    found: dict[str, httpx.Client] = {}
    for _ in range(200):
        client = proxy.http(user.key)
        found.setdefault(worker_of(client.get("/v1/models")), client)
        if len(found) == 2:
            return found
    raise AssertionError("200 connections all went to one worker")


def chat(client: httpx.Client, vllm: Vllm) -> httpx.Response:
    body = {"model": vllm.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def test_a_new_version_is_used_by_the_very_next_request_of_either_worker(
    proxy: Preamble, alice: User, vllm: Vllm
) -> None:
    workers = connections(proxy, alice)
    number = 0
    for _ in range(3):
        for writer in workers.values():
            number += 1
            answer = writer.put("/v1/constitution", json={"principles": [f"Speak of the number {number}."]})
            tag = f"{answer.json()['id']}@{number}"
            for name, reader in workers.items():
                answered = chat(reader, vllm)
                assert answered.headers[TAG] == tag
                assert worker_of(answered) == name


def test_a_changed_policy_is_followed_by_the_very_next_request_of_either_worker(
    proxy: Preamble, alice: User, vllm: Vllm
) -> None:
    workers = connections(proxy, alice)
    counts = iter((2, 3, 4, 5))
    for writer in [*workers.values(), *workers.values()]:
        count = next(counts)
        policy = {"mode": "best_of_n", "n_max": count, "checkpoints": []}
        assert writer.put("/v1/policy", json=policy).status_code in {200, 201}
        for reader in workers.values():
            assert chat(reader, vllm).json()["preamble"]["candidates"]["drawn"] == count
    next(iter(workers.values())).delete("/v1/policy")
    assert not [reader for reader in workers.values() if "preamble" in chat(reader, vllm).json()]


def test_a_deleted_constitution_is_gone_from_both_workers(proxy: Preamble, alice: User, vllm: Vllm) -> None:
    first, second = connections(proxy, alice).values()
    alice.put_constitution("Speak of apples.")
    assert TAG in chat(first, vllm).headers
    assert TAG in chat(second, vllm).headers
    assert first.delete("/v1/constitution").status_code == 204
    assert TAG not in chat(second, vllm).headers
    assert TAG not in chat(first, vllm).headers


def test_a_revoked_key_is_refused_by_both_workers_at_once(proxy: Preamble, alice: User) -> None:
    workers = connections(proxy, alice)
    key_id = alice.key.split("_")[1]
    assert proxy.http().delete(f"/v1/keys/{key_id}").status_code == 200
    for client in workers.values():
        assert client.get("/v1/models").status_code == 401


def test_the_metrics_are_sums_over_both_workers(proxy: Preamble, alice: User) -> None:
    workers = connections(proxy, alice)
    assert proxy.metric(EMBEDDINGS) == 0
    for client in workers.values():
        for _ in range(3):
            assert client.post("/v1/embeddings", json={"input": "hello"}).status_code == 404
    for client in workers.values():
        until(
            lambda client=client: f"{EMBEDDINGS} 6.0" in client.get("/metrics").text.splitlines(),  # type: ignore[misc]
            timeout_s=_COUNTED_WITHIN_S,
            what="both workers tell the sum",
        )


def test_the_death_of_a_worker_is_survived(proxy: Preamble, alice: User, vllm: Vllm) -> None:
    tag = alice.put_constitution("Speak of apples.")
    workers = connections(proxy, alice)
    counted = proxy.metric(MODELS)
    endless: dict[str, Any] = {
        "model": vllm.model,
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": 4000,
        "ignore_eos": True,
        "stream": True,
    }
    victim, *others = proxy.worker_pids()
    assert len(others) == 1
    with alice.http.stream("POST", "/v1/chat/completions", json=endless) as stream:
        parts = stream.iter_raw()  # kept: httpx ends the exchange when it goes
        assert b"data:" in next(parts)
        streaming_worker = worker_of(stream)
        until(lambda: streams_in_flight(proxy) == 1, timeout_s=_COUNTED_WITHIN_S, what="the stream is counted")
        # Which of the two process ids it is can only be found by trying; either way one worker is left.
        os.kill(victim, signal.SIGKILL)
        survivors = [client for name, client in workers.items() if answers(client, name)]
        assert len(survivors) == 1
        assert chat(survivors[0], vllm).headers[TAG] == tag
        until(
            lambda: len(proxy.worker_pids()) == 2 and victim not in proxy.worker_pids(),
            timeout_s=30,
            what="the dead worker is replaced",
        )
        stream_lives = streaming_worker == worker_of(survivors[0].get("/v1/models"))
        until(
            lambda: streams_in_flight(proxy) == int(stream_lives),
            timeout_s=_COUNTED_WITHIN_S,
            what="what the dead worker had in flight is not counted any more",
        )
    replaced = connections(proxy, alice)
    assert len(set(replaced) - set(workers)) == 1
    for client in replaced.values():
        assert chat(client, vllm).headers[TAG] == tag
    assert proxy.metric(MODELS) >= counted > 0  # what the dead worker has counted stays
    until(lambda: vllm.running_requests() == 0, timeout_s=2, what="the streams of both workers have ended")


def streams_in_flight(proxy: Preamble) -> int:
    return int(proxy.metric('preamble_requests_in_flight{route="chat_completions"}'))


def answers(client: httpx.Client, name: str) -> bool:
    """Return whether the worker ``name`` still answers; a client that found its connection closed asks another one."""
    try:
        answer = client.get("/v1/models")
    except httpx.TransportError:
        return False
    return answer.status_code == 200 and worker_of(answer) == name
