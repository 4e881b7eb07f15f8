"""vLLM as the sampling loop's engine, for one chat request: candidates are streamed chats, scores are one batch.

Every candidate is the same composed body with a seed, a temperature and an upstream id of its own, so that all share
one cached prefix and each can be aborted alone, by closing its stream. Token ids come from the upstream
(`return_token_ids`) and go back to it as they are.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

from adaptive.candidate import Partial
from adaptive.engine import (
    EngineBusy,
    EngineError,
    EngineFailed,
    EngineRejected,
    GeneratedTokens,
    LabelReading,
    Sampling,
    TokenIds,
)
from adaptive.policy import ScorerName
from adaptive.scoring import Score, ScoringFailed, SelfEvaluationScorer, logprobs_for
from server.errors import UpstreamError
from server.probe import Scoring, cached_tokens
from server.self_evaluation_tokens import SelfEvaluationTokens

PATH: Final = "/v1/chat/completions"
_OK: Final = 200
# At admission vLLM answers 503; gateways in between say 429.
_BUSY: Final = frozenset({429, 503})
# Of the 4xx, those that say something of the moment and not of the request: timeout, conflict, too early.
_WORTH_ANOTHER_TRY: Final = frozenset({408, 409, 425})
_DONE: Final = b"[DONE]"
_NEVER: Final = -math.inf
# What a score has in common with its candidate: it is scheduled like it, and reads the same cache.
_OF_SCORES: Final = ("model", "cache_salt", "priority")


class Answer(Protocol):
    """An answer being received, as `UpstreamResponse` is."""

    status: int
    headers: list[tuple[bytes, bytes]]

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it arrives."""

    async def read(self) -> bytes:
        """Return the whole body."""

    def close(self) -> None:
        """Abort it, if it is not finished."""


