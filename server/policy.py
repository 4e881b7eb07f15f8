"""The policy as a client, an operator or OpenAPI sees it, and where it comes from.

`PolicyFields` is the twin of `adaptive.policy.Policy`, field by field. What a request does not say is taken from the
next source: its body (`preamble`), the header `x-preamble-policy`, the model alias, the user's default (`/v1/policy`),
the server's default. A wrong field is named with the source it came from: `preamble.n_max`, `x-preamble-policy.n_max`,
`model`, `policy.n_max`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adaptive.annealing import MAX_FACTOR, Annealing
from adaptive.errors import PolicyError
from adaptive.policy import (
    MAX_CANDIDATES,
    MAX_GROWTH,
    AtDeadline,
    Checkpoint,
    Mode,
    Policy,
    ScorerName,
    SelectorName,
    Streaming,
)
from server.errors import BadRequest

BODY_FIELD: Final = "preamble"
HEADER: Final = "x-preamble-policy"
USER_DEFAULT: Final = "policy"
LISTED_ALIASES: Final = ("adaptive", "best-of-8")

_ALIAS: Final = re.compile(r"(.+):(?:(adaptive)|best-of-([1-9]\d?))")
_MAX_HEADER: Final = 4096
_NO_REWARD_MODEL: Final = (
    "'reward_model' needs an upstream reward model, and this server has none. Use another selector; an operator sets "
    "reward_upstream"
)
_Factor = Annotated[float, Field(ge=0, le=MAX_FACTOR)]


class AnnealingFields(BaseModel):
    """Temperature over the candidate index k: `end + (start - end) * rate ** k` times the client's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    start: _Factor = 1.0
    end: _Factor = 0.6
    rate: float = Field(0.7, ge=0, le=1)


class CheckpointFields(BaseModel):
    """At `tokens` generated tokens the candidates are compared, and the share `keep` of them goes on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tokens: int = Field(ge=1)
    keep: float = Field(gt=0, le=1)


class PolicyFields(BaseModel):
    """How much a request may spend on adaptive best-of-N, and on what grounds. Every field may be left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Mode = Field(
        Mode.ADAPTIVE,
        description="off: one candidate, passed through. adaptive: one, then more while none reaches the threshold. "
        "best_of_n: n_max together.",
    )
    n_max: int = Field(8, ge=1, le=MAX_CANDIDATES, description="Most candidates.")
    threshold: float = Field(0.9, ge=0, le=1, description="Adaptive sampling stops at a candidate with this score.")
    batch_growth: float = Field(
        2.0, gt=1, le=MAX_GROWTH, description="How the number drawn grows from batch to batch; 2 gives 1, 2, 4, 8."
    )
    annealing: AnnealingFields = Field(AnnealingFields(), description="Temperature over the candidate index.")
    checkpoints: tuple[CheckpointFields, ...] = Field(
        (CheckpointFields(tokens=64, keep=0.5), CheckpointFields(tokens=256, keep=0.5)),
        max_length=32,
        description="Where candidates are compared and pruned, tokens ascending.",
    )
    token_budget: int | None = Field(
        None, ge=1, description="Most generated tokens of all candidates together; scoring is counted apart."
    )
    deadline_ms: int | None = Field(None, ge=1, description="Milliseconds from the first draw to the reply.")
    at_deadline: AtDeadline = Field(
        AtDeadline.CUT, description="If none is complete then: cut = the best as it stands; finish = it alone goes on."
    )
    scorer: ScorerName = Field(ScorerName.SELF_EVALUATION, description="Where scores come from.")
    selector: SelectorName = Field(
        SelectorName.SELF_EVALUATION,
        description="How the reply is picked: self_evaluation = the highest score. reward_model: where one is set up.",
    )
    answer_regex: str | None = Field(None, description="For the selector majority: group 1 of the last match.")
    answer_json_path: str | None = Field(None, description="For the selector majority: a path such as $.result.total.")
    streaming: Streaming = Field(
        Streaming.LIVE, description="live: tokens flow once the reply is settled. whole: when it is complete."
    )
    commit_at: int | None = Field(
        None, ge=1, description="At that many tokens a streaming client is given the best so far, live."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """Take the text form of a header or an environment variable too."""
        return parse_text(value) if isinstance(value, str) else value

    def said(self) -> dict[str, Any]:
        """Return the fields that were given, as plain values."""
        return self.model_dump(exclude_unset=True)


def parse_text(text: str) -> dict[str, Any]:
    """Return the fields in `mode=adaptive, n_max=8`, or in a JSON object. Raises `ValueError`."""
    if len(text) > _MAX_HEADER:
        raise ValueError(f"is longer than {_MAX_HEADER} characters; send it as 'preamble' in the body")
    if text.lstrip().startswith("{"):
        try:
            fields = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"is not JSON ({error})") from error
        return dict(fields)
    found: dict[str, Any] = {}
    for part in filter(str.strip, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"cannot be read at {part.strip()!r}; write mode=adaptive, n_max=8 or a JSON object")
        found[name.strip()] = value.strip()
    return found


