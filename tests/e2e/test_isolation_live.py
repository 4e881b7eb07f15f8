"""Tenants share an engine and nothing else: neither cached prefixes nor constitutions."""

from __future__ import annotations

import secrets
from typing import Any

import httpx
import pytest

from tests.conftest import Vllm
from tests.e2e.running import Preamble, User

pytestmark = pytest.mark.live

Request = tuple[str, dict[str, Any]]


def requests_with(text: str) -> dict[str, Request]:
    """Return a request with the prompt `text` for each route that generates."""
    messages = [{"role": "user", "content": text}]
    return {
        "chat": ("/v1/chat/completions", {"messages": messages, "max_tokens": 1}),
        "completions": ("/v1/completions", {"prompt": text, "max_tokens": 1}),
        "responses": ("/v1/responses", {"input": text, "max_output_tokens": 1}),
        "messages": ("/v1/messages", {"messages": messages, "max_tokens": 1}),
    }


def cached_tokens(client: httpx.Client, model: str, request: Request, **fields: object) -> int:
    """Send a request and return how many tokens of its prompt vLLM found in its cache."""
    path, body = request
    answer = client.post(path, json={"model": model} | body | fields)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    if "cache_read_input_tokens" in usage:
        return int(usage["cache_read_input_tokens"])
    details = usage["input_tokens_details"] if "input_tokens_details" in usage else usage["prompt_tokens_details"]
    return int(details["cached_tokens"])


@pytest.fixture
def text() -> str:
    """Return a prompt of more than two cache blocks that nobody has sent before."""
    return f"{secrets.token_hex(8)} " + "The quick brown fox jumps over the lazy dog. " * 10


@pytest.mark.parametrize("route", ["chat", "completions", "responses", "messages"])
def test_two_tenants_do_not_see_each_others_cached_prefix(
    preamble: Preamble, vllm: Vllm, text: str, route: str
) -> None:
    request = requests_with(text)[route]
    ada, bob = preamble.user(), preamble.user()
    assert cached_tokens(ada.http, vllm.model, request) == 0
    assert cached_tokens(bob.http, vllm.model, request) == 0
    assert cached_tokens(ada.http, vllm.model, request) >= 64
    assert cached_tokens(bob.http, vllm.model, request) >= 64


def test_the_same_constitution_of_two_tenants_is_not_shared_either(preamble: Preamble, vllm: Vllm, text: str) -> None:
    ada, bob = preamble.user(), preamble.user()
    request = requests_with("Hello")["chat"]
    for user in (ada, bob):
        user.put_constitution(text)
        assert cached_tokens(user.http, vllm.model, request) == 0
    assert cached_tokens(bob.http, vllm.model, request) >= 64


def test_two_users_of_one_tenant_share_cached_prefixes(preamble: Preamble, vllm: Vllm, text: str) -> None:
    request = requests_with(text)["chat"]
    tenant = preamble.user(may_name_sub_users=True)
    tenant.http.headers["x-preamble-user"] = "ada"
    assert cached_tokens(tenant.http, vllm.model, request) == 0
    tenant.http.headers["x-preamble-user"] = "bob"
    assert cached_tokens(tenant.http, vllm.model, request) >= 64


def test_a_salt_that_a_client_sends_is_dropped(preamble: Preamble, vllm: Vllm, text: str) -> None:
    request = requests_with(text)["chat"]
    ada, bob = preamble.user(), preamble.user()
    cached_tokens(ada.http, vllm.model, request)
    shown = ada.http.post("/v1/chat/completions/render", json={"model": vllm.model} | request[1]).json()
    salt = shown["cache_salt"]
    assert len(salt) == 64
    direct = {"authorization": f"Bearer {vllm.api_key}"}
    with httpx.Client(base_url=vllm.base_url, headers=direct, timeout=60) as operator:
        assert cached_tokens(operator, vllm.model, request, cache_salt=salt) >= 64  # it is the right one
        assert cached_tokens(operator, vllm.model, request) == 0
    assert cached_tokens(bob.http, vllm.model, request, cache_salt=salt) == 0


def test_another_users_constitution_is_a_404(preamble: Preamble, vllm: Vllm) -> None:
    ada, bob = preamble.user(), preamble.user()
    tag = ada.put_constitution("Speak of apples.")
    path = f"/v1/users/{ada.name}/constitution"
    for answer in (
        bob.http.get("/v1/constitution"),
        bob.http.get(path),
        bob.http.put(path, json={"principles": ["Speak of pears."]}),
        bob.http.delete(path),
        bob.http.get(f"{path}/versions/1"),
        bob.http.post(f"{path}/versions/1/activate"),
        bob.http.post(
            "/v1/chat/completions",
            json={"model": vllm.model} | requests_with("Hello")["chat"][1],
            headers={"x-preamble-constitution": tag},
        ),
    ):
        assert answer.status_code == 404, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert "apples" not in answer.text
    assert ada.http.get("/v1/constitution").json()["version"] == 1


def test_a_key_may_not_act_as_somebody_else(preamble: Preamble, user: User, vllm: Vllm) -> None:
    other = preamble.user()
    body = {"model": vllm.model} | requests_with("Hello")["chat"][1]
    answer = user.http.post("/v1/chat/completions", json=body, headers={"x-preamble-user": other.name})
    assert answer.status_code == 403
    assert answer.json()["error"]["param"] == "x-preamble-user"
    nobody = httpx.post(f"{preamble.base_url}/v1/chat/completions", json=body, headers={"x-preamble-user": other.name})
    assert nobody.status_code == 401
    # Where keys are required, OpenAI's `user` field is nothing but a field.
    other.put_constitution("Speak of apples.")
    answer = user.http.post("/v1/chat/completions", json=body | {"user": other.name})
    assert answer.status_code == 200
    assert "x-preamble-constitution" not in answer.headers