class Upstream(Protocol):
    """The two calls of `UpstreamClient` that are needed. Both raise `UpstreamError`."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        stream: bool = False,
    ) -> Answer:
        """Return the answer."""

    async def request_json(self, method: str, path: str, payload: object = None) -> tuple[int, Any]:
        """Return the status and the decoded body, None where it is not JSON."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of the upstream that is no reply, to be relayed as it is."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What all candidates have in common.

    body: the composed chat request; the constitution is in it, and `cache_salt`; not `n`, `stream`, or our own fields.
    headers: what passes on, without a request id. upstream_id: unique; candidates and scores add their own suffix.
    max_tokens: the client's limit, None if it set none; then a candidate's is only sent where a budget made it one.
    own_temperature: the client set a temperature. Otherwise none is sent, and the upstream's own default is used.
    """

    body: Mapping[str, Any]
    headers: tuple[tuple[bytes, bytes], ...]
    upstream_id: str
    max_tokens: int | None
    own_temperature: bool

    @property
    def model(self) -> str | None:
        """The model's name, None for the upstream's default."""
        model = self.body.get("model")
        return model if isinstance(model, str) else None


@dataclass(slots=True)
class VllmEngine:
    """`adaptive.engine.Engine` over the upstream.

    scoring: what the upstream can, as probed. max_model_len: in tokens, None if not known. most_tokens: the run's
    `Request.max_tokens`.
    What it learns on the way: prompt, the prompt's token ids; head, the fields that all chunks share (until the first
    chunk those that it was given); usages, the upstream's usage of each candidate that ended; refusal, the first answer
    that was no reply; broken, the first failure to reach the upstream.
    """

    upstream: Upstream
    request: ChatRequest
    scoring: Scoring
    max_model_len: int | None
    most_tokens: int = 1 << 31
    prompt: TokenIds = ()
    head: dict[str, Any] = field(default_factory=dict)
    usages: dict[int, dict[str, Any]] = field(default_factory=dict)
    refusal: Refusal | None = None
    broken: UpstreamError | None = None
    _heard: bool = False
    _score_calls: int = 0

    async def generate(self, prompt: TokenIds, sampling: Sampling) -> AsyncGenerator[GeneratedTokens, None]:  # noqa: ARG002 -- the prompt is the chat's
        """Stream one candidate. `payload` of each step is the choice of the chunk that it came with."""
        try:
            response = await self.upstream.request(
                "POST",
                PATH,
                headers=self._headers(f"c{sampling.candidate}"),
                body=orjson.dumps(self._candidate(sampling)),
                stream=True,
            )
        except UpstreamError as error:
            raise self._failed(error) from error
        try:
            if response.status != _OK:
                await self._refuse(response)
            # The last step is held until the stream's end: its usage comes later, and a stream that was read to its
            # end leaves a connection that can be used again.
            last: GeneratedTokens | None = None
            events = _Events()
            async for chunk in response:
                for event in events.decoded(chunk):
                    step = self._step(event, sampling)
                    if step is None:
                        continue
                    if step.finish_reason is not None:
                        last = step
                    else:
                        yield step
            if last is not None:
                yield last
        except UpstreamError as error:
            raise self._failed(error) from error
        finally:
            response.close()

    async def score(self, sequences: Sequence[TokenIds], label_ids: TokenIds) -> tuple[LabelReading, ...]:
        """Read the labels after every sequence, in one call."""
        room = self.max_model_len
        if room is not None and any(len(sequence) >= room for sequence in sequences):
            raise EngineFailed("with the question the response does not fit into the model's context")
        if self.scoring is Scoring.LOGPROB_TOKEN_IDS:
            value = await self._ask("/v1/completions", self._completion(sequences, label_ids))
            return _completion_readings(value, sequences, label_ids)
        if self.scoring is Scoring.GENERATIVE_SCORING and len(label_ids) == 2:  # noqa: PLR2004 -- it reads one share of two
            value = await self._ask("/generative_scoring", self._items(sequences, label_ids))
            return _item_readings(value, sequences)
        raise EngineFailed("the upstream has no way to read the labels' probabilities")

    def _candidate(self, sampling: Sampling) -> dict[str, Any]:
        body = dict(self.request.body)
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
        body["return_token_ids"] = True
        body["seed"] = sampling.seed
        if self.request.own_temperature:
            body["temperature"] = sampling.temperature
        if self.request.max_tokens is not None or sampling.max_tokens < self.most_tokens:
            # In the field that the client used: an error of the upstream names it.
            old = body.get("max_tokens") is not None and body.get("max_completion_tokens") is None
            body["max_tokens" if old else "max_completion_tokens"] = sampling.max_tokens
        if sampling.top_logprobs is not None or sampling.readout_ids:
            asked = body.get("top_logprobs")
            asked = asked if body.get("logprobs") is True and isinstance(asked, int) else 0
            body["logprobs"] = True
            body["top_logprobs"] = max(asked, sampling.top_logprobs or 0)
        if sampling.readout_ids:
            body["logprob_token_ids"] = list(sampling.readout_ids)
            body["return_tokens_as_token_ids"] = True
        return body

    def _step(self, event: dict[str, Any], sampling: Sampling) -> GeneratedTokens | None:
        if "error" in event:
            raise EngineFailed(f"the upstream broke off: {message_of(event)}")
        if not self._heard:
            self._heard = True
            self.head = {name: event.get(name) for name in ("created", "model", "system_fingerprint")}
        if event.get("system_fingerprint"):
            self.head["system_fingerprint"] = event["system_fingerprint"]
        if not self.prompt and event.get("prompt_token_ids"):
            self.prompt = tuple(event["prompt_token_ids"])
        if isinstance(event.get("usage"), dict):
            self.usages[sampling.candidate] = event["usage"]
        choices = event.get("choices")
        if not choices:
            return None
        choice = choices[0]
        entries = (choice.get("logprobs") or {}).get("content") or ()
        if self.request.body.get("logprobs") is not True:
            choice["logprobs"] = None  # asked for by us: of all that a run keeps for each token, more than half
        content = choice.get("delta", {}).get("content")
        return GeneratedTokens(
            token_ids=tuple(choice.get("token_ids") or ()),
            text=content if isinstance(content, str) else "",
            logprobs=tuple(entry["logprob"] for entry in entries),
            top_logprobs=tuple(_alternatives(entry, sampling.top_logprobs) for entry in entries)
            if sampling.top_logprobs
            else (),
            readouts=tuple(_readouts(entry, sampling.readout_ids) for entry in entries) if sampling.readout_ids else (),
            finish_reason=choice.get("finish_reason"),
            payload=choice,
        )

    def _completion(self, sequences: Sequence[TokenIds], label_ids: TokenIds) -> dict[str, Any]:
        return {
            "prompt": [list(sequence) for sequence in sequences],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "logprob_token_ids": list(label_ids),
            "return_tokens_as_token_ids": True,
        }

    def _items(self, sequences: Sequence[TokenIds], label_ids: TokenIds) -> dict[str, Any]:
        query = self.prompt
        return {
            "query": list(query),
            "items": [list(sequence[len(query) :]) for sequence in sequences],
            "label_token_ids": list(label_ids),
            "add_special_tokens": False,
        }

    async def _ask(self, path: str, question: dict[str, Any]) -> Any:
        self._score_calls += 1
        common = {name: self.request.body[name] for name in _OF_SCORES if name in self.request.body}
        headers = self._headers(f"s{self._score_calls}")
        try:
            response = await self.upstream.request("POST", path, headers=headers, body=orjson.dumps(common | question))
            raw = await response.read()
        except UpstreamError as error:
            raise self._failed(error) from error
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            value = None
        if response.status in _BUSY:
            raise EngineBusy(f"scoring was refused with {response.status}: {message_of(value)}")
        if response.status != _OK:
            raise EngineFailed(f"scoring was answered with {response.status}: {message_of(value)}")
        return value

    def _headers(self, suffix: str) -> tuple[tuple[bytes, bytes], ...]:
        own = (b"content-type", b"application/json"), (b"x-request-id", f"{self.request.upstream_id}.{suffix}".encode())
        return (*self.request.headers, *own)

    async def _refuse(self, response: Answer) -> None:
        body = await response.read()
        refusal = Refusal(response.status, tuple(response.headers), body)
        self.refusal = self.refusal or refusal
        value = None
        with suppress(orjson.JSONDecodeError):
            value = orjson.loads(body)
        raise kind_of(response.status)(f"the upstream answered {response.status}: {message_of(value)}")

    def _failed(self, error: UpstreamError) -> EngineError:
        self.broken = self.broken or error
        return EngineFailed(error.message)


@dataclass(frozen=True, slots=True)
class ChatSelfEvaluation:
    """Self-evaluation of a chat: `SelfEvaluationScorer`, once the upstream has said what the prompt's tokens are.

    min_label_mass: as there; None is what the model's configuration says.
    """

    engine: VllmEngine
    tokens: SelfEvaluationTokens
    min_label_mass: float | None = None
    name: str = ScorerName.SELF_EVALUATION.value
    readout_ids: TokenIds = ()

    @property
    def top_logprobs(self) -> int | None:
        """0 where the calibration reads the response's own log-probabilities."""
        return logprobs_for(self.tokens.calibration(self.engine.request.model))

    async def score(self, partials: Sequence[Partial]) -> tuple[Score, ...]:
        """Return P(win or tie) per response. Raises `ScoringFailed`."""
        if not self.engine.prompt:
            raise ScoringFailed("the upstream does not give the prompt's token ids")
        question = await self.tokens.of(self.engine.request.model)
        # A suffix without the turn's end, as one of trained tokens, follows a response with what end it has.
        end_ids = frozenset({question.end_id}) if question.ends_the_turn else frozenset[int]()
        scorer = SelfEvaluationScorer(
            self.engine,
            self.engine.prompt,
            question.suffix,
            question.labels,
            end_ids,
            question.min_label_mass if self.min_label_mass is None else self.min_label_mass,
            question.calibration,
        )
        return await scorer.score(partials)


