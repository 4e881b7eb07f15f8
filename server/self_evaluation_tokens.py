"""The self-evaluation question as token ids of the upstream's model, in the words of its own chat template.

The question follows the assistant's answer in a user turn of its own. Which tokens end the one turn, open the next and
begin the model's answer is the template's business, so the upstream is asked: a chat that ends inside the assistant's
turn is a prefix of the same chat with the question after it, and what is left is what has to be appended. Where the
checkpoint's configuration gives token ids, only the token that ends a turn is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from adaptive.calibration import CalibrationMap
from adaptive.engine import TokenIds
from adaptive.scoring import MIN_LABEL_MASS, Labels, ScoringFailed
from adaptive.self_evaluation import SelfEvaluationQuestion
from server.errors import UpstreamError
from server.self_evaluation_config import LITERAL, QuestionIds, SelfEvaluationConfig

_OK: Final = 200
# A plain answer, so that no template takes it for a tool call or for reasoning.
_CHAT: Final = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"})
_INSIDE: Final = {"add_generation_prompt": False, "continue_final_message": True}
_REMEMBERED: Final = 256  # the model's name is the client's; more names than this are not kept


class Tokenizer(Protocol):
    """The one call of `UpstreamClient` that is needed. Raises `UpstreamError`."""

    async def request_json(self, method: str, path: str, payload: object = None) -> tuple[int, Any]:
        """Return the status and the decoded body."""


@dataclass(frozen=True, slots=True)
class QuestionTokens:
    """suffix: from the end of the assistant's turn to the beginning of the model's answer.

    turn_end: the token that the template puts after an assistant's turn, None where only the suffix says it.
    min_label_mass, calibration: of the configuration.
    """

    suffix: TokenIds
    labels: Labels
    turn_end: int | None = None
    min_label_mass: float = MIN_LABEL_MASS
    calibration: CalibrationMap | None = None

    @property
    def end_id(self) -> int:
        """The token that ends the assistant's turn: it comes off a response that has ended, before a suffix with it."""
        return self.suffix[0] if self.turn_end is None else self.turn_end

    @property
    def ends_the_turn(self) -> bool:
        """The suffix begins with that token; else the model finds the question inside its own answer."""
        return self.suffix[0] == self.end_id


class SelfEvaluationTokens:
    """Asks once per model, and remembers for as long as the upstream is the same.

    upstream_now: an object that is another one once the upstream may have come back with another model or template.
    config_of: what a model is asked by.
    """

    def __init__(
        self,
        upstream: Tokenizer,
        *,
        upstream_now: Callable[[], object],
        config_of: Callable[[str | None], SelfEvaluationConfig] = lambda _: LITERAL,
    ) -> None:
        self._upstream = upstream
        self._upstream_now = upstream_now
        self._upstream_then: object = None
        self._config_of = config_of
        self._known: dict[str | None, QuestionTokens] = {}

    async def of(self, model: str | None) -> QuestionTokens:
        """Return the question for that model, None for the upstream's default. Raises `ScoringFailed`."""
        now = self._upstream_now()
        if now is not self._upstream_then:
            self._upstream_then = now
            self._known.clear()
        known = self._known.get(model)
        if known is None:
            config = self._config_of(model)
            if isinstance(config.question, QuestionIds):
                known = await self._in_ids(model, config.question)
            else:
                known = await self._in_words(model, config.question)
            known = replace(known, min_label_mass=config.min_label_mass, calibration=config.calibration)
            if len(self._known) < _REMEMBERED and self._upstream_then is now:
                self._known[model] = known
        return known

    def calibration(self, model: str | None) -> CalibrationMap | None:
        """Return the map for the question's scores, as far as it is known without asking anyone."""
        return self._config_of(model).calibration

    def read_out(self, model: str | None) -> Labels | None:
        """Return the labels that ride on the model's own tokens, None if it was not trained for it."""
        return self._config_of(model).read_out

    def read_out_calibration(self, model: str | None) -> CalibrationMap | None:
        """Return the map for the read-out's scores, None where they are taken raw."""
        return self._config_of(model).read_out_calibration

    async def answered(self, model: str | None, messages: Sequence[object]) -> TokenIds:
        """Return the ids of a chat that ends with, and inside, an answer. Raises `ScoringFailed`."""
        return await self._tokenize(model, messages=messages, **_INSIDE)

    async def _in_words(self, model: str | None, question: SelfEvaluationQuestion) -> QuestionTokens:
        turn = {"role": "user", "content": question.text}
        # Together: candidates are growing meanwhile.
        answered, asked, *labels = await asyncio.gather(
            self.answered(model, _CHAT),
            self._tokenize(model, messages=[*_CHAT, turn], add_generation_prompt=True),
            *(self._label(model, text) for text in question.win_or_tie + question.loss),
        )
        suffix = asked[len(answered) :]
        if asked[: len(answered)] != answered or not suffix:
            raise ScoringFailed("the chat template changes what came before when a turn is added")
        ids = tuple(token_ids[0] for token_ids in labels)
        if len(set(ids)) < len(ids):
            raise ScoringFailed("two labels are the same token of the model")
        split = len(question.win_or_tie)
        return QuestionTokens(suffix, Labels(ids[:split], ids[split:]))

    async def _in_ids(self, model: str | None, question: QuestionIds) -> QuestionTokens:
        turn_end = None
        with suppress(ScoringFailed):  # then the suffix is taken to begin with it, as it should
            answered, closed = await asyncio.gather(
                self.answered(model, _CHAT), self._tokenize(model, messages=_CHAT, add_generation_prompt=False)
            )
            if closed[: len(answered)] == answered:
                turn_end = next(iter(closed[len(answered) :]), None)
        return QuestionTokens(question.suffix, question.labels, turn_end)

    async def _label(self, model: str | None, text: str) -> TokenIds:
        token_ids = await self._tokenize(model, prompt=text, add_special_tokens=False)
        if len(token_ids) != 1:
            raise ScoringFailed(f"the label {text!r} is {len(token_ids)} tokens of the model, not one")
        return token_ids

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
