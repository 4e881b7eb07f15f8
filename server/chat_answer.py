"""From the chunks of chosen candidates to what vLLM would have answered, streamed or in one piece.

The candidates' own requests ask for more than the client did (token ids, log-probabilities, usage); what the client did
not ask for is taken out again here. Field by field after vLLM 0.32's chat completions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptive.candidate import CandidateRecord
from adaptive.engine import TokenIds

Choice = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the client asked to see."""

    logprobs: bool
    top_logprobs: int
    token_ids: bool
    usage_chunk: bool
    usage_in_every_chunk: bool

    @classmethod
    def by(cls, body: Mapping[str, Any]) -> Wanted:
        """Read it off the client's body."""
        top = body.get("top_logprobs")
        options = body.get("stream_options")
        options = options if isinstance(options, dict) else {}
        usage = options.get("include_usage") is True
        return cls(
            logprobs=body.get("logprobs") is True,
            top_logprobs=top if isinstance(top, int) else 0,
            token_ids=body.get("return_token_ids") is True,
            usage_chunk=usage,
            usage_in_every_chunk=usage and options.get("continuous_usage_stats") is True,
        )


@dataclass(frozen=True, slots=True)
class Head:
    """What every chunk of an answer begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None


def head_of(response_id: str, learned: Mapping[str, Any]) -> Head:
    """Return the head of an answer, from the fields of the upstream's first chunk."""
    created, model = learned.get("created"), learned.get("model")
    fingerprint = learned.get("system_fingerprint")
    return Head(
        response_id,
        created if isinstance(created, int) else 0,
        model if isinstance(model, str) else "",
        fingerprint if isinstance(fingerprint, str) else None,
    )


def chunk(head: Head, choices: Sequence[Choice], **more: Any) -> dict[str, Any]:
    """Return a chunk of a streamed answer."""
    return {
        "id": head.id,
        "object": "chat.completion.chunk",
        "created": head.created,
        "model": head.model,
        "choices": list(choices),
        **more,
    }


def streamed_choice(choice: Choice, index: int, wanted: Wanted) -> dict[str, Any] | None:
    """Return a candidate's chunk as the client's choice `index`; None where vLLM would not have sent one.

    vLLM sends chunks with an empty delta only because token ids were asked for.
    """
    delta = choice.get("delta") or {}
    finish_reason = choice.get("finish_reason")
    if not delta and finish_reason is None and not wanted.token_ids:
        return None
    shown = {
        "index": index,
        "delta": delta,
        "logprobs": _logprobs(choice, wanted),
        "finish_reason": finish_reason,
    }
    if finish_reason is not None:
        shown["stop_reason"] = choice.get("stop_reason")
    if "token_ids" in choice:
        shown["token_ids"] = choice["token_ids"] if wanted.token_ids else None
    return shown


def cut_choice(index: int, *, first: bool) -> dict[str, Any]:
    """Return the last chunk of a choice that a limit of ours has cut: to the client it ran out of length.

    first: it is its first chunk too, which says whose turn it is.
    """
    return {
        "index": index,
        "delta": {"role": "assistant", "content": ""} if first else {},
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
        "token_ids": None,
    }


def whole_choice(record: CandidateRecord, index: int, wanted: Wanted) -> dict[str, Any]:
    """Return a candidate as the client's choice `index` in an answer that is not streamed."""
    chunks = [step.payload for step in record.steps if isinstance(step.payload, Mapping)]
    entries = [entry for each in chunks for entry in (_logprobs(each, wanted) or {}).get("content") or ()]
    return {
        "index": index,
        "message": message(each.get("delta") or {} for each in chunks),
        "logprobs": {"content": entries} if wanted.logprobs else None,
        "finish_reason": record.finish_reason or "length",
        "stop_reason": next((each.get("stop_reason") for each in reversed(chunks) if each.get("stop_reason")), None),
        "token_ids": list(record.token_ids) if wanted.token_ids else None,
        "routed_experts": None,
    }


def message(deltas: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the message that these deltas add up to."""
    role = "assistant"
    content: list[str] = []
    reasoning: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        role = delta.get("role") or role
        content.append(delta.get("content") or "")
        reasoning.append(delta.get("reasoning") or "")
        for piece in delta.get("tool_calls") or ():
            call = calls.setdefault(piece.get("index", 0), {"id": None, "type": "function", "function": {}})
            _add_to_call(call, piece)
    text, thought = "".join(content), "".join(reasoning)
    whole: dict[str, Any] = {
        "role": role,
        "content": None if not text and (calls or thought) else text,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": thought or None,
    }
    if calls:
        whole["tool_calls"] = [calls[index] for index in sorted(calls)]
    return whole


def completion(
    head: Head,
    choices: Sequence[Choice],
    usage: Mapping[str, Any],
    prompt: TokenIds | None,
    preamble: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the body of an answer that is not streamed. prompt: its token ids, if the client asked for them."""
    return {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": list(choices),
        "service_tier": None,
        "system_fingerprint": head.system_fingerprint,
        "usage": usage,
        "prompt_logprobs": None,
        "prompt_token_ids": None if prompt is None else list(prompt),
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
        "preamble": preamble,
    }


def usage_of(prompt_tokens: int, completion_tokens: int, **details: Any) -> dict[str, Any]:
    """Return the usage that the client is told: the prompt once, and the choices that it was given."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        **details,
    }


def _logprobs(choice: Choice, wanted: Wanted) -> dict[str, Any] | None:
    found = choice.get("logprobs")
    if not wanted.logprobs or not isinstance(found, Mapping):
        return None
    content = [
        {**entry, "top_logprobs": list(entry.get("top_logprobs") or ())[: wanted.top_logprobs]}
        for entry in found.get("content") or ()
    ]
    return {**found, "content": content}


def _add_to_call(call: dict[str, Any], piece: Mapping[str, Any]) -> None:
    call["id"] = piece.get("id") or call["id"]
    call["type"] = piece.get("type") or call["type"]
    given = piece.get("function") or {}
    function = call["function"]
    if given.get("name"):
        function["name"] = given["name"]
    function["arguments"] = function.get("arguments", "") + (given.get("arguments") or "")
