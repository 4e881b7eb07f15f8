"""Which chat requests are sampled, and how: the policy in force, and what a request must be to gain from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from adaptive.policy import MAX_CANDIDATES, READING_OUT, Mode, Policy
from adaptive.policy import PassThrough as CoreReason
from server.policy import (
    BODY_FIELD,
    HEADER,
    USER_DEFAULT,
    PolicyFields,
    read_alias,
    read_fields,
    resolve,
    wrong_field,
)

# vLLM takes a temperature below this for greedy (`_SAMPLING_EPS` in vllm/sampling_params.py).
_GREEDY_BELOW: Final = 1e-5
_NO_READ_OUT: Final = (
    "'read_out' and 'staged' need a model that was trained for it, and of this one no labels are known. Use another "
    "scorer; the operator gives the labels with the setting self_evaluation, or in preamble_self_evaluation.json "
    "beside the model"
)
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal", "thinking"})


class PassThrough(StrEnum):
    """Why a request is answered by the upstream alone. The first three are `adaptive.policy.PassThrough`."""

    OFF = CoreReason.OFF.value
    GREEDY = CoreReason.GREEDY.value
    SINGLE = CoreReason.SINGLE.value
    BEAM_SEARCH = "beam_search"
    PROMPT_LOGPROBS = "prompt_logprobs"
    """They switch the prefix cache off, which every candidate needs."""
    NOT_TEXT = "not_text"
    """Images, sound or video are no token ids, and a score is asked for with token ids."""
    READ_OUT = "read_out"
    """The read-out and the client want log-probabilities in two formats."""
    NOT_UNDERSTOOD = "not_understood"
    """A field that matters here is wrong; the upstream says so better."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A policy, and why it is not followed, if it is not. seed, max_tokens, temperature: None if not given."""

    policy: Policy
    reason: PassThrough | None
    choices: int = 1
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


def plan(
    body: dict[str, Any],
    header: str | None,
    default: PolicyFields,
    served: tuple[str, ...],
    own: PolicyFields | None = None,
    lacks_read_out: Callable[[str | None], bool] = lambda _: False,
    *,
    reward_model: bool = False,
) -> Plan:
    """Return the plan for a chat request; takes `preamble` out of its body and an alias out of its model.

    served: model names of the upstream, which are no aliases. own: the user's default policy. lacks_read_out: whether a
    model is known to have none. reward_model: there is one to select by. Raises `BadRequest` naming the wrong field.
    """
    sources: list[tuple[str, PolicyFields]] = []
    fields = body.pop(BODY_FIELD, None)
    if fields is not None:
        sources.append((BODY_FIELD, read_fields(fields, BODY_FIELD)))
    if header is not None:
        sources.append((HEADER, read_fields(header, HEADER)))
    model = body.get("model")
    alias = None if model in served else read_alias(model)
    if alias is not None:
        body["model"] = alias.model
        sources.append(("model", alias.fields))
    if own is not None:
        sources.append((USER_DEFAULT, own))
    planned = _suited(body, resolve(default, *sources, reward_model=reward_model))
    name = body.get("model")
    wants_read_out = planned.reason is None and planned.policy.scorer in READING_OUT
    if wants_read_out and lacks_read_out(name if isinstance(name, str) else None):
        raise wrong_field(sources, "scorer", _NO_READ_OUT)
    return planned


def _suited(body: Mapping[str, Any], policy: Policy) -> Plan:
    if policy.mode is Mode.OFF:
        return Plan(policy, PassThrough.OFF)
    choices, seed = body.get("n"), body.get("seed")
    temperature, limit = body.get("temperature"), body.get("max_completion_tokens")
    limit = body.get("max_tokens") if limit is None else limit
    choices = 1 if choices is None else choices
    wrong = (
        not _is_whole(choices, 1, MAX_CANDIDATES)
        or not (limit is None or _is_whole(limit, 1))
        or not (seed is None or _is_whole(seed))
        or not (temperature is None or (isinstance(temperature, int | float) and temperature >= 0))
        or not isinstance(body.get("stream"), bool | None)
    )
    if wrong:
        return Plan(policy, PassThrough.NOT_UNDERSTOOD)
    core = policy.pass_through(_effective(temperature, body.get("top_k")))
    if core is CoreReason.SINGLE and choices > 1:
        core = None  # several replies, best first, are something to gain
    reason = PassThrough(core.value) if core is not None else _unsuited(body, policy)
    return Plan(policy, reason, choices, temperature, limit, seed)


def _unsuited(body: Mapping[str, Any], policy: Policy) -> PassThrough | None:
    if body.get("use_beam_search"):
        return PassThrough.BEAM_SEARCH
    if body.get("prompt_logprobs") is not None:
        return PassThrough.PROMPT_LOGPROBS
    if not all(_is_text(message.get("content")) for message in body.get("messages", ())):
        return PassThrough.NOT_TEXT
    if policy.scorer in READING_OUT and body.get("logprobs"):
        return PassThrough.READ_OUT
    return None


def _effective(temperature: float | None, top_k: object) -> float:
    """Return the temperature as far as it matters here: 0 for what is greedy, 1 where the upstream decides."""
    if top_k == 1 or (temperature is not None and temperature < _GREEDY_BELOW):
        return 0.0
    return 1.0 if temperature is None else temperature


def _is_text(content: object) -> bool:
    if not isinstance(content, list):
        return True
    return all(
        isinstance(part, str) or (isinstance(part, dict) and part.get("type") in _TEXT_PARTS) for part in content
    )


def _is_whole(value: object, least: int | None = None, most: int | None = None) -> bool:
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return (least is None or value >= least) and (most is None or value <= most)
