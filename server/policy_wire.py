"""A user's default policy as clients see it over REST and on the command line, and as OpenAPI describes it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from server.errors import BadRequest, StoreUnavailable
from server.policy import USER_DEFAULT, PolicyFields, from_content, resolve
from server.records import UserPolicy
from server.wire import error_responses

OBJECT: Final = "policy"
SAID: Final = "said"

_EXAMPLE: Final[dict[str, Any]] = {
    "object": OBJECT,
    "id": "pol_k2x7q4mzpa5bd3vw",
    "version": 2,
    "user": "acme:alice",
    "updated_at": 1767225600,
    SAID: {"mode": "adaptive", "n_max": 4},
    "effective": {**PolicyFields().model_dump(mode="json"), "n_max": 4},
    "problem": None,
    "default_from": "policy_file (policy.json)",
}


class PolicyBody(BaseModel):
    """A user's default policy: what their chat requests get, field by field, where they say nothing themselves."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    object: Literal["policy"]
    id: str = Field(description="Stays the same until the policy is deleted.")
    version: int = Field(ge=1, description="Counts the changes.")
    user: str
    updated_at: int = Field(description="Unix time in seconds.")
    said: PolicyFields = Field(description="The fields that were PUT, no others.")
    effective: PolicyFields | None = Field(
        description="All fields of a request that says nothing itself: these, then the server's default. Null if they "
        "do not go together any more."
    )
    problem: str | None = Field(None, description="Why there is no effective policy.")
    default_from: str = Field(
        description="What says the server's default: the setting policy, or policy_file with the file's name; default: "
        "neither, and it is off."
    )


def to_plain(policy: UserPolicy, default: PolicyFields, *, default_from: str, reward_model: bool) -> dict[str, Any]:
    """Return a policy as `PolicyBody` describes it; `default` is the server's, default_from: what says it.

    reward_model: the server has one to select by. Raises `StoreUnavailable` if damaged.
    """
    try:
        fields = from_content(policy.content)
    except ValueError as error:
        raise StoreUnavailable(f"The stored policy {policy.tag} is damaged. PUT it anew, or DELETE it.") from error
    effective, problem = None, None
    try:
        effective = asdict(resolve(default, (USER_DEFAULT, fields), reward_model=reward_model))
    except BadRequest as error:
        problem = error.message  # the server's default has changed since it was checked
    return {
        "object": OBJECT,
        "id": policy.id,
        "version": policy.version,
        "user": policy.user,
        "updated_at": policy.updated_at,
        SAID: orjson.loads(policy.content),
        "effective": effective,
        "problem": problem,
        "default_from": default_from,
    }


_HEADERS: Final = {"etag": {"schema": {"type": "string"}, "description": "For If-Match."}}


def _policy(description: str) -> dict[str, Any]:
    return {"model": PolicyBody, "description": description, "headers": _HEADERS}


PUT: Final[dict[str, Any]] = {
    "summary": "Create or replace the default policy",
    "responses": {
        200: _policy("It replaced the one before, or says the same."),
        201: _policy("There was none before."),
        **error_responses(400, 401, 404, 412, 413, 415, 503),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/PolicyFields"}}},
        }
    },
}
GET: Final[dict[str, Any]] = {
    "summary": "Get the default policy",
    "responses": {200: _policy("What was said, and what it comes to."), **error_responses(401, 404, 503)},
}
DELETE: Final[dict[str, Any]] = {
    "summary": "Delete the default policy",
    "status_code": 204,
    "responses": error_responses(401, 404, 412, 503),
}
