"""Adaptive best-of-N on a real vLLM, through the official client."""

from __future__ import annotations

import json
import threading

import httpx
import pytest
from openai import OpenAI

from tests.conftest import Vllm
from tests.e2e.running import Preamble, User, sse_events, until

pytestmark = pytest.mark.live

QUESTION = [{"role": "user", "content": "Write two sentences about the sea."}]
BEST_OF_4 = {"mode": "best_of_n", "n_max": 4, "checkpoints": [{"tokens": 12, "keep": 0.5}]}


def ask(client: OpenAI, model: str, policy: object = None, **fields: object) -> dict[str, object]:
    """Return a chat's answer as the client understood it, as plain values."""
    body = {} if policy is None else {"preamble": policy}
    options = {"max_tokens": 32, "temperature": 0.9, "seed": 11} | fields
    answer = client.chat.completions.create(model=model, messages=QUESTION, extra_body=body, **options)  # type: ignore[call-overload]
    plain: dict[str, object] = answer.model_dump()
    return plain


def test_the_best_of_four_comes_back_with_its_report_and_trace(vllm: Vllm, user: User) -> None:
    answer = ask(user.openai, vllm.model, BEST_OF_4)
    told = answer["preamble"]
    assert isinstance(told, dict)
    assert told["candidates"] == {"drawn": 4, "pruned": 2}
    assert (told["scorer"], told["degradations"]) == ("self_evaluation", [])
    assert 0 < told["choices"][0]["score"] < 1
    assert told["choices"][0]["label_mass"] > 0
    trace = user.http.get(f"/v1/traces/{answer['id']}").json()
    chosen = trace["candidates"][told["choices"][0]["candidate"]]
    assert chosen["text"] == answer["choices"][0]["message"]["content"]  # type: ignore[index]
    assert answer["usage"]["completion_tokens"] == chosen["tokens"]  # type: ignore[index]
    best = max(each["scores"][-1]["value"] for each in trace["candidates"] if each["complete"])
    assert chosen["scores"][-1]["value"] == best


def test_a_run_can_be_replayed_with_the_seed_that_it_tells(vllm: Vllm, user: User) -> None:
    def drawn(**fields: object) -> tuple[int, list[tuple[int, float]]]:
        answer = ask(user.openai, vllm.model, {"mode": "adaptive", "n_max": 3, "threshold": 1}, **fields)
        trace = user.http.get(f"/v1/traces/{answer['id']}").json()
        return trace["seed"], [(each["seed"], each["temperature"]) for each in trace["candidates"]]

    # Not compared is what was said: batched differently, a kernel may round differently.
    seed, candidates = drawn(seed=None)
    assert len({each[0] for each in candidates}) == 3
    assert candidates[0] == (seed, 0.9)
    assert drawn(seed=seed) == (seed, candidates)


def test_an_adaptive_stream_gives_what_the_answer_in_one_piece_gives(vllm: Vllm, user: User) -> None:
    fields = {"mode": "adaptive", "n_max": 3, "threshold": 1.0, "checkpoints": []}
    whole = ask(user.openai, f"{vllm.model}:adaptive", fields)
    stream = user.openai.chat.completions.create(  # type: ignore[call-overload]
        model=f"{vllm.model}:adaptive",
        messages=QUESTION,
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=32,
        temperature=0.9,
        seed=11,
        extra_body={"preamble": fields},
    )
    chunks = [chunk.model_dump() for chunk in stream]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    told = next(chunk["preamble"] for chunk in chunks if "preamble" in chunk)
    assert told["candidates"]["drawn"] == 3
    # Batched differently, a kernel may round differently: compared is what one run says of itself.
    trace = user.http.get(f"/v1/traces/{chunks[0]['id']}").json()
    assert text == trace["candidates"][told["choices"][0]["candidate"]]["text"]
    assert chunks[-1]["usage"]["completion_tokens"] == told["choices"][0]["tokens"]
    assert set(whole["preamble"]) == set(told)  # type: ignore[call-overload]


