"""The upstream reward model: one number per reply, larger is better, from a vLLM that serves such a model.

What kind of model it is decides the route, and with `auto` tiny requests find out, in this order:

- `classify`: a sequence classifier. It is given the conversation and the reply in its own chat template, one call per
  reply. The reward is its logit; of two classes, the second's minus the first's, which ranks as the second's
  probability does. Logits and not probabilities, because good replies' probabilities all round to 1.
- `pooling`: the same through vLLM's general route, for models that `/classify` does not serve. Of a reward per token
  the last counts.
- `score`: a cross-encoder or an embedding model, whose score is a similarity. It is given what was asked and all
  replies in one call. What was asked is the system messages, the user's constitution among them, and the last user
  message; where there is no system message, the first user message too, as a constitution may be in that.

A reply is what the client would see of it, tool calls included, reasoning not. One that says nothing is not sent and
comes last. Nothing is cut to fit: a reply that is too long for the reward model fails the selection, as does any other
trouble, and the scores decide (`adaptive.selection`). After trouble the upstream is asked anew what it is.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from adaptive.selection import Finalist, SelectionFailed
from server.chat_answer import message
from server.errors import UpstreamError
from server.probe import served_models
from server.settings import RewardRoute, Settings
from server.upstream import Timeouts, UpstreamClient

_OK: Final = 200
_TWO_CLASSES: Final = 2
# In the order in which they are tried. Gateways may let only /v1 pass; of these routes vLLM has only the last there.
_PATHS: Final = (
    (RewardRoute.CLASSIFY, "/classify"),
    (RewardRoute.POOLING, "/pooling"),
    (RewardRoute.SCORE, "/score"),
    (RewardRoute.SCORE, "/v1/score"),
)
_PROBE: Final = ({"role": "user", "content": "hello"},)


class Client(Protocol):
    """What is needed of `UpstreamClient`. Raises `UpstreamError`."""

    async def request_json(self, method: str, path: str, payload: object = None) -> tuple[int, Any]:
        """Return the status and the decoded body."""

    async def request(self, method: str, path: str) -> Any:
        """Return the answer to a request without a body."""

    async def aclose(self) -> None:
        """Close every connection."""


@dataclass(frozen=True, slots=True)
class RewardService:
    """What the reward upstream turned out to be. example: the reward of a one-word answer to a one-word question."""

    model: str
    route: RewardRoute
    path: str
    example: float


@dataclass(frozen=True, slots=True)
class Conversation:
    """What replies are judged by. messages: with the constitution in them. request_id: unique. cache_salt: if any."""

    messages: Sequence[Mapping[str, Any]]
    request_id: str
    cache_salt: str | None = None


class RewardUpstream:
    """The vLLM that serves the reward model. model: its served name, None for the first that it lists.

    timeout_s: longest wait for the rewards of one conversation, in seconds.
    """

    def __init__(self, client: Client, *, model: str | None, route: RewardRoute, timeout_s: float) -> None:
        self._client = client
        self._model = model
        self._route = route
        self._timeout_s = timeout_s
        self._known: RewardService | None = None
        self._asking = asyncio.Lock()

    def of(self, conversation: Conversation) -> ConversationReward:
        """Return the reward of replies in that conversation."""
        return ConversationReward(self, conversation)

    async def rewards(self, conversation: Conversation, replies: Sequence[Finalist]) -> tuple[float, ...]:
        """Return one reward per reply, in order; minus infinity for one that says nothing. Raises `SelectionFailed`."""
        said = {place: reply for place, reply in enumerate(map(_reply, replies)) if _says_anything(reply)}
        try:
            async with asyncio.timeout(self._timeout_s):
                service = await self.service()
                found = await self._judge(service, conversation, list(said.values()))
        except TimeoutError as error:
            self._known = None
            raise SelectionFailed(f"the reward model did not answer within {self._timeout_s:g} s") from error
        except SelectionFailed:
            self._known = None
            raise
        by_place = dict(zip(said, found, strict=True))
        return tuple(by_place.get(place, -math.inf) for place in range(len(replies)))

    async def service(self) -> RewardService:
        """Return what the upstream is; asks it the first time, and after trouble. Raises `SelectionFailed`."""
        async with self._asking:
            if self._known is None:
                self._known = await self._find_out()
            return self._known

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def _find_out(self) -> RewardService:
        model = self._model or await self._first_model()
        # vLLM aborts two live requests of one id together, and another worker may be asking too.
        conversation = Conversation(_PROBE, f"probe-{secrets.token_hex(6)}")
        refusals = []
        for route, path in _PATHS:
            if self._route not in {RewardRoute.AUTO, route}:
                continue
            service = RewardService(model, route, path, example=0.0)
            try:
                (example,) = await self._judge(service, conversation, [_assistant("hello")])
            except _Unreachable:
                raise
            except SelectionFailed as failure:
                refusals.append(str(failure))
            else:
                return RewardService(model, route, path, example)
        raise SelectionFailed("; ".join(refusals))

    async def _first_model(self) -> str:
        models = await served_models(self._client)
        if not models:
            raise SelectionFailed("the reward upstream lists no model")
        return models[0].name

    async def _judge(
        self, service: RewardService, conversation: Conversation, replies: Sequence[dict[str, Any]]
    ) -> Sequence[float]:
        if not replies:
            return ()
        if service.route is RewardRoute.SCORE:
            return await self._score(service, conversation, replies)
        try:
            async with asyncio.TaskGroup() as group:  # the first that fails ends the others' work upstream
                calls = [
                    group.create_task(self._judge_one(service, conversation, reply, place))
                    for place, reply in enumerate(replies)
                ]
        except* SelectionFailed as failures:
            failure = failures.exceptions[0]
        else:
            return [call.result() for call in calls]
        raise failure

    async def _judge_one(
        self, service: RewardService, conversation: Conversation, reply: dict[str, Any], place: int
    ) -> float:
        payload = {"messages": [*conversation.messages, reply], "use_activation": False}
        (row,) = await self._ask(service, conversation, payload, place, 1)
        values = row.get("probs" if service.route is RewardRoute.CLASSIFY else "data")
        return _one_number(values, service.path)

    async def _score(
        self, service: RewardService, conversation: Conversation, replies: Sequence[dict[str, Any]]
    ) -> list[float]:
        payload = {"text_1": asked(conversation.messages), "text_2": [_text(reply) for reply in replies]}
        rows = await self._ask(service, conversation, payload, 0, len(replies))
        return [_one_number([row.get("score")], service.path) for row in rows]

    async def _ask(
        self, service: RewardService, conversation: Conversation, payload: dict[str, Any], place: int, count: int
    ) -> list[dict[str, Any]]:
        """Return the rows of an answer, by their index. Raises `SelectionFailed`."""
        common: dict[str, Any] = {"model": service.model, "request_id": f"{conversation.request_id}.r{place}"}
        if conversation.cache_salt is not None:
            common["cache_salt"] = conversation.cache_salt
        try:
            status, value = await self._client.request_json("POST", service.path, common | payload)
        except UpstreamError as error:
            raise _Unreachable(f"the reward model could not be asked: {error.message}") from error
        rows = value.get("data") if status == _OK and isinstance(value, dict) else None
        if not isinstance(rows, list):
            raise SelectionFailed(f"the reward model's {service.path} answered {status}{_reason(value)}")
        by_index = {row.get("index"): row for row in rows if isinstance(row, dict)}
        if set(by_index) != set(range(count)):
            raise SelectionFailed(f"the reward model's {service.path} gave {len(rows)} rewards for {count} replies")
        return [by_index[index] for index in range(count)]


class _Unreachable(SelectionFailed):
    """The reward upstream itself, not one of its routes."""


@dataclass(frozen=True, slots=True)
class ConversationReward:
    """`adaptive.selection.Reward` for one conversation."""

    upstream: RewardUpstream
    conversation: Conversation

    async def rewards(self, replies: Sequence[Finalist]) -> tuple[float, ...]:
        """Return one reward per reply. Raises `SelectionFailed`."""
        return await self.upstream.rewards(self.conversation, replies)


def reward_upstream(settings: Settings) -> RewardUpstream | None:
    """Return the reward upstream of the settings, None if none is set."""
    if settings.reward_upstream is None:
        return None
    key, limit_s = settings.reward_upstream_api_key, settings.reward_timeout_s
    client = UpstreamClient(
        settings.reward_upstream,
        api_key=None if key is None else key.get_secret_value(),
        max_connections=settings.upstream_connections,
        timeouts=Timeouts(min(settings.connect_timeout_s, limit_s), limit_s, limit_s, limit_s),
    )
    return RewardUpstream(client, model=settings.reward_model, route=settings.reward_route, timeout_s=limit_s)


def asked(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return what a reply to those messages has to answer, as one text; the module's docstring says which they are."""
    rules = [each for each in messages if each.get("role") in {"system", "developer"}]
    questions = [each for each in messages if each.get("role") == "user"]
    chosen = [*(rules or questions[:1]), *questions[-1:]]
    texts = [_content(each) for place, each in enumerate(chosen) if each not in chosen[:place]]
    return "\n\n".join(text for text in texts if text)


