"""The bodies of the REST routes, as clients see them and as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from constitutions.compose import Placement
from constitutions.constitution import Dimension
from constitutions.plain import to_plain
from server.records import ApiKey, ConstitutionVersion

_PRINCIPLES: Any = [
    {"text": "Answer in at most three sentences.", "dimension": "style"},
    {"text": "I know Python well: skip the basics.", "dimension": "background_knowledge", "weight": 2.0},
]
_VERSION: dict[str, Any] = {
    "object": "constitution",
    "id": "con_k2x7q4mzpa5bd3vw",
    "version": 2,
    "active": True,
    "created_at": 1767225600,
    "user": "acme:alice",
    "principles": _PRINCIPLES,
}
_KEY: dict[str, Any] = {
    "object": "api_key",
    "id": "q7m2xk4d",
    "user": "acme",
    "label": "billing service",
    "admin": False,
    "may_name_sub_users": True,
    "created_at": 1767225600,
    "revoked_at": None,
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PrincipleBody(_Body):
    """One principle. A bare string stands for a principle with that text."""

    text: str = Field(description="What the model reads.")
    dimension: Dimension | None = Field(None, description="What it is about.")
    weight: float = Field(1.0, ge=0, description="0 keeps the principle without sending it.")
    note: str | None = Field(None, description="For people; never sent to the model.")


class ConstitutionBody(_Body):
    """A constitution: its principles, the most important first. What GET answers in JSON is taken too."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"principles": _PRINCIPLES}]})

    principles: list[PrincipleBody | str] = Field(min_length=1)


class ConstitutionVersionBody(_Body):
    """One version of a user's constitution."""

    model_config = ConfigDict(json_schema_extra={"examples": [_VERSION]})

    object: Literal["constitution"]
    id: str = Field(description="Stays the same for all versions, until the constitution is deleted.")
    version: int = Field(ge=1)
    active: bool = Field(description="Whether this is the version that goes into the user's requests.")
    created_at: int = Field(description="Unix time in seconds.")
    user: str
    principles: list[PrincipleBody]


class ConstitutionVersionListBody(_Body):
    """A page of versions, the newest first."""

    object: Literal["list"]
    data: list[ConstitutionVersionBody]
    has_more: bool = Field(description="Whether there are older ones: ask again with `before`.")


class ChangeBody(_Body):
    """One difference between two versions. Indexes count from 0."""

    change: Literal["added", "removed", "moved", "changed"]
    old_index: int | None = Field(None, description="Where it was; not of what was added.")
    new_index: int | None = Field(None, description="Where it is; not of what was removed.")
    principle: PrincipleBody | None = Field(None, description="Not of what was changed.")
    fields: list[str] | None = Field(None, description="Of what was changed: which fields.")
    before: PrincipleBody | None = Field(None, description="Of what was changed.")
    after: PrincipleBody | None = Field(None, description="Of what was changed.")


class DiffBody(_Body):
    """What leads from one version to another, in the order of the newer text, what was removed first."""

    object: Literal["constitution.diff"]
    id: str
    from_version: int
    to_version: int
    changes: list[ChangeBody]


