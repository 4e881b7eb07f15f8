"""A reward upstream over real sockets: answers as vLLM 0.32 does for a model of that kind, with the rewards of a test.

Requests and answers after vllm/entrypoints/pooling (classify, pooling, scoring: protocol.py and serving.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.server.serving_asgi import serving

MODEL = "judge"
KINDS = {
    "classifier": {"/classify", "/pooling", "/score", "/v1/score"},
    "two_classes": {"/classify", "/pooling"},
    "per_token": {"/pooling"},
    "cross_encoder": {"/classify", "/pooling", "/score", "/v1/score"},  # without a chat template
    "embedding": {"/pooling", "/score", "/v1/score"},
}


@dataclass
class ScriptedReward:
    """The upstream. reward: from what is judged to its reward; a chat is judged as JSON, a pair as `asked|reply`.

    delay_s: before each answer. key: asked for under /v1, as vLLM does. asked: path and body of each request.
    left: paths whose client hung up before the answer.
    """

    kind: str = "classifier"
    reward: Callable[[str], float] = lambda _: 0.0
    delay_s: float = 0.0
    key: str | None = None
    limit: int | None = None
    paths: set[str] | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    waiting: int = 0
    url: str = ""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[ScriptedReward]:
        """Serve for as long as the context lasts."""
        async with serving(self) as self.url:
            yield self

    def judged(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the requests that were no probes."""
        return [(path, body) for path, body in self.asked if not body.get("request_id", "probe").startswith("probe")]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path, payload = scope["path"], orjson.loads(body) if body else {}
        self.asked.append((path, payload))
        self.waiting += 1
        leaving = asyncio.ensure_future(receive())
        try:
            done, _ = await asyncio.wait({leaving}, timeout=self.delay_s)
            if done:
                self.left.append(path)
                return
        finally:
            self.waiting -= 1
            leaving.cancel()
        status, value = self._answer(path, payload, dict(scope["headers"]))
        raw = orjson.dumps(value)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(raw))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": raw})

    def _answer(self, path: str, payload: dict[str, Any], headers: dict[bytes, bytes]) -> tuple[int, Any]:
        if path.startswith("/v1") and self.key and headers.get(b"authorization") != f"Bearer {self.key}".encode():
            return 401, {"error": "Unauthorized"}
        if path == "/v1/models":
            return 200, {"data": [{"id": MODEL, "max_model_len": 512}]}
        if path not in (KINDS[self.kind] if self.paths is None else self.paths):
            return 404, {"detail": "Not Found"}
        if payload.get("model") != MODEL:
            return 404, {"error": {"message": f"The model `{payload.get('model')}` does not exist."}}
        if self.limit is not None and len(orjson.dumps(payload)) > self.limit:
            return 400, {"error": {"message": "This model's maximum context length is exceeded."}}
        if path.endswith("/score"):
            pairs = [f"{payload['text_1']}|{reply}" for reply in payload["text_2"]]
            rows = [{"index": place, "score": self.reward(pair)} for place, pair in enumerate(pairs)]
            return 200, {"object": "list", "data": rows[::-1]}
        if self.kind == "cross_encoder":
            return 400, {"error": {"message": "As of transformers v4.44, default chat template is no longer allowed."}}
        reward = self.reward(orjson.dumps(payload["messages"]).decode())
        values: dict[str, Any] = {
            "two_classes": [1.0, 1.0 + reward],
            "per_token": [[-9.0], [-9.0], [reward]],
            "embedding": [0.1] * 576,
        }
        given = values.get(self.kind, [reward])
        return 200, {"data": [{"index": 0, "probs" if path == "/classify" else "data": given}]}