def _reply(finalist: Finalist) -> dict[str, Any]:
    """Return a candidate as the assistant's message that the client would get."""
    deltas = [each.get("delta") or {} for each in finalist.payloads if isinstance(each, Mapping)]
    whole = message(deltas)
    reply = _assistant(whole["content"] or "")
    return reply | ({"tool_calls": whole["tool_calls"]} if "tool_calls" in whole else {})


def _assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _says_anything(reply: Mapping[str, Any]) -> bool:
    return bool(reply["content"].strip() or reply.get("tool_calls"))


def _text(reply: Mapping[str, Any]) -> str:
    """Return a reply as plain text, for a model that knows no messages."""
    calls = [orjson.dumps(call["function"]).decode() for call in reply.get("tool_calls", ())]
    return "\n".join([*filter(None, [reply["content"]]), *calls])


def _content(said: Mapping[str, Any]) -> str:
    content = said.get("content")
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    return "".join(part if isinstance(part, str) else str(part.get("text") or "") for part in content)


def _one_number(values: Any, path: str) -> float:
    """Return the reward in what a model gave for one reply. Raises `SelectionFailed` if it is not one."""
    if isinstance(values, list) and values and isinstance(values[-1], list):
        values = values[-1]  # one row per token
    numbers = values if isinstance(values, list) else []
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in numbers):
        raise SelectionFailed(f"the reward model's {path} gave something that is no number")
    if len(numbers) == 1:
        return float(numbers[0])
    if len(numbers) == _TWO_CLASSES:
        return float(numbers[1] - numbers[0])
    raise SelectionFailed(f"the reward model's {path} gives {len(numbers)} numbers for a reply, not one")


def _reason(value: Any) -> str:
    error = value.get("error") if isinstance(value, dict) else None
    said = error.get("message") if isinstance(error, dict) else None
    return f": {said}" if isinstance(said, str) else ""
