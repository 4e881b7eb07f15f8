"""Reward sources of `preamble selfeval data`: what says how good an answer is. One small protocol, five of them."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from adaptive.engine import EngineFailed
from adaptive.selection import Finalist, SelectionFailed
from constitutions.compose import Placement
from server.reward import Conversation, RewardUpstream
from server.selfeval_prompts import Prompt
from server.selfeval_sampling import Client, asked
from server.vllm_engine import PATH

LEAST_MARK: Final = 1
MOST_MARK: Final = 10
_MARK: Final = re.compile(r"(?<![\d.,-])(10|[1-9])(?![\d%]|[.,]\d)")
_OF_TEN: Final = re.compile(r"(?:/|\bout of\b)\s*10\b")
# A judge that puts less than this on marks is saying something else first; then its text is read.
_LEAST_MASS: Final = 0.5
_REQUEST: Final = (
    "Judge the last reply of the assistant in this conversation. A system message, if there is one, says what the "
    "assistant must do.\n\n{conversation}\n\nHow good is the reply between <reply> and </reply>, from 1 (useless or "
    "against what was asked) to 10 (right, complete, and as it was asked for)? Answer with the whole number only."
)


class RewardSource(Protocol):
    """Says how good answers are: one finite number each, larger is better; nearer than 0.01 is a tie."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """What its rewards depend on besides prompt and answer, for their key; None where they cost nothing to redo."""
        ...

    async def rewards(self, prompt: Prompt, answers: Sequence[str]) -> tuple[float, ...]:
        """Return one reward per answer, in order. Raises `EngineError`."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


