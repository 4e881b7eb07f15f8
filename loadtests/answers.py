"""What the fake upstream says, as bytes: the bodies and HTTP answers of vLLM 0.32, each built once.

Shapes follow vLLM's `entrypoints/openai/chat_completion/protocol.py`: null fields and their order included, because the
size of a chunk is part of what relaying it costs.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from typing import Any

import orjson

MODEL = "fake-model"
CHUNKS = 64
MIN_CHUNKS = 2  # the first carries the role, the last the finish reason
_VOCABULARY = 49_152
_TURN, _END_OF_TURN = 1, 2
SSE = b"text/event-stream; charset=utf-8"
_ID = "chatcmpl-5f0c6a8e4b1d4a0c9e7a3b2f1d0e9c8b"
_CREATED = 1_767_225_600
_REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 405: b"Method Not Allowed"}
_TOKEN = re.compile(r"\w+|[^\w\s]")
_WORDS = tuple(f" {word}" for word in re.findall(_TOKEN, "A proxy that adds little should cost little, so measure it."))


@dataclass(frozen=True, slots=True)
class Streamed:
    """A kind of streamed answer. `chunks`: SSE chunks, two at least; every one but the first carries one token.

    cut: it ends for want of length. usage, token_ids, logprobs: as a request asks by `stream_options.include_usage`,
    `return_token_ids` and `logprobs`.
    """

    chunks: int = CHUNKS
    cut: bool = False
    usage: bool = False
    token_ids: bool = False
    logprobs: bool = False

    @classmethod
    def by(cls, body: dict[str, Any], most_chunks: int) -> Streamed:
        """Return what a request for a streamed chat asks for. Raises `AttributeError` for a wrong `stream_options`."""
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or most_chunks
        return cls(
            chunks=max(MIN_CHUNKS, min(most_chunks, limit + 1)),
            cut=limit + 1 < most_chunks,
            usage=bool((body.get("stream_options") or {}).get("include_usage")),
            token_ids=body.get("return_token_ids") is True,
            logprobs=body.get("logprobs") is True,
        )


def sse_events(kind: Streamed = Streamed()) -> tuple[bytes, ...]:
    """Return the writes of one streamed answer, one for each chunk; the last also carries `[DONE]`."""
    about_prompt = {"prompt_token_ids": list(range(100, 200)), "prompt_text": None} if kind.token_ids else {}
    first = _event([_choice({"role": "assistant", "content": ""})], **about_prompt)
    middle = [_event([_choice({"content": _word(n)}, None, _about_token(n, kind))]) for n in range(kind.chunks - 2)]
    ending, reason = ({"content": _word(kind.chunks - 2)}, "length") if kind.cut else ({}, "stop")
    last = _event([_choice(ending, reason, _about_token(kind.chunks - 2, kind))])
    if kind.usage:
        last += _event([], usage=_usage(kind.chunks))
    return (first, *middle, last + b"data: [DONE]\n\n")


def _about_token(n: int, kind: Streamed) -> dict[str, object]:
    """Return the fields of a choice that tell of its token, where they were asked for."""
    fields: dict[str, object] = {}
    if kind.logprobs:
        entry = {"token": _word(n), "logprob": -0.5, "bytes": list(_word(n).encode()), "top_logprobs": []}
        fields["logprobs"] = {"content": [entry]}
    if kind.token_ids:
        fields["token_ids"] = [1000 + n]
    return fields


def completion_body(chunks: int = CHUNKS) -> bytes:
    """Return the JSON body of a non-streamed answer with the same words as the streamed one."""
    content = "".join(_word(n) for n in range(chunks - 2))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, "refusal": None, "tool_calls": [], "reasoning": None},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": None,
    }
    return orjson.dumps(
        {
            "id": _ID,
            "object": "chat.completion",
            "created": _CREATED,
            "model": MODEL,
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": None,
            "usage": {**_usage(chunks), "prompt_tokens_details": None},
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "kv_transfer_params": None,
        }
    )


def _word(n: int) -> str:
    return _WORDS[n % len(_WORDS)]


def _usage(chunks: int) -> dict[str, int]:
    tokens = chunks - 1  # the first has the role and no token
    return {"prompt_tokens": 100, "total_tokens": 100 + tokens, "completion_tokens": tokens}


def _choice(
    delta: dict[str, str], finish_reason: str | None = None, about_token: dict[str, object] | None = None
) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason, "token_ids": None}
    return {**choice, **(about_token or {})}


def _event(choices: list[dict[str, object]], **more: object) -> bytes:
    chunk = {"id": _ID, "object": "chat.completion.chunk", "created": _CREATED, "model": MODEL, "choices": choices}
    return b"data: %b\n\n" % orjson.dumps({**chunk, **more})


def answer(status: int, body: bytes, content_type: bytes = b"application/json") -> bytes:
    """Return a whole HTTP/1.1 answer with the headers that uvicorn would send."""
    head = b"HTTP/1.1 %d %b\r\nserver: uvicorn\r\ncontent-length: %d\r\ncontent-type: %b\r\n\r\n"
    return head % (status, _REASONS[status], len(body), content_type) + body


def error(status: int, kind: str, message: str, param: str | None = None) -> bytes:
    """Return a whole HTTP answer with an error body in the shape of vLLM."""
    return answer(status, orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}}))


def tokenized(body: bytes) -> bytes:
    """Return the answer of `/tokenize` to `prompt` or `messages`: one token per word or punctuation mark.

    Turns are between two tokens of their own, so that a chat which ends inside a turn is a prefix of the same chat with
    more turns after it.
    """
    try:
        request = orjson.loads(body)
        tokens = _tokens(request["prompt"]) if "prompt" in request else _rendered(request)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return error(400, "BadRequestError", "Give `prompt`, a text, or `messages`.")
    answered = {"count": len(tokens), "max_model_len": 8192, "tokens": tokens, "token_strs": None}
    return answer(200, orjson.dumps(answered))


def _tokens(text: str) -> list[int]:
    return [3 + zlib.crc32(word.encode()) % (_VOCABULARY - 3) for word in _TOKEN.findall(text)]


def _rendered(request: dict[str, Any]) -> list[int]:
    tokens: list[int] = []
    for message in request["messages"]:
        tokens += [_TURN, *_tokens(message["role"]), *_tokens(str(message["content"])), _END_OF_TURN]
    if request.get("continue_final_message"):
        tokens.pop()
    return [*tokens, _TURN, *_tokens("assistant")] if request.get("add_generation_prompt") else tokens


def scored(prompts: int, label_ids: tuple[int, ...]) -> bytes:
    """Return the answer of `/v1/completions` to that many prompts with `logprob_token_ids`: one token each.

    Later prompts have better odds of the first label, so that no two scores of a batch are the same.
    """
    choices = []
    for index in range(prompts):
        share = (index + 1) / (prompts + 1)
        odds = dict.fromkeys(label_ids, 1.0 - share) | {label_ids[0]: share}
        top = {f"token_id:{label_id}": math.log(each) for label_id, each in odds.items()}
        logprobs = {"text_offset": [0], "token_logprobs": [-0.1], "tokens": ["token_id:9"], "top_logprobs": [top]}
        choices.append({"index": index, "text": "No", "logprobs": logprobs, "finish_reason": "length"})
    usage = {
        "prompt_tokens": 200 * prompts,
        "total_tokens": 201 * prompts,
        "completion_tokens": prompts,
        "prompt_tokens_details": {"cached_tokens": 96},
    }
    head = {"id": "cmpl-5f0c6a8e", "object": "text_completion", "created": _CREATED, "model": MODEL}
    return answer(200, orjson.dumps({**head, "choices": choices, "usage": usage}))


def models() -> bytes:
    """Return the answer of `/v1/models`: one model, `MODEL`."""
    card = {"id": MODEL, "object": "model", "created": _CREATED, "owned_by": "vllm", "root": MODEL}
    return answer(200, orjson.dumps({"object": "list", "data": [{**card, "max_model_len": 8192}]}))


def metrics(running: int) -> bytes:
    """Return the answer of `/metrics`: those of vLLM's series that a proxy looks at."""
    labels = f'{{engine="0",model_name="{MODEL}"}}'
    text = (
        f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{labels} {float(running)}\n"
        f"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{labels} 0.0\n"
        '# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{block_size="16",'
        'enable_prefix_caching="True",engine="0"} 1.0\n'
    )
    return answer(200, text.encode(), b"text/plain; version=0.0.4; charset=utf-8")


class Prepared:
    """Answers, built at their first use. `events`: the writes of a streamed answer; `frames`: those as HTTP chunks."""

    def __init__(self) -> None:
        self.events: dict[Streamed, tuple[bytes, ...]] = {}
        self.frames: dict[Streamed, tuple[bytes, ...]] = {}
        self._scores: dict[tuple[int, tuple[int, ...]], bytes] = {}

    def stream(self, kind: Streamed, *, framed: bool) -> tuple[bytes, ...]:
        """Return the writes of a streamed answer, `framed` in the chunked transfer coding (RFC 9112, 7.1) or bare."""
        if kind not in self.events:
            self.events[kind] = sse_events(kind)
        if kind not in self.frames:
            self.frames[kind] = tuple(b"%x\r\n%b\r\n" % (len(event), event) for event in self.events[kind])
        return (self.frames if framed else self.events)[kind]

    def scores(self, prompts: int, label_ids: tuple[int, ...]) -> bytes:
        """Return the answer with the scores of that many prompts."""
        kind = prompts, label_ids
        if kind not in self._scores:
            self._scores[kind] = scored(prompts, label_ids)
        return self._scores[kind]
