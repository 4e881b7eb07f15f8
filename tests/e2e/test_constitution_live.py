"""A constitution on its whole way: registered over REST, put into requests, read by a real vLLM."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import NotFoundError

from tests.conftest import Vllm
from tests.e2e.running import ADMIN_KEY, Preamble, User, sse_events

pytestmark = pytest.mark.live

CHAT = {"messages": [{"role": "user", "content": "Name three fruits."}], "temperature": 0, "max_tokens": 8}
TAG = "x-preamble-constitution"
LONG = [f"Principle number {number}: prefer short words and name the source of every claim." for number in range(8)]


def ask(user: User, vllm: Vllm, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    """Return the answer to a chat."""
    answer = user.http.post("/v1/chat/completions", json={"model": vllm.model} | CHAT | fields, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def rendered(user: User, vllm: Vllm, path: str, **fields: object) -> list[int]:
    """Return the tokens that vLLM makes of a request sent through the proxy."""
    answer = user.http.post(path, json={"model": vllm.model} | fields)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["token_ids"])


def detokenized(vllm: Vllm, tokens: list[int]) -> str:
    answer = httpx.post(f"{vllm.base_url}/detokenize", json={"model": vllm.model, "tokens": tokens})
    return str(answer.json()["prompt"])


def test_a_registered_constitution_is_what_vllm_reads(user: User, vllm: Vllm) -> None:
    tag = user.put_constitution("Speak of apples.", "Never mention rain.")
    answer = ask(user, vllm, return_prompt_text=True)
    assert answer.headers[TAG] == tag
    assert answer.json()["prompt_text"].startswith("<|im_start|>system\n<constitution>\n")
    assert "\n1. Speak of apples.\n2. Never mention rain.\n</constitution><|im_end|>" in answer.json()["prompt_text"]


def test_a_streamed_chat_uses_the_same_constitution(user: User, vllm: Vllm) -> None:
    tag = user.put_constitution("Speak of apples.", "Never mention rain.")
    ask(user, vllm)  # a cached prompt is rounded otherwise than one that is computed: now both are from the cache
    whole = ask(user, vllm)
    streamed = ask(user, vllm, stream=True, stream_options={"include_usage": True})
    assert streamed.headers[TAG] == tag
    *chunks, last, done = sse_events(streamed.content)
    assert done == "[DONE]"
    assert last["usage"]["prompt_tokens"] == whole.json()["usage"]["prompt_tokens"]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == whole.json()["choices"][0]["message"]["content"]


def test_the_openai_client_sees_the_version_in_a_header(user: User, vllm: Vllm) -> None:
    tag = user.put_constitution("Speak of apples.")
    raw = user.openai.chat.completions.with_raw_response.create(model=vllm.model, **CHAT)  # type: ignore[call-overload]
    assert raw.headers[TAG] == tag
    assert raw.parse().choices[0].message.content
    with user.openai.chat.completions.with_streaming_response.create(  # type: ignore[call-overload]
        model=vllm.model, stream=True, **CHAT
    ) as streamed:
        assert streamed.headers[TAG] == tag
        assert next(iter(streamed.parse())).object == "chat.completion.chunk"


def test_the_preview_is_what_is_sent(user: User, vllm: Vllm) -> None:
    user.put_constitution("Speak of apples.", "Never mention rain.")
    messages = [{"role": "system", "content": "You are terse."}, *CHAT["messages"]]  # type: ignore[misc]
    preview = user.http.post("/v1/constitution/preview", json={"messages": messages}).json()
    sent = rendered(user, vllm, "/v1/chat/completions/render", messages=messages)
    text = preview["system_message"]["content"]
    assert f"<|im_start|>system\n{text}<|im_end|>\n" in detokenized(vllm, sent)
    counted = httpx.post(
        f"{vllm.base_url}/tokenize", json={"model": vllm.model, "prompt": text, "add_special_tokens": False}
    )
    assert preview["token_count"] == counted.json()["count"]
    whole = httpx.post(f"{vllm.base_url}/tokenize", json={"model": vllm.model, "messages": preview["messages"]})
    assert whole.json()["tokens"] == sent


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_clients_own_first_instructions_come_after_the_constitution(user: User, vllm: Vllm, role: str) -> None:
    user.put_constitution("Speak of apples.")
    messages = [{"role": role, "content": "You are terse."}, *CHAT["messages"]]  # type: ignore[misc]
    prompt = detokenized(vllm, rendered(user, vllm, "/v1/chat/completions/render", messages=messages))
    assert prompt.startswith("<|im_start|>system\n<constitution>\n")  # vLLM tells templates that developer is system
    assert "</constitution>\n\nYou are terse.<|im_end|>" in prompt
    assert prompt.count("<constitution>") == 1


def test_a_request_can_opt_out(user: User, vllm: Vllm) -> None:
    before = ask(user, vllm).json()["usage"]["prompt_tokens"]
    user.put_constitution("Speak of apples.")
    assert ask(user, vllm).json()["usage"]["prompt_tokens"] != before
    answer = ask(user, vllm, headers={TAG: "none"})
    assert TAG not in answer.headers
    assert answer.json()["usage"]["prompt_tokens"] == before


def test_a_request_can_name_an_older_version(user: User, vllm: Vllm) -> None:
    first = user.put_constitution("Speak of apples.")
    second = user.put_constitution("Speak of pears.")
    assert ask(user, vllm).headers[TAG] == second
    pinned = ask(user, vllm, headers={TAG: first}, return_prompt_text=True)
    assert pinned.headers[TAG] == first
    assert "Speak of apples." in pinned.json()["prompt_text"]


def test_a_version_that_is_not_there_is_a_404_for_the_openai_client(user: User, vllm: Vllm) -> None:
    constitution_id = user.put_constitution("Speak of apples.").split("@")[0]
    with pytest.raises(NotFoundError) as raised:
        user.openai.chat.completions.create(  # type: ignore[call-overload]
            model=vllm.model, extra_headers={TAG: f"{constitution_id}@9"}, **CHAT
        )
    assert (raised.value.param, raised.value.code) == (TAG, "version_not_found")


def test_every_new_version_is_used_by_the_very_next_request(user: User, vllm: Vllm) -> None:
    for number in range(5):
        tag = user.put_constitution(f"Speak of the number {number}.")
        answer = ask(user, vllm, max_tokens=1, return_prompt_text=True)
        assert answer.headers[TAG] == tag
        assert f"Speak of the number {number}." in answer.json()["prompt_text"]
    assert user.http.delete("/v1/constitution").status_code == 204
    assert TAG not in ask(user, vllm, max_tokens=1).headers


def test_responses_take_it_as_instructions(user: User, vllm: Vllm) -> None:
    tag = user.put_constitution("Speak of apples.")
    tokens = rendered(user, vllm, "/v1/responses/render", input="Name three fruits.", instructions="Be terse.")
    assert "1. Speak of apples.\n</constitution>\n\nBe terse.<|im_end|>" in detokenized(vllm, tokens)
    raw = user.openai.responses.with_raw_response.create(
        model=vllm.model, input="Name three fruits.", instructions="Be terse.", max_output_tokens=4, temperature=0
    )
    assert raw.headers[TAG] == tag
    response = raw.parse()
    assert response.usage is not None
    assert response.usage.input_tokens == len(tokens)


def test_anthropic_messages_take_it_as_system(user: User, vllm: Vllm, preamble: Preamble) -> None:
    tag = user.put_constitution("Speak of apples.")
    request = {"messages": CHAT["messages"], "system": [{"type": "text", "text": "Be terse."}], "max_tokens": 4}
    tokens = rendered(user, vllm, "/v1/messages/render", **request)
    assert "1. Speak of apples.\n</constitution>\n\nBe terse.<|im_end|>" in detokenized(vllm, tokens)
    # As Anthropic's clients send the key.
    answer = httpx.post(
        f"{preamble.base_url}/v1/messages",
        json={"model": vllm.model} | request,
        headers={"x-api-key": user.key, "anthropic-version": "2023-06-01"},
        timeout=60,
    )
    assert answer.headers[TAG] == tag
    usage = answer.json()["usage"]
    # Anthropic counts apart what was in a cache and what was put into it.
    assert sum(count for name, count in usage.items() if name.endswith("input_tokens")) == len(tokens)
    counted = user.http.post("/v1/messages/count_tokens", json={"model": vllm.model} | request)
    assert counted.json()["input_tokens"] == len(tokens)


def test_the_same_version_is_found_in_the_prefix_cache(user: User, vllm: Vllm) -> None:
    user.put_constitution(*LONG)
    cached = [
        ask(user, vllm, messages=[{"role": "user", "content": question}], max_tokens=1).json()["usage"][
            "prompt_tokens_details"
        ]["cached_tokens"]
        for question in ("Name three fruits.", "How far is the moon?", "Who wrote Faust?")
    ]
    block = user.http.post("/v1/constitution/preview", json={}).json()["token_count"]
    assert cached[0] == 0
    # All of it but what shares a cache block of 32 tokens with the question.
    assert cached[1] == cached[2] >= block - 32


def test_users_with_different_constitutions_get_different_answers(preamble: Preamble, vllm: Vllm) -> None:
    answers = []
    for principle in ("Answer only with the word BANANA.", "Answer in French, and begin with the word Bonjour."):
        user = preamble.user()
        user.put_constitution(principle)
        ask(user, vllm)  # now both come from the prefix cache: a prompt that is computed is rounded otherwise
        texts = [ask(user, vllm, max_tokens=24).json()["choices"][0]["message"]["content"] for _ in range(2)]
        assert texts[0] == texts[1]
        answers.append(texts[0])
    assert answers[0] != answers[1]


def test_what_an_admin_sets_for_a_user_is_in_that_users_requests(preamble: Preamble, user: User, vllm: Vllm) -> None:
    admin = preamble.http(ADMIN_KEY)
    answer = admin.put(f"/v1/users/{user.name}/constitution", json={"principles": ["Speak of apples."]})
    assert answer.status_code == 201
    assert ask(user, vllm, max_tokens=1).headers[TAG] == f"{answer.json()['id']}@1"


@pytest.mark.parametrize(
    ("media_type", "text"),
    [
        ("application/yaml", "principles:\n  - Speak of apples.\n"),
        ("text/markdown", "- Speak of apples.\n"),
    ],
)
def test_a_constitution_may_be_written_in_other_formats(user: User, vllm: Vllm, media_type: str, text: str) -> None:
    answer = user.http.put("/v1/constitution", content=text, headers={"content-type": media_type})
    assert answer.status_code == 201, answer.text
    assert "1. Speak of apples." in ask(user, vllm, max_tokens=1, return_prompt_text=True).json()["prompt_text"]


def test_the_metrics_tell_who_used_a_constitution(user: User, vllm: Vllm, preamble: Preamble) -> None:
    def uses() -> dict[str, Any]:
        return {
            use: preamble.metric(f'preamble_constitution_requests_total{{use="{use}"}}')
            for use in ("applied", "opted_out", "none")
        }

    before = uses()
    ask(user, vllm, max_tokens=1)
    user.put_constitution("Speak of apples.")
    ask(user, vllm, max_tokens=1)
    ask(user, vllm, max_tokens=1, headers={TAG: "none"})
    assert uses() == {use: count + 1 for use, count in before.items()}