def test_n_choices_come_best_first(vllm: Vllm, user: User) -> None:
    answer = ask(user.openai, vllm.model, {"mode": "best_of_n", "n_max": 4, "checkpoints": []}, n=2)
    scores = [choice["score"] for choice in answer["preamble"]["choices"]]  # type: ignore[index]
    assert len(answer["choices"]) == 2  # type: ignore[arg-type]
    assert scores == sorted(scores, reverse=True)


def test_a_greedy_request_is_passed_through_and_says_so(vllm: Vllm, user: User) -> None:
    body = {"model": f"{vllm.model}:best-of-4", "messages": QUESTION, "max_tokens": 4, "temperature": 0}
    answer = user.http.post("/v1/chat/completions", json=body)
    assert answer.headers["x-preamble-sampling"] == "pass_through=greedy"
    assert answer.json()["model"] == vllm.model


def test_a_client_that_leaves_aborts_every_candidate_within_a_second(
    vllm: Vllm, preamble: Preamble, user: User
) -> None:
    body = {
        "model": vllm.model,
        "messages": QUESTION,
        "max_tokens": 2000,
        "min_tokens": 2000,
        "stream": True,
        "preamble": BEST_OF_4 | {"checkpoints": []},
    }
    aborted = 'preamble_candidate_tokens_total{fate="aborted"}'
    before = preamble.metric(aborted)
    client = httpx.Client(base_url=preamble.base_url, headers={"authorization": f"Bearer {user.key}"}, timeout=60)
    left = threading.Event()

    def read_until_told() -> None:
        with client.stream("POST", "/v1/chat/completions", json=body):
            left.wait(30)

    thread = threading.Thread(target=read_until_told)
    thread.start()
    try:
        until(lambda: vllm.metric("vllm:num_requests_running") >= 4, timeout_s=20, what="four candidates run")
    finally:
        left.set()
        thread.join()
        client.close()
    until(lambda: vllm.running_requests() == 0, timeout_s=2, what="none runs any more")
    until(lambda: preamble.metric(aborted) > before, timeout_s=2, what="the aborted tokens are counted")


def test_a_tool_call_comes_from_the_chosen_candidate(vllm: Vllm, user: User) -> None:
    function = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome"]}}}}
    function["parameters"] |= {"required": ["city"], "additionalProperties": False}  # type: ignore[operator]
    body = {
        "model": vllm.model,
        "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "max_tokens": 60,
        "preamble": BEST_OF_4 | {"n_max": 2},
    }
    answer = user.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"


def test_what_the_upstream_refuses_is_relayed_in_its_own_words(vllm: Vllm, user: User) -> None:
    body = {"model": vllm.model, "messages": QUESTION, "max_tokens": 10**7}
    plain = user.http.post("/v1/chat/completions", json=body)
    sampled = user.http.post("/v1/chat/completions", json=body | {"preamble": BEST_OF_4})
    assert plain.status_code == sampled.status_code == 400
    assert sampled.json() == plain.json()


def test_the_aliases_are_listed_after_what_vllm_lists(vllm: Vllm, user: User) -> None:
    rows = user.http.get("/v1/models").json()["data"]
    assert [row["id"] for row in rows] == [vllm.model, f"{vllm.model}:adaptive", f"{vllm.model}:best-of-8"]
    own = json.loads(vllm.get("/v1/models"))["data"][0]
    drawn_anew = {"created", "permission"}
    assert {name for name in own if own[name] != rows[0][name]} <= drawn_anew
    assert {name for name in own if own[name] != rows[1][name]} <= drawn_anew | {"id", "parent"}


def test_an_event_stream_ends_as_vllms_does(vllm: Vllm, user: User) -> None:
    body = {"model": vllm.model, "messages": QUESTION, "max_tokens": 8, "stream": True, "preamble": BEST_OF_4}
    events = sse_events(user.http.post("/v1/chat/completions", json=body).content)
    assert events[-1] == "[DONE]"
    assert [event for event in events[:-1] if "preamble" in event] == [events[-2]]
