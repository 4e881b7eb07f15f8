"""The self-evaluation question as token ids of the upstream's model, in the words of its own chat template.

The question follows the assistant's answer in a user turn of its own. Which tokens end the one turn, open the next and
begin the model's answer is the template's business, so the upstream is asked: a chat that ends inside the assistant's
turn is a prefix of the same chat with the question after it, and what is left is what has to be appended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from adaptive.engine import TokenIds
from adaptive.scoring import Labels, ScoringFailed
from adaptive.self_evaluation import LITERAL_QUESTION, SelfEvaluationQuestion
from server.errors import UpstreamError

_OK: Final = 200
# A plain answer, so that no template takes it for a tool call or for reasoning.
_CHAT: Final = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"})
_REMEMBERED: Final = 256  # the model's name is the client's; more names than this are not kept


class Tokenizer(Protocol):
    """The one call of `UpstreamClient` that is needed. Raises `UpstreamError`."""

    async def request_json(self, method: str, path: str, payload: object = None) -> tuple[int, Any]:
        """Return the status and the decoded body."""


@dataclass(frozen=True, slots=True)
class QuestionTokens:
    """suffix: from the end of the assistant's turn to the beginning of the model's answer. end_id: ends a turn."""

    suffix: TokenIds
    labels: Labels

    @property
    def end_id(self) -> int:
        """The token that ends the assistant's turn: the first that the template puts after it."""
        return self.suffix[0]


class SelfEvaluationTokens:
    """Asks once per model, and remembers for as long as the upstream is the same.

    upstream_now: an object that is another one once the upstream may have come back with another model or template.
    """

    def __init__(
        self,
        upstream: Tokenizer,
        *,
        upstream_now: Callable[[], object],
        question: SelfEvaluationQuestion = LITERAL_QUESTION,
    ) -> None:
        self._upstream = upstream
        self._upstream_now = upstream_now
        self._upstream_then: object = None
        self._question = question
        self._known: dict[str | None, QuestionTokens] = {}

    async def of(self, model: str | None) -> QuestionTokens:
        """Return the question for that model, None for the upstream's default. Raises `ScoringFailed`."""
        now = self._upstream_now()
        if now is not self._upstream_then:
            self._upstream_then = now
            self._known.clear()
        known = self._known.get(model)
        if known is None:
            known = await self._ask(model)
            if len(self._known) < _REMEMBERED and self._upstream_then is now:
                self._known[model] = known
        return known

    async def _ask(self, model: str | None) -> QuestionTokens:
        inside = {"add_generation_prompt": False, "continue_final_message": True}
        question = {"role": "user", "content": self._question.text}
        # Together: candidates are growing meanwhile.
        answered, asked, win_or_tie, loss = await asyncio.gather(
            self._tokenize(model, messages=_CHAT, **inside),
            self._tokenize(model, messages=[*_CHAT, question], add_generation_prompt=True),
            self._label(model, self._question.win_or_tie),
            self._label(model, self._question.loss),
        )
        suffix = asked[len(answered) :]
        if asked[: len(answered)] != answered or not suffix:
            raise ScoringFailed("the chat template changes what came before when a turn is added")
        return QuestionTokens(suffix, Labels((win_or_tie,), (loss,)))

    async def _label(self, model: str | None, text: str) -> int:
        token_ids = await self._tokenize(model, prompt=text, add_special_tokens=False)
        if len(token_ids) != 1:
            raise ScoringFailed(f"the label {text!r} is {len(token_ids)} tokens of the model, not one")
        return token_ids[0]

    async def _tokenize(self, model: str | None, **what: object) -> TokenIds:
        payload = what if model is None else {"model": model, **what}
        try:
            status, value = await self._upstream.request_json("POST", "/tokenize", payload)
        except UpstreamError as error:
            raise ScoringFailed(f"the question could not be tokenized: {error.message}") from error
        token_ids = value.get("tokens") if status == _OK and isinstance(value, dict) else None
        if not isinstance(token_ids, Sequence):
            raise ScoringFailed(f"the question could not be tokenized: /tokenize answered {status}")
        return tuple(token_ids)
