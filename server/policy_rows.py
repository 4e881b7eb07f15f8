"""The rows of users' default policies, for `server.store`: SQL on a connection that it is given."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from server.errors import NotFound, PreconditionFailed
from server.records import UserPolicy, matches_etag
from server.schema import user_policies

_COLUMNS: Final = tuple(user_policies.c)


def find(connection: sa.Connection, user: str) -> UserPolicy | None:
    """Return the user's policy, None if there is none."""
    row = connection.execute(sa.select(*_COLUMNS).where(user_policies.c.user == user)).first()
    return None if row is None else _policy(row)


def found(policy: UserPolicy | None) -> UserPolicy:
    """Return the policy; raise `NotFound` if there is none."""
    if policy is None:
        raise NotFound("This user has no policy; the server's default holds. PUT one first.", code="policy_not_found")
    return policy


def every(connection: sa.Connection) -> tuple[UserPolicy, ...]:
    """Return the policies of all users."""
    return tuple(_policy(row) for row in connection.execute(sa.select(*_COLUMNS)))


def save(connection: sa.Connection, policy: UserPolicy) -> None:
    """Write a policy in place of the user's earlier one, if there is one."""
    remove(connection, policy.user)
    values = {column.name: getattr(policy, column.name) for column in _COLUMNS}
    connection.execute(sa.insert(user_policies).values(values))


def remove(connection: sa.Connection, user: str) -> None:
    """Delete the user's policy, if there is one."""
    connection.execute(sa.delete(user_policies).where(user_policies.c.user == user))


def check(policy: UserPolicy | None, if_match: str | None, if_none_match: str | None = None) -> None:
    """Raise `PreconditionFailed` unless the HTTP fields (RFC 9110, 13.1) hold for the policy that there is."""
    tag = None if policy is None else policy.tag
    if if_match is not None and not matches_etag(if_match, tag):
        there = "there is none" if tag is None else f"it is {tag} now"
        raise PreconditionFailed(
            f"If-Match does not name the policy: {there}. GET it again, repeat your change on what you get, and send "
            "its ETag.",
            param="if-match",
        )
    if if_none_match is not None and matches_etag(if_none_match, tag):
        raise PreconditionFailed(
            "A policy is already there, and If-None-Match asks that it is not. GET it, and send its ETag as If-Match "
            "to replace it.",
            param="if-none-match",
        )


def _policy(row: sa.Row[tuple[object, ...]]) -> UserPolicy:
    return UserPolicy(**row._mapping)  # noqa: SLF001 -- SQLAlchemy's public way to read a row by column
