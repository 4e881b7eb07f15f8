"""Promises of adaptive best-of-N that depend on vLLM, shown on it: pruning, streams, time, scorers, formats."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Vllm
from tests.e2e.running import Preamble, User, sse_events, until

pytestmark = pytest.mark.live

QUESTION = [{"role": "user", "content": "Write two sentences about the sea."}]
BEST_OF_2 = {"mode": "best_of_n", "n_max": 2, "checkpoints": []}


def chat(user: User, vllm: Vllm, policy: object, **fields: Any) -> dict[str, Any]:
    body = {"model": vllm.model, "messages": QUESTION, "max_tokens": 16, "temperature": 0.9, "seed": 3} | fields
    answer = user.http.post("/v1/chat/completions", json=body | {"preamble": policy})
    assert answer.status_code == 200, answer.text
    whole: dict[str, Any] = answer.json()
    return whole


def running(vllm: Vllm) -> float:
    return vllm.metric("vllm:num_requests_running")


def test_pruned_candidates_leave_vllm_while_the_survivor_goes_on(vllm: Vllm, preamble: Preamble, user: User) -> None:
    until(lambda: vllm.running_requests() == 0, timeout_s=30, what="vLLM is idle")
    pruned = 'preamble_candidate_tokens_total{fate="pruned"}'
    before = preamble.metric(pruned)
    policy = BEST_OF_2 | {"n_max": 4, "checkpoints": [{"tokens": 8, "keep": 0.25}]}
    answers: list[dict[str, Any]] = []

    def ask() -> None:
        answers.append(chat(user, vllm, policy, max_tokens=100, ignore_eos=True))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        until(lambda: running(vllm) == 4, timeout_s=20, what="four candidates run")
        until(lambda: running(vllm) == 1, timeout_s=20, what="one candidate runs")
        assert not answers
    finally:
        asking.join()
    (answer,) = answers
    assert answer["preamble"]["candidates"] == {"drawn": 4, "pruned": 3}
    trace = user.http.get(f"/v1/traces/{answer['id']}").json()
    ended = {each["fate"]: each["ended_s"] for each in trace["candidates"]}
    assert ended["pruned"] < ended["returned"] * 0.8
    # One call judged all four, by exactly as many tokens of each, and nobody waited for it.
    assert [(call["checkpoint"], call["candidates"]) for call in trace["scoring"]] == [(8, [0, 1, 2, 3])]
    assert {each["scores"][0]["tokens"] for each in trace["candidates"]} == {8}
    # vLLM does not count what is aborted so; the proxy does.
    assert preamble.metric(pruned) - before == sum(
        each["tokens"] for each in trace["candidates"] if each["fate"] == "pruned"
    )


def test_commit_at_gives_the_first_token_long_before_the_run_is_over(vllm: Vllm, user: User) -> None:
    policy = BEST_OF_2 | {"checkpoints": [{"tokens": 4, "keep": 1.0}], "commit_at": 8}
    body = {"model": vllm.model, "messages": QUESTION, "max_tokens": 64, "ignore_eos": True, "seed": 3}
    began = time.monotonic()
    with user.http.stream("POST", "/v1/chat/completions", json=body | {"stream": True, "preamble": policy}) as answer:
        lines = ((time.monotonic() - began, line.encode()) for line in answer.iter_lines())
        arrived: list[tuple[float, Any]] = [(at, event) for at, line in lines for event in sse_events(line)]
    content = [at for at, event in arrived if event != "[DONE]" and event["choices"][0]["delta"].get("content")]
    told = arrived[-2][1]["preamble"]
    assert told["stop_reason"] == "commit_at"
    assert told["choices"][0]["tokens"] == 64
    assert content[0] < 0.6 * content[-1]
    # Those held back came together, the rest one by one.
    assert content[6] - content[0] < 0.2 * (content[-1] - content[7])
    assert told["first_token_ms"] / 1000 == pytest.approx(content[0], abs=0.25)


@pytest.fixture(scope="module")
def with_read_out(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """Return a user of a proxy that takes two ordinary tokens for a read-out: no checkpoint is trained for one."""
    directory = tmp_path_factory.mktemp("read-out")
    labels = {"format": 1, "read_out": {"win_or_tie_ids": [28], "loss_ids": [30]}}
    (directory / "preamble_self_evaluation.json").write_text(json.dumps(labels))
    settings: dict[str, object] = {"self_evaluation": directory}
    with Preamble(vllm.base_url, directory, upstream_api_key=vllm.api_key, settings=settings) as proxy:
        yield proxy.user()


@pytest.mark.parametrize("scorer", ["read_out", "mean_log_probability", "group_confidence"])
def test_scorers_that_ask_nothing_prune_and_pick_without_a_prompt_token(
    vllm: Vllm, with_read_out: User, scorer: str
) -> None:
    policy = BEST_OF_2 | {"scorer": scorer, "checkpoints": [{"tokens": 6, "keep": 0.5}]}
    told = chat(with_read_out, vllm, policy)["preamble"]
    assert (told["scorer"], told["degradations"]) == (scorer, [])
    assert told["candidates"] == {"drawn": 2, "pruned": 1}
    assert told["tokens"]["scored"] == 0
    assert 0 < told["choices"][0]["score"] < 1


@pytest.mark.parametrize("deadline_ms", [1, 400])
def test_a_deadline_gives_what_there_is_and_never_an_error(vllm: Vllm, user: User, deadline_ms: int) -> None:
    policy = BEST_OF_2 | {"deadline_ms": deadline_ms}
    answer = chat(user, vllm, policy, max_tokens=2000, ignore_eos=True)
    assert answer["preamble"]["stop_reason"] == "deadline"
    assert answer["preamble"]["took_ms"] < deadline_ms + 300
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["model"] == vllm.model
    assert answer["usage"]["completion_tokens"] == answer["preamble"]["choices"][0]["tokens"]


def test_structured_outputs_stop_strings_and_logprobs_hold_for_the_candidate_that_is_chosen(
    vllm: Vllm, user: User
) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"sea": {"enum": ["calm", "rough"]}}, "required": ["sea"]}
    schema["additionalProperties"] = False
    response_format = {"type": "json_schema", "json_schema": {"name": "sea", "schema": schema}}
    answer = chat(user, vllm, BEST_OF_2, response_format=response_format, max_tokens=60)
    assert json.loads(answer["choices"][0]["message"]["content"])["sea"] in {"calm", "rough"}
    answer = chat(user, vllm, BEST_OF_2, stop=["e"], logprobs=True, top_logprobs=2, max_tokens=40)
    choice = answer["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "e")
    assert "e" not in choice["message"]["content"]
    assert {len(entry["top_logprobs"]) for entry in choice["logprobs"]["content"]} == {2}
    assert answer["preamble"]["candidates"]["drawn"] == 2
