"""Asks the upstream what it is, so that the proxy can adapt to it and `preamble doctor` can say what is missing.

Every answer may stay unknown (None): an older vLLM, a gateway in between or a busy engine must not keep the proxy from
starting. Nothing is assumed from a version number; each ability is tried with a real request of at most one token.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol, TypeVar

from constitutions.compose import Placement
from server.errors import UpstreamError
from server.settings import Settings
from server.upstream import Timeouts, UpstreamClient

# A wedged engine accepts connections and never answers. The request timers allow for long generations; a probe has no
# reason to wait that long.
_QUESTION_TIMEOUT_S: Final = 10.0
# One lower-case word, so that any tokenizer gives it back as it was.
_MARKER: Final = "preamblemarker"
_CACHE_CONFIG: Final = re.compile(r"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_OK: Final = 200
_REFUSED: Final = (400, 422, 500)

T = TypeVar("T")


class Answer(Protocol):
    """What a plain request gives."""

    status: int

    async def read(self) -> bytes:
        """Return the body."""


class ProbeClient(Protocol):
    """The two calls of `UpstreamClient` that probing needs. Both raise `UpstreamError`."""

    async def request(self, method: str, path: str) -> Answer:
        """Return the answer to a request without a body."""

    async def request_json(self, method: str, path: str, payload: object = None) -> tuple[int, Any]:
        """Return the status and the decoded body, None where it is not JSON."""


class Scoring(StrEnum):
    """How label tokens can be scored: by log-probabilities of chosen ids, by vLLM's own route for it, or not."""

    LOGPROB_TOKEN_IDS = "logprob_token_ids"  # noqa: S105 -- a field of vLLM's API, no password
    GENERATIVE_SCORING = "generative_scoring"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class UpstreamModel:
    """A model that the upstream serves.

    max_model_len: in tokens. root: what the upstream loaded it from, a directory on its machine or a hub name. Both are
    None where the upstream does not say.
    """

    name: str
    max_model_len: int | None
    root: str | None = None


@dataclass(frozen=True, slots=True)
class UpstreamProfile:
    """What is known of the upstream. None means that it could not be found out.

    reachable: it answered at all. models_status: HTTP status of `/v1/models`; 401 means that our API key is not its.
    honours_system: a system message reaches the prompt through the model's chat template.
    prefix_caching, block_size: as the engine runs, block size in tokens. cached_token_details: `usage` says how many
    prompt tokens came from the cache. scoring: how label tokens can be scored.
    """

    reachable: bool
    version: str | None = None
    models_status: int | None = None
    models: tuple[UpstreamModel, ...] = ()
    honours_system: bool | None = None
    prefix_caching: bool | None = None
    block_size: int | None = None
    cached_token_details: bool | None = None
    scoring: Scoring | None = None

    @property
    def placement(self) -> Placement:
        """Where a constitution goes: the system message, unless the template is known not to honour one."""
        return Placement.FIRST_USER if self.honours_system is False else Placement.SYSTEM

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names under which the models are served."""
        return tuple(model.name for model in self.models)


@dataclass(frozen=True, slots=True)
class LabelScores:
    """Natural log-probabilities of the label tokens as next token, in the order asked for.

    cached_tokens: how many prompt tokens came from the prefix cache; None where the upstream does not tell.
    """

    logprobs: tuple[float, ...]
    cached_tokens: int | None


@contextlib.asynccontextmanager
async def probing_client(settings: Settings) -> AsyncIterator[UpstreamClient]:
    """Give a client of the upstream in the settings, one must be set, whose timers suit questions and not chats."""
    if settings.upstream is None:
        raise ValueError("no upstream is set")
    key = settings.upstream_api_key
    limit_s = _QUESTION_TIMEOUT_S
    client = UpstreamClient(
        settings.upstream,
        api_key=None if key is None else key.get_secret_value(),
        max_connections=8,
        timeouts=Timeouts(min(settings.connect_timeout_s, limit_s), limit_s, limit_s, limit_s),
    )
    try:
        yield client
    finally:
        await client.aclose()


async def probe(client: ProbeClient) -> UpstreamProfile:
    """Return what the upstream is. An unreachable upstream is an answer too; nothing is raised."""
    version = await _ask(client.request_json("GET", "/version"))
    if version is None:
        return UpstreamProfile(reachable=False)
    models_status, models = await _ask(_models(client)) or (None, ())
    if not models:
        return UpstreamProfile(reachable=True, version=_version(version), models_status=models_status)
    name = models[0].name
    honours_system, cache, (scoring, details) = await asyncio.gather(
        _ask(_honours_system(client, name)), _ask(_cache_config(client)), _scoring(client, name)
    )
    prefix_caching, block_size = cache or (None, None)
    return UpstreamProfile(
        reachable=True,
        version=_version(version),
        models_status=models_status,
        models=models,
        honours_system=honours_system,
        prefix_caching=prefix_caching,
        block_size=block_size,
        cached_token_details=details,
        scoring=scoring,
    )


async def served_models(client: ProbeClient) -> tuple[UpstreamModel, ...]:
    """Return the models that the upstream serves; none when it cannot say."""
    _, models = await _ask(_models(client)) or (None, ())
    return models


async def count_tokens(client: ProbeClient, model: str, text: str) -> int | None:
    """Return how many tokens `text` has by the upstream's tokenizer of `model`; None when it cannot say."""
    token_ids = await tokenize(client, model, text)
    return None if token_ids is None else len(token_ids)


