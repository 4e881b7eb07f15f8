"""An upstream over real sockets that behaves like vLLM's chat streams with token ids, and says what a test wrote down.

One character is one token. Candidate i (by the suffix `.c<i>` of its request id) says the i-th of `replies`. Scores are
those of `judge`, which is given the text that was scored: the rendered chat, the partial reply, the question.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.server.serving_asgi import serving

MODEL = "tiny"
YES, NO = 2_000_001, 2_000_002
END_OF_TURN = 3
Send = Callable[[MutableMapping[str, Any]], Any]
Receive = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a candidate says. deltas: sent in place of its text, one with each token, for tool calls and reasoning.

    starts_s: before the answer begins. status: answered instead of a reply. breaks_after: tokens after which the
    connection is cut.
    """

    text: str
    finish_reason: str = "stop"
    gap_s: float = 0.001
    starts_s: float = 0.0
    status: int = 200
    breaks_after: int | None = None
    deltas: tuple[dict[str, Any], ...] = ()


@dataclass
class SamplingUpstream:
    """The upstream. chats, scorings: bodies as received. aborted: request ids whose stream the proxy closed early.

    labels: the pairs that it may be asked for. score_s: how long a score takes. scoring: scores that are being worked
    on. can_score_items: it has `/generative_scoring`. most_running_of: the most streams at a time that share a cache
    salt, a tenant's. busy: so many chats with `n` are refused first. Without a stream all n answers come at once,
    gap_s of the first after.
    """

    replies: list[Reply]
    judge: Callable[[str], float] = lambda _: 0.5
    label_mass: float = 1.0
    score_status: int = 200
    score_s: float = 0.0
    can_score_ids: bool = True
    can_score_items: bool = True
    waiting: int = 0
    busy: int = 0
    root: str | None = None
    labels: tuple[tuple[int, int], ...] = ((NO, YES),)
    chats: list[dict[str, Any]] = field(default_factory=list)
    chat_ids: list[str] = field(default_factory=list)
    scorings: list[dict[str, Any]] = field(default_factory=list)
    tokenized: int = 0
    running: set[str] = field(default_factory=set)
    most_running: int = 0
    most_running_of: Counter[str] = field(default_factory=Counter)
    scoring: int = 0
    aborted: list[str] = field(default_factory=list)
    url: str = ""
    _salts: Counter[str] = field(default_factory=Counter)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[SamplingUpstream]:
        """Serve for as long as the context lasts."""
        async with serving(self) as self.url:
            yield self

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        path = scope["path"]
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        payload = orjson.loads(body) if body else {}
        request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode()
        if path == "/v1/chat/completions":
            await self._chat(request_id, payload, receive, send)
            return
        if path == "/v1/completions" and self.score_s and isinstance(payload["prompt"], list):
            self.scoring += 1
            leaving = asyncio.ensure_future(_disconnected(receive))
            gone, _ = await asyncio.wait({leaving}, timeout=self.score_s)
            leaving.cancel()
            self.scoring -= 1
            if gone:
                self.aborted.append(request_id)
                return
        status, value = self._answer(path, payload)
        await _respond(send, status, value)

    def _answer(self, path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        match path:
            case "/version":
                return 200, {"version": "0.32.0"}
            case "/v1/models":
                return 200, {"object": "list", "data": [{"id": MODEL, "max_model_len": 4096, "root": self.root}]}
            case "/metrics":
                return 200, f'vllm:num_requests_waiting{{engine="0"}} {self.waiting}.0\n'
            case "/tokenize":
                self.tokenized += 1
                token_ids = _tokens(payload)
                return 200, {"count": len(token_ids), "tokens": token_ids}
            case "/detokenize":
                return 200, {"prompt": _text(payload["tokens"])}
            case "/v1/completions":
                return self._score(payload)
            case "/generative_scoring" if self.can_score_items:
                self.scorings.append(payload)
                scores = [self.judge(_text(payload["query"] + item)) for item in payload["items"] if item != "."]
                return 200, {"data": [{"index": index, "score": score} for index, score in enumerate(scores)]}
        return 404, {"detail": "Not Found"}

    def _score(self, payload: dict[str, Any]) -> tuple[int, Any]:
        if payload.get("prompt_logprobs") is not None:
            given = [None, *({str(token): {"logprob": -0.001 * token}} for token in payload["prompt"][1:])]
            return 200, {"choices": [{"index": 0, "prompt_logprobs": given}]}
        if payload["prompt"] == ".":  # a probe
            if not self.can_score_ids:
                return 200, {"choices": [{"index": 0, "logprobs": {"top_logprobs": [{}]}}]}
            top = {f"token_id:{label}": -1.0 for label in payload["logprob_token_ids"]}
            return 200, {"choices": [{"index": 0, "logprobs": {"top_logprobs": [top]}}]}
        self.scorings.append(payload)
        if self.score_status != 200:
            return self.score_status, {"error": {"message": "scripted"}}
        labels = tuple(payload["logprob_token_ids"])
        assert labels in self.labels
        choices = []
        for index, sequence in enumerate(payload["prompt"]):
            share = self.judge(_text(sequence))
            logprobs = [
                math.log(each * self.label_mass) if each * self.label_mass else -1e4 for each in (share, 1 - share)
            ]
            top = {f"token_id:{label}": logprob for label, logprob in zip(labels, logprobs, strict=True)}
            choices.append({"index": index, "logprobs": {"top_logprobs": [top]}})
        choices.reverse()  # vLLM does not promise an order
        longest = max(len(sequence) for sequence in payload["prompt"])
        return 200, {"choices": choices, "usage": {"prompt_tokens_details": {"cached_tokens": longest // 2}}}

    async def _chat(self, request_id: str, payload: dict[str, Any], receive: Receive, send: Send) -> None:
        self.chats.append(payload)
        self.chat_ids.append(request_id)
        suffix = request_id.rpartition(".c")[2]
        reply = self.replies[(int(suffix) if suffix.isdecimal() else 0) % len(self.replies)]
        if self.busy and payload.get("n"):
            self.busy -= 1
            await _respond(send, 503, {"error": {"message": "scripted: too busy", "code": 503}})
            return
        if reply.status != 200:
            await _respond(send, reply.status, {"error": {"message": "scripted refusal", "code": reply.status}})
            return
        if payload.get("return_token_ids") and not payload.get("stream"):
            await asyncio.sleep(reply.gap_s)
            await _respond(send, 200, self._whole(payload))
            return
        if not payload.get("stream"):
            message = {"role": "assistant", "content": reply.text}
            await _respond(send, 200, {"id": "chatcmpl-plain", "choices": [{"index": 0, "message": message}]})
            return
        salt = payload.get("cache_salt", "")
        self.running.add(request_id)
        self._salts[salt] += 1
        self.most_running = max(self.most_running, len(self.running))
        self.most_running_of[salt] = max(self.most_running_of[salt], self._salts[salt])
        talking = asyncio.ensure_future(self._talk(payload, reply, send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({talking, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not talking.done():
                self.aborted.append(request_id)
            else:
                talking.result()
        finally:
            self.running.discard(request_id)
            self._salts[salt] -= 1
            for task in (talking, leaving):
                task.cancel()

    def _whole(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Return n answers in one piece, as vLLM 0.32 does with `return_token_ids`."""
        choices = []
        for index in range(payload["n"]):
            reply = self.replies[index % len(self.replies)]
            limit = payload.get("max_completion_tokens", payload.get("max_tokens", 1000))
            tokens = [*map(ord, reply.text), END_OF_TURN][:limit]
            text = reply.text[:limit]
            content = [_entry("" if token == END_OF_TURN else chr(token)) for token in tokens]
            choice: dict[str, Any] = {"index": index, "message": {"role": "assistant", "content": text}}
            choice |= {"finish_reason": "length" if len(tokens) <= len(reply.text) else reply.finish_reason}
            choices.append(choice | {"logprobs": {"content": content}, "token_ids": tokens})
        prompt = _tokens({"messages": payload["messages"], "add_generation_prompt": True})
        head = {"id": "chatcmpl-x", "object": "chat.completion", "created": 7, "model": MODEL}
        return {**head, "choices": choices[::-1], "prompt_token_ids": prompt, "system_fingerprint": "fp"}

    async def _talk(self, payload: dict[str, Any], reply: Reply, send: Send) -> None:
        await asyncio.sleep(reply.starts_s)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        prompt = _tokens({"messages": payload["messages"], "add_generation_prompt": True})
        first = _choice({"role": "assistant", "content": ""}, None, None)
        await _event(send, _chunk([first], prompt_token_ids=prompt))
        limit = payload.get("max_completion_tokens", payload.get("max_tokens", 1000))
        tokens = [*map(ord, reply.text), END_OF_TURN][:limit]
        cut = len(tokens) <= len(reply.text)
        for place, token in enumerate(tokens):
            if place == reply.breaks_after:
                return
            await asyncio.sleep(reply.gap_s)
            text = "" if token == END_OF_TURN else chr(token)
            delta: dict[str, Any] = {"content": text} if text else {}
            if reply.deltas:
                delta = reply.deltas[place] if place < len(reply.deltas) else {}
            last = place == len(tokens) - 1
            finish_reason = ("length" if cut else reply.finish_reason) if last else None
            logprobs = {"content": [_entry(text)]} if payload.get("logprobs") else None
            if logprobs is not None and payload.get("logprob_token_ids"):
                # What a token was drawn from has not seen it.
                share = self.judge(_text(prompt) + reply.text[:place] + "\3\2assistant\n")
                shares = zip(payload["logprob_token_ids"], (share, 1 - share), strict=True)
                top = [{"token": f"token_id:{label}", "logprob": math.log(each)} for label, each in shares]
                logprobs["content"][0]["top_logprobs"] = top
            choice = _choice(delta, finish_reason, logprobs) | {"token_ids": [token]}
            await _event(send, _chunk([choice | ({"stop_reason": None} if last else {})]))
        usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": {"cached_tokens": 1}}
        await _event(send, _chunk([], usage=usage, system_fingerprint="fp"))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def _choice(delta: dict[str, Any], finish_reason: str | None, logprobs: Any) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _entry(text: str) -> dict[str, Any]:
    alternatives = [{"token": text, "logprob": -0.5}, {"token": "x", "logprob": -1.5}]
    return {"token": text, "logprob": -0.5, "bytes": list(text.encode()), "top_logprobs": alternatives}


def _chunk(choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    head = {"id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 7, "model": MODEL}
    return {**head, "choices": choices, **more}


async def _event(send: Send, value: dict[str, Any]) -> None:
    await send({"type": "http.response.body", "body": b"data: " + orjson.dumps(value) + b"\n\n", "more_body": True})


async def _respond(send: Send, status: int, value: Any) -> None:
    body = value.encode() if isinstance(value, str) else orjson.dumps(value)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _tokens(payload: dict[str, Any]) -> list[int]:
    text = payload.get("prompt")
    if text is not None:
        return {"Yes": [YES], "No": [NO]}.get(text) or [ord(char) for char in text]
    turns = [f"\2{message['role']}\n{message['content']}" for message in payload["messages"]]
    rendered = "\3".join(turns) + ("" if payload.get("continue_final_message") else "\3")
    return [ord(char) for char in rendered + ("\2assistant\n" if payload.get("add_generation_prompt") else "")]


def _text(token_ids: list[int]) -> str:
    return "".join(map(chr, token_ids))
