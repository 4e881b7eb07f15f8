"""What the store keeps and returns: keys, constitutions, policies, what has changed. Knows nothing of SQL."""

from __future__ import annotations

from dataclasses import dataclass

from constitutions.constitution import Constitution


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key without its secret.

    `digest` is the SHA-256 of the token. `user` owns the key and is who its bearer acts as. `admin` keys administer all
    users. With `may_name_sub_users` the bearer may act as `<user>:<name>`. Times are Unix seconds; `revoked_at` is None
    while the key is live.
    """

    id: str
    digest: bytes
    user: str
    label: str | None
    admin: bool
    may_name_sub_users: bool
    created_at: int
    revoked_at: int | None = None


class _Tagged:
    """What has an id and a version, and with both a name for one content."""

    __slots__ = ()
    id: str
    version: int

    @property
    def tag(self) -> str:
        """`<id>@<version>`, which names exactly one text for ever."""
        return f"{self.id}@{self.version}"

    @property
    def etag(self) -> str:
        """The tag as HTTP writes an entity tag: in double quotes (RFC 9110, 8.8.3)."""
        return f'"{self.tag}"'


@dataclass(frozen=True, slots=True)
class ConstitutionVersion(_Tagged):
    """One immutable version of a user's constitution; whether it is `active` may change. `created_at`: Unix seconds."""

    id: str
    version: int
    user: str
    constitution: Constitution
    active: bool
    created_at: int


@dataclass(frozen=True, slots=True)
class UserPolicy(_Tagged):
    """A user's default policy. `content`: JSON of the fields that were said, no others. `updated_at`: Unix seconds.

    `version` counts its changes from 1; what was before is not kept.
    """

    id: str
    version: int
    user: str
    content: str
    updated_at: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed after some point, up to and including change number `upto`.

    `keys` are ids; `users` are those whose constitution changed, `policies` those whose default policy did. With
    `everything` the list of changes no longer reaches back that far: all that was read before may be stale.
    """

    upto: int
    keys: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    policies: frozenset[str] = frozenset()
    everything: bool = False


def matches_etag(header: str, tag: str | None) -> bool:
    """Return whether `header`, the value of an If-Match or If-None-Match field, names `tag`; None stands for nothing.

    `*` names whatever exists. Tags are taken with and without quotes, so that the value of `x-preamble-constitution`
    can be used as it is. A weak tag (`W/`) matches too: a tag names one text, there is no weaker sameness.
    """
    if tag is None:
        return False
    given = {part.strip().removeprefix("W/").strip('"') for part in header.split(",")}
    return "*" in given or tag in given
