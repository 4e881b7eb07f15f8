"""An upstream whose answers a test writes down; it implements what probing asks of `UpstreamClient`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from server.errors import UpstreamUnavailable

Answers = Callable[[Any], tuple[int, Any]]

MODEL = "tiny"
SCORED_LOGPROB = -1.5


@dataclass
class TextAnswer:
    status: int
    body: bytes

    async def read(self) -> bytes:
        return self.body


@dataclass
class ScriptedUpstream:
    """Answers from `routes` by path; a path that is not there is a 404, as in vLLM."""

    routes: dict[str, Answers]
    asked: list[tuple[str, Any]] = field(default_factory=list)

    async def request(self, method: str, path: str) -> TextAnswer:
        status, value = await self.request_json(method, path)
        return TextAnswer(status, value.encode() if isinstance(value, str) else b"")

    async def request_json(self, method: str, path: str, payload: object = None) -> tuple[int, Any]:
        await asyncio.sleep(0)
        self.asked.append((path, payload))
        answer = self.routes.get(path)
        return (404, {"detail": "Not Found"}) if answer is None else answer(payload)


def fixed(status: int, value: object) -> Answers:
    return lambda _payload: (status, value)


def refused_connection(_payload: object) -> tuple[int, Any]:
    raise UpstreamUnavailable("The upstream cannot be reached (ConnectionRefusedError).")


def tokenize(payload: Any) -> tuple[int, Any]:
    """One token per character, chat messages written one after the other."""
    text = payload.get("prompt")
    if text is None:
        text = "".join(f"<{message['role']}>{message['content']}" for message in payload["messages"])
    if text in {"Yes", "No"}:
        return 200, {"tokens": [len(text)]}
    return 200, {"count": len(text), "tokens": [ord(char) for char in text]}


def tokenize_without_system(payload: Any) -> tuple[int, Any]:
    """A template that raises for a system message, as Gemma's does."""
    if any(message["role"] == "system" for message in payload.get("messages", ())):
        return 400, {"error": {"message": "System role not supported"}}
    return tokenize(payload)


def tokenize_dropping_system(payload: Any) -> tuple[int, Any]:
    """A template that leaves system messages out without a word."""
    if "messages" in payload:
        payload = payload | {"messages": [m for m in payload["messages"] if m["role"] != "system"]}
    return tokenize(payload)


def detokenize(payload: Any) -> tuple[int, Any]:
    return 200, {"prompt": "".join(chr(token % 0x110000) for token in payload["tokens"])}


def complete(payload: Any) -> tuple[int, Any]:
    top = {
        f"token_id:{token}": SCORED_LOGPROB - position for position, token in enumerate(payload["logprob_token_ids"])
    }
    return 200, {
        "choices": [{"index": 0, "logprobs": {"top_logprobs": [top]}}],
        "usage": {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}},
    }


def complete_as_older_vllm(payload: Any) -> tuple[int, Any]:
    """`logprob_token_ids` is ignored, and `usage` has no details."""
    return 200, {
        "choices": [{"index": 0, "logprobs": {"top_logprobs": [{"token_id:99": -0.1}]}}],
        "usage": {"prompt_tokens": 1, "prompt_tokens_details": None},
    }


def cache_config(*, enabled: bool = True, block_size: int | str = 32) -> Answers:
    line = f'vllm:cache_config_info{{block_size="{block_size}",enable_prefix_caching="{enabled}",engine="0"}} 1.0'
    return fixed(200, f"# TYPE vllm:cache_config_info gauge\n{line}\nvllm:num_requests_running 0.0\n")


def working_routes() -> dict[str, Answers]:
    """Return the answers of a vLLM 0.32 where everything is on."""
    return {
        "/version": fixed(200, {"version": "0.32.0"}),
        "/v1/models": fixed(200, {"data": [{"id": MODEL, "max_model_len": 8192}]}),
        "/tokenize": tokenize,
        "/detokenize": detokenize,
        "/metrics": cache_config(),
        "/v1/completions": complete,
        "/generative_scoring": fixed(200, {"data": [{"score": 0.5}]}),
    }
