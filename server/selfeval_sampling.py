"""Answers for training self-evaluation: K of the model's own for each prompt, or those that were logged with it.

All answers of a prompt are one request with `n`: its prompt is computed once, and one request in place of K leaves the
engine's time to generating. Each has a seed of its own, as vLLM counts up from the request's. Their tokens and
log-probabilities are the engine's (`return_token_ids`, `logprobs`), so that nothing is tokenized again.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Protocol

from adaptive.engine import EngineError, EngineFailed, TokenIds
from adaptive.evaluation.recording import seed_of
from constitutions.compose import Placement
from server.errors import UpstreamError
from server.selfeval_prompts import Prompt
from server.vllm_engine import PATH, kind_of, message_of

FORMAT: Final = 1
"""Raised when the meaning of a kept line changes."""
_OK: Final = 200
_DECIMALS: Final = 5  # of kept log-probabilities; more would only make files larger


class Client(Protocol):
    """The one call of `UpstreamClient` that is needed. Raises `UpstreamError`."""

    async def request_json(self, method: str, path: str, payload: object = None) -> tuple[int, Any]:
        """Return the status and the decoded body."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What answers depend on besides their prompt: see `adaptive.evaluation.recording.Setup`. n: answers per prompt.

    temperature, max_tokens, n: None of answers that were logged.
    """

    model: str
    root: str | None
    fingerprint: str | None
    temperature: float | None
    max_tokens: int | None
    n: int | None


@dataclass(frozen=True, slots=True)
class Drawn:
    """One answer: see `adaptive.training.examples.Answer`."""

    token_ids: TokenIds
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str


_DRAWN: Final = tuple(field.name for field in fields(Drawn))


@dataclass(frozen=True, slots=True)
class DrawnGroup:
    """All answers to a prompt. prompt_ids: as the engine was given it."""

    prompt_ids: TokenIds
    answers: tuple[Drawn, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(answer.token_ids) for answer in self.answers)

    def to_plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        # Not by `asdict`, which copies every token.
        answers = [{name: getattr(answer, name) for name in _DRAWN} for answer in self.answers]
        return {"prompt_ids": self.prompt_ids, "answers": answers}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> DrawnGroup:
        """Return what such values say. Raises `KeyError` or `TypeError`."""
        answers = tuple(
            Drawn(tuple(each["token_ids"]), tuple(each["logprobs"]), each["text"], each["finish_reason"])
            for each in plain["answers"]
        )
        return cls(tuple(plain["prompt_ids"]), answers)


class AnswerSource(Protocol):
    """Where the answers to a prompt are from."""

    @property
    def setup(self) -> Setup:
        """What they depend on."""
        ...

    def messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        """Return the messages as they are sent, a constitution among them."""
        ...

    def key(self, prompt: Prompt) -> str:
        """Return what tells these answers from any others: with the same key, drawing again brings nothing new."""
        ...

    async def answers(self, prompt: Prompt) -> DrawnGroup:
        """Return the answers to a prompt. Raises `EngineError`."""
        ...


class ChatSampler:
    """Samples from the upstream. seed: of the run; each prompt has a seed of its own."""

    def __init__(self, upstream: Client, setup: Setup, *, seed: int, placement: Placement) -> None:
        self._upstream = upstream
        self.setup = setup
        self._seed = seed
        self._placement = placement
        # Fresh for every run: the prefix cache of a shared engine is no business of other tenants.
        self._salt = secrets.token_hex(16)

    def messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        """Return the messages as they are sent."""
        return prompt.composed(self._placement)

    def key(self, prompt: Prompt) -> str:
        """Return the key, by everything that is sent and by what the upstream says of itself."""
        return digest([FORMAT, asdict(self.setup), self.messages(prompt), self._seed])

    async def answers(self, prompt: Prompt) -> DrawnGroup:
        """Return n answers. Raises `EngineError`."""
        messages = self.messages(prompt)
        body = {
            "model": self.setup.model,
            "messages": messages,
            "n": self.setup.n,
            "temperature": self.setup.temperature,
            "max_completion_tokens": self.setup.max_tokens,
            "seed": seed_of(self._seed, digest([messages]), 0),
            "logprobs": True,
            "return_token_ids": True,
            "cache_salt": self._salt,
        }
        value = await asked(self._upstream, PATH, body)
        try:
            choices = sorted(value["choices"], key=lambda choice: choice["index"])
            found = DrawnGroup(_ids(value["prompt_token_ids"]), tuple(_drawn(choice) for choice in choices))
        except (KeyError, TypeError) as error:
            raise EngineFailed(
                "the upstream's answer lacks token ids or log-probabilities; vLLM 0.32 gives them"
            ) from error
        if len(found.answers) != self.setup.n:
            raise EngineFailed(f"the upstream gave {len(found.answers)} answers, not {self.setup.n}")
        return found


class LoggedAnswers:
    """Answers that people have judged, in the model's tokens; what they would have been worth to the model is asked.

    The text is tokenized in the model's chat template, as a turn that has ended, and one pass over it gives the
    log-probabilities. Nothing is generated but the one token that the API asks for at least.
    """

    def __init__(self, upstream: Client, setup: Setup, *, placement: Placement) -> None:
        self._upstream = upstream
        self.setup = setup
        self._placement = placement

    def messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        """Return the messages as they are sent."""
        return prompt.composed(self._placement)

    def key(self, prompt: Prompt) -> str:
        """Return the key, by the prompt and the answers."""
        return digest([FORMAT, asdict(self.setup), self.messages(prompt), prompt.logged])

    async def answers(self, prompt: Prompt) -> DrawnGroup:
        """Return the logged answers in their order. Raises `EngineError`."""
        messages = self.messages(prompt)
        prompt_ids = await self._tokenize(messages, add_generation_prompt=True)
        return DrawnGroup(prompt_ids, tuple([await self._of(messages, prompt_ids, text) for text in prompt.logged]))

    async def _of(self, messages: Sequence[Mapping[str, Any]], prompt_ids: TokenIds, text: str) -> Drawn:
        chat = [*messages, {"role": "assistant", "content": text}]
        inside = await self._tokenize(chat, add_generation_prompt=False, continue_final_message=True)
        closed = await self._tokenize(chat, add_generation_prompt=False)
        if inside[: len(prompt_ids)] != prompt_ids or closed[: len(inside)] != inside:
            raise EngineFailed("the chat template changes what came before when an answer is added")
        whole = closed[: len(inside) + 1]  # with the token that ends the turn
        body = {"model": self.setup.model, "prompt": list(whole), "max_tokens": 1, "prompt_logprobs": 0}
        value = await asked(self._upstream, "/v1/completions", body | {"temperature": 0})
        try:
            given = value["choices"][0]["prompt_logprobs"][len(prompt_ids) :]
            logprobs = tuple(
                round(float(each[str(token)]["logprob"]), _DECIMALS)
                for each, token in zip(given, whole[len(prompt_ids) :], strict=True)
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineFailed("the upstream's answer lacks the prompt's log-probabilities") from error
        return Drawn(whole[len(prompt_ids) :], logprobs, text, "stop")

    async def _tokenize(self, messages: Sequence[Mapping[str, Any]], **how: bool) -> TokenIds:
        body = {"model": self.setup.model, "messages": list(messages), **how}
        value = await asked(self._upstream, "/tokenize", body)
        try:
            return _ids(value["tokens"])
        except (KeyError, TypeError) as error:
            raise EngineFailed("the upstream's /tokenize gives no tokens") from error


async def asked(upstream: Client, path: str, body: Mapping[str, Any]) -> Any:
    """Return what the upstream answers. Raises `EngineError`."""
    try:
        status, value = await upstream.request_json("POST", path, body)
    except UpstreamError as error:
        raise EngineFailed(error.message) from error
    if status != _OK:
        failure: EngineError = kind_of(status)(f"{path} was answered with {status}: {message_of(value)}")
        raise failure
    return value


def _drawn(choice: Mapping[str, Any]) -> Drawn:
    token_ids = _ids(choice["token_ids"])
    logprobs = tuple(round(float(entry["logprob"]), _DECIMALS) for entry in choice["logprobs"]["content"])
    if len(logprobs) != len(token_ids):
        raise KeyError("logprobs")
    text = choice["message"].get("content")
    return Drawn(token_ids, logprobs, text if isinstance(text, str) else "", choice.get("finish_reason") or "")


def _ids(value: Any) -> TokenIds:
    if not isinstance(value, list):
        raise TypeError("no token ids")
    return tuple(value)


def digest(value: Any) -> str:
    """Return what tells JSON values from any others, in 32 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