async def tokenize(client: ProbeClient, model: str, prompt: str | Sequence[object]) -> tuple[int, ...] | None:
    """Return the token ids of a text (no special tokens) or of chat messages (ready to generate); None if unknown."""
    what: dict[str, object] = {"prompt": prompt, "add_special_tokens": False}
    if not isinstance(prompt, str):
        what = {"messages": prompt, "add_generation_prompt": True}
    answer = await _ask(client.request_json("POST", "/tokenize", {"model": model, **what}))
    return _token_ids(answer)


async def score_labels(
    client: ProbeClient, model: str, prompt: str | Sequence[int], label_ids: Sequence[int]
) -> LabelScores | None:
    """Return the log-probabilities of `label_ids` right after `prompt`; None when the upstream cannot give them.

    Uses `logprob_token_ids` of `/v1/completions`, which vLLM has since 0.18; the numbers are over the full vocabulary.
    """
    answer = await _ask_labels(client, model, prompt, label_ids)
    if answer is None or answer[0] != _OK:
        return None
    try:
        top = answer[1]["choices"][0]["logprobs"]["top_logprobs"][0]
        logprobs = tuple(float(top[f"token_id:{label_id}"]) for label_id in label_ids)
    except (KeyError, IndexError, TypeError, ValueError):
        return None  # an older vLLM ignores logprob_token_ids and answers without them
    return LabelScores(logprobs, cached_tokens(answer[1]))


async def why_not_scored(client: ProbeClient, model: str, prompt: Sequence[int], label_ids: Sequence[int]) -> str:
    """Return why `score_labels` gives nothing, in the upstream's words where it has any."""
    answer = await _ask_labels(client, model, prompt, label_ids)
    if answer is None:
        return "the upstream does not answer"
    error = answer[1].get("error") if isinstance(answer[1], dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else f"the upstream answers {answer[0]}, without the labels"


def cached_tokens(answer: dict[str, Any]) -> int | None:
    """Return how many prompt tokens of a completion came from the prefix cache, None where `usage` does not tell."""
    usage = answer.get("usage")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    count = details.get("cached_tokens") if isinstance(details, dict) else None
    return count if isinstance(count, int) else None


async def _ask(question: Awaitable[T]) -> T | None:
    """Return the answer, or None when the upstream gives none in time."""
    try:
        async with asyncio.timeout(_QUESTION_TIMEOUT_S):
            return await question
    except (UpstreamError, TimeoutError):
        return None


async def _ask_labels(
    client: ProbeClient, model: str, prompt: str | Sequence[int], label_ids: Sequence[int]
) -> tuple[int, Any] | None:
    question = {
        "model": model,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "logprob_token_ids": list(label_ids),
        "return_tokens_as_token_ids": True,
    }
    return await _ask(client.request_json("POST", "/v1/completions", question))


def _version(answer: tuple[int, Any]) -> str | None:
    status, value = answer
    version = value.get("version") if status == _OK and isinstance(value, dict) else None
    return version if isinstance(version, str) else None


async def _models(client: ProbeClient) -> tuple[int, tuple[UpstreamModel, ...]]:
    status, value = await client.request_json("GET", "/v1/models")
    rows = value.get("data") if status == _OK and isinstance(value, dict) else None
    found = []
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("id"), str):
            length, root = row.get("max_model_len"), row.get("root")
            found.append(
                UpstreamModel(
                    row["id"],
                    length if isinstance(length, int) else None,
                    root if isinstance(root, str) else None,
                )
            )
    return status, tuple(found)


async def _honours_system(client: ProbeClient, model: str) -> bool | None:
    """Render a chat with a marked system message and look for the mark in the prompt."""
    user = {"role": "user", "content": "hello"}
    payload = {"model": model, "messages": [{"role": "system", "content": _MARKER}, user]}
    answer = await client.request_json("POST", "/tokenize", payload)
    token_ids = _token_ids(answer)
    if token_ids is not None:
        status, value = await client.request_json("POST", "/detokenize", {"model": model, "tokens": token_ids})
        text = value.get("prompt") if status == _OK and isinstance(value, dict) else None
        return _MARKER in text if isinstance(text, str) else None
    if answer[0] not in _REFUSED:
        return None
    # Templates without a system role raise; a template that fails for every chat says nothing about system messages.
    without = await client.request_json("POST", "/tokenize", {"model": model, "messages": [user]})
    return False if without[0] == _OK else None


def _token_ids(answer: tuple[int, Any] | None) -> tuple[int, ...] | None:
    if answer is None or answer[0] != _OK or not isinstance(answer[1], dict):
        return None
    token_ids = answer[1].get("tokens")
    if not isinstance(token_ids, list) or not all(type(token_id) is int for token_id in token_ids):
        return None
    return tuple(token_ids)


async def _cache_config(client: ProbeClient) -> tuple[bool | None, int | None]:
    response = await client.request("GET", "/metrics")
    found = _CACHE_CONFIG.search((await response.read()).decode(errors="replace"))
    if found is None:
        return None, None
    labels: dict[str, str] = dict(_LABEL.findall(found[1]))
    enabled = {"True": True, "False": False}.get(labels.get("enable_prefix_caching", ""))
    size = labels.get("block_size", "")
    return enabled, int(size) if size.isdecimal() else None


async def _scoring(client: ProbeClient, model: str) -> tuple[Scoring | None, bool | None]:
    """Return how labels can be scored, and whether `usage` tells what came from the cache."""
    scores = await score_labels(client, model, ".", (0, 1))
    if scores is not None:
        return Scoring.LOGPROB_TOKEN_IDS, scores.cached_tokens is not None
    payload = {"model": model, "query": ".", "items": ["."], "label_token_ids": [0, 1]}
    answer = await _ask(client.request_json("POST", "/generative_scoring", payload))
    if answer is None:
        return None, None
    return (Scoring.GENERATIVE_SCORING if answer[0] == _OK else Scoring.NONE), None
