"""A sampled chat as an event stream: comments until a candidate is settled, then its chunks, the report on the last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from adaptive.events import Committed, Delta, Quiet
from adaptive.run import Outcome
from adaptive.stream import RunStream
from server.chat_answer import Wanted, chunk, cut_choice, head_of, streamed_choice, usage_of
from server.sampling_report import Out
from server.vllm_engine import VllmEngine

KEEP_ALIVE: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"


class ChatStream:
    """Writes a run's events to `out`. begun: status and headers are sent. first_token_s: seconds into the run."""

    def __init__(self, out: Out, engine: VllmEngine, response_id: str, wanted: Wanted) -> None:
        self._out = out
        self._engine = engine
        self._id = response_id
        self._wanted = wanted
        self._tokens = 0
        self._held: dict[str, Any] | None = None
        self._shown: set[int] = set()
        self._ended: set[int] = set()
        self.begun = False
        self.first_token_s: float | None = None

    async def relay(self, events: RunStream) -> Outcome:
        """Send what is settled as it comes, but for the very last chunk; return the outcome."""
        async for event in events:
            match event:
                case Committed(at_s=at_s):
                    if self.first_token_s is None:
                        self.first_token_s = at_s
                case Delta(choice, step):
                    self._tokens += len(step.token_ids)
                    payload = step.payload if isinstance(step.payload, dict) else {}
                    shown = streamed_choice(payload, choice, self._wanted)
                    if shown is not None:
                        await self._pass_on(shown)
                case Quiet():
                    await self._begin()
                    await self._out.write(KEEP_ALIVE, is_token=False)
                case Outcome(choices=(first, *_)):
                    # One that was settled on before it said anything: its first token came when it was generated.
                    if self.first_token_s is not None and first.first_token_s is not None:
                        self.first_token_s = max(self.first_token_s, first.first_token_s)
                    return event
        raise AssertionError("a run ends with its outcome or with an error")

    async def finish(self, outcome: Outcome, told: Mapping[str, Any], usage: Mapping[str, Any]) -> None:
        """Send the last chunk with the report on it, the usage if the client wants it, and the end."""
        for index in range(len(outcome.choices)):
            if index not in self._ended:
                await self._pass_on(cut_choice(index, first=index not in self._shown))
        if self._held is not None:
            await self._send([self._held], preamble=told)
        if self._wanted.usage_chunk:
            fingerprint = head_of(self._id, self._engine.head).system_fingerprint
            await self._send([], usage=usage, system_fingerprint=fingerprint)
        await self._out.end(DONE)

    async def _pass_on(self, choice: dict[str, Any]) -> None:
        """Send a choice's chunk; hold back one that ends it, as it may be the last of all."""
        if self._held is not None:
            await self._send([self._held])
            self._held = None
        self._shown.add(choice["index"])
        if choice["finish_reason"] is None:
            await self._send([choice])
        else:
            self._held = choice
            self._ended.add(choice["index"])

    async def _send(self, choices: list[dict[str, Any]], **more: Any) -> None:
        head = head_of(self._id, self._engine.head)
        around: dict[str, Any] = {}
        if self._wanted.usage_in_every_chunk and choices:
            around["usage"] = usage_of(len(self._engine.prompt), self._tokens, completion_tokens_details=None)
        if choices and "role" in choices[0]["delta"]:
            around["prompt_token_ids"] = list(self._engine.prompt) if self._wanted.token_ids else None
            around["prompt_text"] = None
        if choices and choices[0]["finish_reason"] is not None and not self._wanted.usage_chunk:
            around["system_fingerprint"] = head.system_fingerprint
        await self._begin()
        event = chunk(head, choices, **around, **more)
        await self._out.write(b"data: " + orjson.dumps(event) + b"\n\n")

    async def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            await self._out.begin(200, ((b"content-type", b"text/event-stream; charset=utf-8"),))