class PreviewRequest(_Body):
    """What to preview. Everything may be left out: then it is the active version without other messages."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "constitution": {"principles": _PRINCIPLES},
                    "messages": [{"role": "system", "content": "You are a support agent."}],
                }
            ]
        }
    )

    constitution: ConstitutionBody | None = Field(None, description="Default: the active version.")
    messages: list[dict[str, Any]] | None = Field(None, description="A chat request's messages to put it into.")


class PreviewBody(_Body):
    """What a constitution does to a chat request."""

    object: Literal["constitution.preview"]
    constitution: str | None = Field(description="`<id>@<version>` if it was the active version, else null.")
    placement: Placement = Field(description="Where the upstream's chat template takes it.")
    system_message: dict[str, Any] | None = Field(
        description="The message that carries the constitution: a user message where `placement` is `first_user`; null "
        "if all principles have weight 0."
    )
    token_count: int | None = Field(
        description="Tokens of that message's text by the upstream's tokenizer, without its chat template; null if the "
        "upstream cannot say."
    )
    character_count: int = Field(description="Characters of that message's text.")
    messages: list[dict[str, Any]] = Field(description="All messages as the upstream would get them.")
    warnings: list[str]


class KeyRequest(_Body):
    """A key to make."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user": "acme", "may_name_sub_users": True}]})

    user: str = Field(description="Who the bearer of the key acts as: `name`, or `name:sub` for a sub-user.")
    label: str | None = Field(None, description="For people, to tell keys apart.")
    admin: bool = Field(False, description="May administer all users and keys.")
    may_name_sub_users: bool = Field(False, description="May act as `<user>:<name>` by sending `x-preamble-user`.")


class KeyBody(_Body):
    """An API key without its secret."""

    model_config = ConfigDict(json_schema_extra={"examples": [_KEY]})

    object: Literal["api_key"] = "api_key"
    id: str
    user: str
    label: str | None
    admin: bool
    may_name_sub_users: bool
    created_at: int = Field(description="Unix time in seconds.")
    revoked_at: int | None = Field(description="Unix time in seconds; null while the key is live.")

    @classmethod
    def of(cls, key: ApiKey) -> KeyBody:
        """Return what a client may know of a key."""
        return cls(
            id=key.id,
            user=key.user,
            label=key.label,
            admin=key.admin,
            may_name_sub_users=key.may_name_sub_users,
            created_at=key.created_at,
            revoked_at=key.revoked_at,
        )


class NewKeyBody(KeyBody):
    """A key that was just made, with its token."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [_KEY | {"key": "pre_q7m2xk4d_0W2bE6yUoV1nZ8cKpJ5sTfRgAaQxHdMiLl3Yk9uNv7w"}]}
    )

    key: str = Field(description="The token. It is shown this once and cannot be had again.")


class KeyListBody(_Body):
    """All keys, the newest first."""

    object: Literal["list"] = "list"
    data: list[KeyBody]


class ErrorDetail(BaseModel):
    """What is wrong, as OpenAI words it."""

    message: str = Field(description="What is wrong and what to do about it.")
    type: str
    param: str | None = Field(description="The field, header or parameter that is wrong.")
    code: str | None


class ErrorBody(BaseModel):
    """Every error has this shape."""

    type: Literal["error"]
    error: ErrorDetail


def version_to_plain(version: ConstitutionVersion) -> dict[str, object]:
    """Return a version as `ConstitutionVersionBody` describes it; principles leave out what is at its default."""
    return {
        "object": "constitution",
        "id": version.id,
        "version": version.version,
        "active": version.active,
        "created_at": version.created_at,
        "user": version.user,
        **to_plain(version.constitution),
    }


def without_metadata(value: dict[str, Any]) -> dict[str, Any]:
    """Return what `version_to_plain` gave, changed or not, as a bare constitution, so that GET, edit and PUT works."""
    if value.get("object") != "constitution":
        return value
    return {key: part for key, part in value.items() if key not in _VERSION or key == "principles"}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of errors with these statuses, and of any other."""
    described: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": _STATUSES[status]} for status in statuses
    }
    # With a default FastAPI leaves out its own 422, which `install_error_shape` turns into a 400.
    return {**described, "default": {"model": ErrorBody, "description": "Any other error, in the same shape."}}


_STATUSES = {
    400: "Something in the request is wrong; `param` names it.",
    401: "No API key was sent, or it is unknown or revoked.",
    403: "The key may not do this.",
    404: "It does not exist, or it is not yours.",
    406: "None of the formats in Accept can be written.",
    412: "The active version is not the one that If-Match names.",
    413: "The body is over the limit.",
    415: "The Content-Type is none that this route takes.",
    503: "The store cannot be used now; nothing was written.",
}