def kind_of(status: int) -> type[EngineError]:
    """Return what an answer that is no reply says: come later, the request is wrong, or just this once it failed."""
    if status in _BUSY:
        return EngineBusy
    if 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY:  # noqa: PLR2004 -- the class of client errors
        return EngineRejected
    return EngineFailed


class _Events:
    """Decodes a chat's stream, however its bytes are cut. No generator that waits: it is on the path of every token."""

    def __init__(self) -> None:
        self._rest = b""

    def decoded(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        """Yield the events that this chunk completes. Raises `EngineFailed` for what is none."""
        *events, self._rest = (self._rest + chunk).split(b"\n\n")
        for event in events:
            data = event.strip()
            if not data.startswith(b"data:"):
                continue  # a keep-alive comment
            data = data[len(b"data:") :].strip()
            if data == _DONE:
                continue
            try:
                value = orjson.loads(data)
            except orjson.JSONDecodeError as error:
                raise EngineFailed("the upstream's stream is not JSON") from error
            if not isinstance(value, dict):
                raise EngineFailed("the upstream's stream is not one of chunks")
            yield value


def _alternatives(entry: Mapping[str, Any], count: int | None) -> tuple[float, ...]:
    found = sorted((each["logprob"] for each in entry.get("top_logprobs") or ()), reverse=True)
    return tuple(found[:count])


def _readouts(entry: Mapping[str, Any], label_ids: TokenIds) -> tuple[float, ...]:
    found = {each["token"]: each["logprob"] for each in entry.get("top_logprobs") or ()}
    return tuple(found.get(f"token_id:{label_id}", _NEVER) for label_id in label_ids)


def _completion_readings(value: Any, sequences: Sequence[TokenIds], label_ids: TokenIds) -> tuple[LabelReading, ...]:
    try:
        by_index = {choice["index"]: choice["logprobs"]["top_logprobs"][0] for choice in value["choices"]}
        logprobs = [
            tuple(float(by_index[index][f"token_id:{label_id}"]) for label_id in label_ids)
            for index in range(len(sequences))
        ]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EngineFailed("the upstream's answer lacks the labels' log-probabilities") from error
    # vLLM tells the cached tokens of one prompt of a batch. All begin alike and are cached as far as they were
    # generated, so each is taken to have had as many.
    cached = cached_tokens(value) or 0
    return tuple(
        LabelReading(each, max(1, len(sequence) - cached)) for each, sequence in zip(logprobs, sequences, strict=True)
    )


def _item_readings(value: Any, sequences: Sequence[TokenIds]) -> tuple[LabelReading, ...]:
    """From the first label's share of two to two log-probabilities. The labels' mass is not told, and taken as all."""
    try:
        by_index = {item["index"]: float(item["score"]) for item in value["data"]}
        shares = [by_index[index] for index in range(len(sequences))]
    except (KeyError, TypeError, ValueError) as error:
        raise EngineFailed("the upstream's answer lacks the labels' scores") from error
    return tuple(
        LabelReading((_log(share), _log(1.0 - share)), len(sequence))
        for share, sequence in zip(shares, sequences, strict=True)
    )


def _log(share: float) -> float:
    return math.log(share) if share > 0.0 else _NEVER


def message_of(value: Any) -> str:
    """Return what an error of the upstream says of itself."""
    error = value.get("error") if isinstance(value, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else "no reason given"