@dataclass(frozen=True, slots=True)
class VerifierReward:
    """What the task's own verifier says, 0 to 1."""

    name: str = "verifier"
    identity: Mapping[str, Any] | None = None

    async def rewards(self, prompt: Prompt, answers: Sequence[str]) -> tuple[float, ...]:
        """Return the verdicts' rewards. Raises `EngineFailed` for a prompt without a verifier."""
        if prompt.verify is None:
            raise EngineFailed("the prompt has no verifier")
        verify = prompt.verify
        return tuple(verify(answer).reward for answer in answers)

    async def aclose(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class PreferenceReward:
    """What people preferred: 1 for the chosen answer, which stands first, and 0 for the other."""

    name: str = "preferences"
    identity: Mapping[str, Any] | None = None

    async def rewards(self, prompt: Prompt, answers: Sequence[str]) -> tuple[float, ...]:  # noqa: ARG002 -- as logged
        """Return 1 and 0."""
        return tuple(float(place == 0) for place in range(len(answers)))

    async def aclose(self) -> None:
        """Nothing is open."""


class UpstreamReward:
    """A reward model that a vLLM serves: see `server.reward`. url: for the key."""

    name = "reward_model"

    def __init__(self, upstream: RewardUpstream, *, url: str, model: str | None) -> None:
        self._upstream = upstream
        self.identity: Mapping[str, Any] = {"reward": self.name, "url": url, "model": model}

    async def rewards(self, prompt: Prompt, answers: Sequence[str]) -> tuple[float, ...]:
        """Return the model's logits; an answer that says nothing loses to all others. Raises `EngineFailed`."""
        conversation = Conversation(judged(prompt), f"selfeval-{secrets.token_hex(8)}")
        finalists = [
            Finalist(index, text, None, complete=True, tokens=0, payloads=({"delta": {"content": text}},))
            for index, text in enumerate(answers)
        ]
        try:
            return with_a_floor(await self._upstream.rewards(conversation, finalists))
        except SelectionFailed as error:
            raise EngineFailed(str(error)) from error

    async def aclose(self) -> None:
        """Close every connection."""
        await self._upstream.aclose()


class Judging(Protocol):
    """A model in this process that gives a reward to each whole conversation; may take long, and uses all cores."""

    def __call__(self, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> Sequence[float]:
        """Return one number per conversation, the last message of which is the answer."""


class LocalReward:
    """A reward model in this process. source: where it is from, for the key."""

    name = "reward_model"

    def __init__(self, judge: Judging, *, source: str) -> None:
        self._judge = judge
        self._one_at_a_time = asyncio.Lock()
        self.identity: Mapping[str, Any] = {"reward": self.name, "source": source}

    async def rewards(self, prompt: Prompt, answers: Sequence[str]) -> tuple[float, ...]:
        """Return what the model gives; an answer that says nothing loses to all others. Raises `EngineFailed`."""
        said = [place for place, text in enumerate(answers) if text.strip()]
        chats = [[*judged(prompt), {"role": "assistant", "content": answers[place]}] for place in said]
        async with self._one_at_a_time:
            try:
                found = await asyncio.to_thread(self._judge, chats) if chats else ()
            except (RuntimeError, ValueError) as error:
                raise EngineFailed(f"the reward model failed: {error}") from error
        by_place = dict(zip(said, found, strict=True))
        return with_a_floor([by_place.get(place, -math.inf) for place in range(len(answers))])

    async def aclose(self) -> None:
        """Nothing is open."""


class JudgeReward:
    """A chat model that is asked for a mark from 1 to 10, read as 0 to 1.

    The mark is the expectation over what the model might have said, by the probabilities of its first token, which
    tells answers apart that get the same mark (as in G-Eval, arXiv 2303.16634); without such probabilities, or where
    the model says something before its mark, it is the last mark in the text.
    """

    name = "judge"

    def __init__(self, client: JudgeClient, *, url: str, model: str, max_tokens: int) -> None:
        self._client = client
        self._model = model
        self._max_tokens = max_tokens
        self.identity: Mapping[str, Any] = {
            "reward": self.name,
            "url": url,
            "model": model,
            "request": _REQUEST,
            "max_tokens": max_tokens,
        }

    async def rewards(self, prompt: Prompt, answers: Sequence[str]) -> tuple[float, ...]:
        """Return (mark - 1) / 9 for each answer. Raises `EngineError`."""
        marks = await asyncio.gather(*(self._mark(prompt, answer) for answer in answers))
        return tuple((mark - LEAST_MARK) / (MOST_MARK - LEAST_MARK) for mark in marks)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def _mark(self, prompt: Prompt, answer: str) -> float:
        if not answer.strip():
            return LEAST_MARK
        said = "\n\n".join(f"[{each.get('role')}]\n{_text_of(each.get('content'))}" for each in judged(prompt))
        request = _REQUEST.replace("{conversation}", f"{said}\n\n<reply>\n{answer}\n</reply>")
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": request}],
            "max_tokens": self._max_tokens,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 20,
        }
        value = await asked(self._client, PATH, body)
        try:
            choice = value["choices"][0]
            text = choice["message"].get("content") or ""
            positions = [
                {each["token"]: math.exp(each["logprob"]) for each in position.get("top_logprobs") or [position]}
                for position in (choice.get("logprobs") or {}).get("content") or ()
            ]
            first_token = next((each["token"] for each in (choice.get("logprobs") or {}).get("content") or ()), "")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise EngineFailed("the judge's answer is none of a chat") from error
        mark = expected_mark(positions, first_token)
        if mark is None:
            found = _MARK.findall(_OF_TEN.sub("", text))
            if not found:
                raise EngineFailed(f"the judge gave no mark from {LEAST_MARK} to {MOST_MARK} but {text[:80]!r}")
            mark = float(found[-1])
        return mark


class JudgeClient(Client, Protocol):
    """What is needed of `UpstreamClient`."""

    async def aclose(self) -> None:
        """Close every connection."""


def expected_mark(positions: Sequence[Mapping[str, float]], said: str) -> float | None:
    """Return the mark that is expected of a reply that begins with a mark, None where it does not.

    positions: probabilities of tokens at the first two places. said: the token at the first. Where the tokenizer
    writes 10 as two tokens, what follows a 1 tells it from 10: the second place does, if a 1 was said at the first.
    Otherwise nothing tells, and the share of the 1 is left out, as it is small: another token was likelier.
    """
    if not positions:
        return None
    shares: dict[int, float] = {}
    for token, probability in positions[0].items():
        text = token.strip()
        if text.isascii() and text.isdecimal() and LEAST_MARK <= int(text) <= MOST_MARK:
            shares[int(text)] = shares.get(int(text), 0.0) + probability
    mass = sum(shares.values())
    if mass < _LEAST_MASS:
        return None
    if MOST_MARK not in shares and LEAST_MARK in shares:
        ambiguous = shares.pop(LEAST_MARK)
        if said.strip() == str(LEAST_MARK):
            zero = min(1.0, positions[1].get("0", 0.0)) if len(positions) > 1 else 0.0
            shares |= {LEAST_MARK: ambiguous * (1 - zero), MOST_MARK: ambiguous * zero}
    mass = sum(shares.values())
    return sum(mark * share for mark, share in shares.items()) / mass if mass > 0 else None


def judged(prompt: Prompt) -> list[dict[str, Any]]:
    """Return the conversation that answers are judged by: the constitution in it as a system message."""
    return prompt.composed(Placement.SYSTEM)


def with_a_floor(rewards: Sequence[float]) -> tuple[float, ...]:
    """Return the rewards with 1 less than the least in place of minus infinity; 0 where there is nothing else."""
    finite = [reward for reward in rewards if math.isfinite(reward)]
    floor = min(finite) - 1.0 if finite else 0.0
    return tuple(reward if math.isfinite(reward) else floor for reward in rewards)


def _text_of(content: Any) -> str:
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    return "".join(part if isinstance(part, str) else str(part.get("text") or "") for part in content)