def to_text(said: Mapping[str, Any]) -> str:
    """Return fields as people read and write them: `mode=adaptive, n_max=8`."""
    pairs = (
        f"{name}={value if isinstance(value, str) else orjson.dumps(value).decode()}" for name, value in said.items()
    )
    return ", ".join(pairs) or "no field"


def to_content(fields: PolicyFields) -> str:
    """Return the fields that were said as the store keeps them: JSON, the same text for the same fields."""
    return orjson.dumps(fields.said()).decode()


@lru_cache(maxsize=1024)  # users with equal policies share one
def from_content(content: str) -> PolicyFields:
    """Return what `to_content` was given. Raises `ValueError`."""
    return PolicyFields.model_validate_json(content)


def build(said: Mapping[str, Any]) -> Policy:
    """Return the policy of those fields, defaults for the rest. Raises `PolicyError`."""
    values = dict(said)
    if "annealing" in values:
        values["annealing"] = Annealing(**values["annealing"])
    if "checkpoints" in values:
        values["checkpoints"] = tuple(Checkpoint(**each) for each in values["checkpoints"])
    return Policy(**values)


@dataclass(frozen=True, slots=True)
class Alias:
    """A model name that asks for a policy: the upstream's own name, and the fields that the alias stands for."""

    model: str
    fields: PolicyFields


def read_alias(model: object) -> Alias | None:
    """Return what `<model>:adaptive` or `<model>:best-of-8` stands for, None for any other name."""
    found = _ALIAS.fullmatch(model) if isinstance(model, str) and ":" in model else None
    if found is None:
        return None
    if found[2]:
        return Alias(found[1], PolicyFields(mode=Mode.ADAPTIVE))
    count = int(found[3])
    if count > MAX_CANDIDATES:
        raise BadRequest(f"'model' asks for the best of {count}; the most is {MAX_CANDIDATES}.", param="model")
    return Alias(found[1], PolicyFields(mode=Mode.BEST_OF_N, n_max=count))


def read_fields(value: object, source: str) -> PolicyFields:
    """Return the fields that `source` (`preamble`, `x-preamble-policy`) gives. Raises `BadRequest` naming the field.

    Where the source is empty the fields are the whole of what was sent, and named without it.
    """
    if not isinstance(value, dict | str):
        raise _wrong(source, "", 'must be an object such as {"mode": "adaptive"}')
    try:
        return PolicyFields.model_validate(value)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = f"is no field of a policy. The fields: {', '.join(PolicyFields.model_fields)}"
        raise _wrong(source, _path(detail["loc"]), message) from error


def resolve(default: PolicyFields, *sources: tuple[str, PolicyFields], reward_model: bool = False) -> Policy:
    """Return the policy of a request: for each field the first source that gives it, then the server's default.

    A source that gives fields and no mode wants them used: where all after it are off, it means adaptive.
    reward_model: there is one to select by. Raises `BadRequest`: fields that are right each may not go together.
    """
    merged = dict(default.said())
    for _, fields in reversed(sources):
        said = fields.said()
        if said and "mode" not in said and merged.get("mode") is Mode.OFF:
            merged["mode"] = Mode.ADAPTIVE
        merged |= said
    try:
        policy = build(merged)
    except PolicyError as error:
        raise wrong_field(sources, error.field, error.problem) from error
    if policy.selector is SelectorName.REWARD_MODEL and not reward_model:
        raise wrong_field(sources, "selector", _NO_REWARD_MODEL)
    return policy


def wrong_field(sources: Sequence[tuple[str, PolicyFields]], field: str, problem: str) -> BadRequest:
    """Return the error for a field that cannot be followed: named with the source that gives it, else the nearest."""
    root = re.split(r"[.\[]", field)[0]
    nearest = next((name for name, fields in sources if fields.said()), BODY_FIELD)
    return _wrong(next((name for name, fields in sources if root in fields.said()), nearest), field, problem)


def _wrong(source: str, field: str, problem: str) -> BadRequest:
    name = ".".join(filter(None, (source, field)))
    return BadRequest(f"'{name}': {problem}." if name else f"The policy {problem}.", param=name or None)


def _path(location: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")
