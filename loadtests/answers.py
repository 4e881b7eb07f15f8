"""What the fake upstream says, as bytes: the bodies and HTTP answers of vLLM 0.32, each built once.

Shapes follow vLLM's `entrypoints/openai/chat_completion/protocol.py`: null fields and their order included, because the
size of a chunk is part of what relaying it costs.
"""

from __future__ import annotations

import re

import orjson

MODEL = "fake-model"
CHUNKS = 64
MIN_CHUNKS = 2  # the first carries the role, the last the finish reason
SSE = b"text/event-stream; charset=utf-8"
_ID = "chatcmpl-5f0c6a8e4b1d4a0c9e7a3b2f1d0e9c8b"
_CREATED = 1_767_225_600
_REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 405: b"Method Not Allowed"}
_TOKEN = re.compile(r"\w+|[^\w\s]")
_WORDS = tuple(f" {word}" for word in re.findall(_TOKEN, "A proxy that adds little should cost little, so measure it."))


def sse_events(chunks: int = CHUNKS, *, usage: bool = False) -> tuple[bytes, ...]:
    """Return the writes of one streamed answer: `chunks` of them (two at least), the last also carrying `[DONE]`.

    With `usage` a chunk with the usage and no choices comes before `[DONE]`, as `stream_options.include_usage` asks.
    """
    first = _event([_choice({"role": "assistant", "content": ""})])
    middle = [_event([_choice({"content": _word(n)})]) for n in range(chunks - 2)]
    last = _event([_choice({}, "stop")]) + (_event([], usage=_usage(chunks)) if usage else b"")
    return (first, *middle, last + b"data: [DONE]\n\n")


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
    return {"prompt_tokens": 100, "total_tokens": 100 + chunks, "completion_tokens": chunks}


def _choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason, "token_ids": None}


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
    """Return the answer of `/tokenize` to `prompt` or `messages`: one token per word or punctuation mark."""
    try:
        request = orjson.loads(body)
        texts = [request["prompt"]] if "prompt" in request else [str(m["content"]) for m in request["messages"]]
        count = sum(len(_TOKEN.findall(text)) for text in texts)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return error(400, "BadRequestError", "Give `prompt`, a text, or `messages`.")
    tokens = list(range(count))
    return answer(200, orjson.dumps({"count": count, "max_model_len": 8192, "tokens": tokens, "token_strs": None}))


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
