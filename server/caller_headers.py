"""Tells the REST routes who is calling, and the OpenAPI document how to say so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from server.errors import NotFound
from server.identity import USER_HEADER, Identity
from server.names import check_user

IdentifyCaller = Callable[[bytes | None, bytes | None, bytes | None], Awaitable[Identity]]
"""Returns the caller from the values of Authorization, x-api-key and x-preamble-user, as `Identifier.identify` does."""


async def caller_of(request: Request, identify: IdentifyCaller) -> Identity:
    """Return who sent the request. Raises `Unauthenticated`, `Forbidden`, `BadRequest` or `StoreUnavailable`."""
    return await identify(
        _header(request, "authorization"), _header(request, "x-api-key"), _header(request, USER_HEADER)
    )


async def subject_of(request: Request, identify: IdentifyCaller, resource: str) -> str:
    """Return whose `resource` a request is about: the user in its path, else the caller.

    Raises what `caller_of` raises, and `NotFound` when the caller may not see it.
    """
    identity = await caller_of(request, identify)
    user: str | None = request.path_params.get("user")
    if user is None:
        return identity.user
    if not identity.may_act_for(user):
        # The same for users that exist and for those that do not.
        raise NotFound(
            f"There is no {resource} of this user that you may see. Use an admin key, or /v1/{resource} for your own.",
            code=f"{resource}_not_found",
        )
    return check_user(user, "user")


def caller_parameters() -> Sequence[Any]:
    """Return dependencies that do nothing but describe the headers that `caller_of` reads."""
    return (
        Security(HTTPBearer(auto_error=False, description="An API key: `pre_...`")),
        Security(APIKeyHeader(name="x-api-key", auto_error=False, description="An API key, as Anthropic clients send")),
        Depends(_user_header),
    )


def _user_header(
    x_preamble_user: Annotated[
        str | None,
        Header(description="Acts for a sub-user; for keys that may name sub-users, and without keys on loopback."),
    ] = None,
) -> None:
    pass


def _header(request: Request, name: str) -> bytes | None:
    value = request.headers.get(name)
    return None if value is None else value.encode("latin-1")
