"""The store: API keys, constitutions with their versions, default policies, and the list of what has changed.

Synchronous: the request path does not wait for it, it reads `server.directory`. Every write is one transaction that
also notes the change; it returns when the write is on the disk and all worker processes have been told of it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, Self

import orjson
import sqlalchemy as sa

from constitutions.constitution import Constitution, ConstitutionError
from constitutions.plain import from_plain, to_plain
from server import policy_rows
from server.database import Database
from server.errors import BadRequest, NotFound, PreconditionFailed, StoreUnavailable
from server.generation import ChangeSignal
from server.names import check_user
from server.records import ApiKey, Changes, ConstitutionVersion, UserPolicy, matches_etag
from server.schema import api_keys, changes, constitution_versions, constitutions, user_policies
from server.tokens import RandomBytes, digest_of, new_id, new_token

MAX_LABEL_CHARS: Final = 200
MAX_VERSION: Final = 2**31 - 1

_CHANGES_KEPT: Final = 10_000
_PRUNE_EVERY: Final = 1_000


class Store:
    """The durable state of the proxy. Threads may share it; processes each open their own.

    Every method raises `StoreUnavailable` if the database cannot be used; a write has then changed nothing.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.time,
        random_bytes: RandomBytes = secrets.token_bytes,
    ) -> None:
        self._database = database
        self._clock = clock
        self._random_bytes = random_bytes

    @classmethod
    def open(cls, url: str) -> Self:
        """Return the store at a SQLAlchemy URL, creating or migrating it as needed. Raises `StoreUnavailable`."""
        return cls(Database(url))

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def signal(self) -> ChangeSignal:
        """Says when there is something new to read with `changes_since`."""
        return self._database.signal

    def ping(self) -> None:
        """Raise `StoreUnavailable` unless the store can be written now."""
        self._database.ping()

    # API keys

    def create_key(
        self, user: str, *, label: str | None = None, admin: bool = False, may_name_sub_users: bool = False
    ) -> tuple[ApiKey, str]:
        """Return a new key and its token, which cannot be had again. Raises `BadRequest`."""
        check_user(user, "user")
        if label is not None and len(label) > MAX_LABEL_CHARS:
            raise BadRequest(f"'label' is too long. Use at most {MAX_LABEL_CHARS} characters.", param="label")
        if may_name_sub_users and ":" in user:
            raise BadRequest(
                "A sub-user has no sub-users. Create the key for the name before the colon.", param="may_name_sub_users"
            )
        with self._write() as write:
            key_id = write.unused_id(api_keys.c.id, self._random_bytes, prefix="", length=8)
            token = new_token(key_id, self._random_bytes)
            key = ApiKey(
                id=key_id,
                digest=digest_of(token.encode()),
                user=user,
                label=label,
                admin=admin,
                may_name_sub_users=may_name_sub_users,
                created_at=self._now(),
            )
            write.connection.execute(
                sa.insert(api_keys).values({column.name: getattr(key, column.name) for column in api_keys.c})
            )
            write.note("key", key_id)
        return key, token

    def revoke_key(self, key_id: str) -> ApiKey:
        """Revoke a key and return it; one that was revoked before stays as it was. Raises `NotFound`."""
        with self._write() as write:
            key = _find_key(write.connection, key_id)
            if key is None:
                raise NotFound("There is no API key with this id. List them to see which there are.", param="key_id")
            if key.revoked_at is None:
                write.connection.execute(
                    sa.update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=self._now())
                )
                write.note("key", key_id)
                key = _find_key(write.connection, key_id) or key
        return key

    def keys(self, *, live_only: bool = False) -> tuple[ApiKey, ...]:
        """Return all keys, the newest first."""
        query = sa.select(api_keys).order_by(api_keys.c.created_at.desc(), api_keys.c.id)
        if live_only:
            query = query.where(api_keys.c.revoked_at.is_(None))
        with self._database.read() as connection:
            return tuple(_key(row) for row in connection.execute(query))

    def key(self, key_id: str) -> ApiKey | None:
        """Return a key, revoked or not; None if there is none."""
        with self._database.read() as connection:
            return _find_key(connection, key_id)

    # Constitutions

    def put(
        self,
        user: str,
        constitution: Constitution,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
    ) -> tuple[ConstitutionVersion, bool]:
        """Make `constitution` the user's active one; return that version, and whether it is a new one.

        What the active version already says makes no new version. `if_match` and `if_none_match` are the values of the
        HTTP fields and hold for the active version (RFC 9110, 13.1). Raises `PreconditionFailed`, `BadRequest`.
        """
        check_user(user, "user")
        with self._write() as write:
            active = _find(write.connection, user)
            _check_if_match(if_match, active)
            if if_none_match is not None and matches_etag(if_none_match, _tag(active)):
                raise PreconditionFailed(
                    "A constitution is already there, and If-None-Match asks that it is not. "
                    "GET it, and send its ETag as If-Match to replace it.",
                    param="if-none-match",
                )
            if active is not None and active.constitution == constitution:
                return active, False
            now = self._now()
            if active is None:
                constitution_id = write.unused_id(constitutions.c.id, self._random_bytes, prefix="con_", length=16)
                number = 1
                write.connection.execute(
                    sa.insert(constitutions).values(
                        id=constitution_id, user=user, active_version=number, created_at=now
                    )
                )
            else:
                constitution_id = active.id
                number = _newest_version(write.connection, constitution_id) + 1
                _set_active(write.connection, constitution_id, number)
            write.connection.execute(
                sa.insert(constitution_versions).values(
                    constitution_id=constitution_id,
                    version=number,
                    content=orjson.dumps(to_plain(constitution)).decode(),
                    created_at=now,
                )
            )
            write.note("constitution", user)
        return ConstitutionVersion(constitution_id, number, user, constitution, active=True, created_at=now), True

    def activate(self, user: str, version: int, *, if_match: str | None = None) -> ConstitutionVersion:
        """Make an existing version the active one and return it. Raises `NotFound`, `PreconditionFailed`."""
        with self._write() as write:
            active = _find(write.connection, user)
            _check_if_match(if_match, active)
            chosen = _found(_find(write.connection, user, version), version)
            if not chosen.active:
                _set_active(write.connection, chosen.id, version)
                write.note("constitution", user)
                chosen = _found(_find(write.connection, user, version), version)
        return chosen

    def delete(self, user: str, *, if_match: str | None = None) -> None:
        """Remove the user's constitution with all its versions, for good. Raises `NotFound`, `PreconditionFailed`."""
        with self._write() as write:
            active = _find(write.connection, user)
            _check_if_match(if_match, active)
            write.connection.execute(sa.delete(constitutions).where(constitutions.c.id == _found(active).id))
            write.note("constitution", user)

    def find_active(self, user: str) -> ConstitutionVersion | None:
        """Return the user's active version, None if there is no constitution."""
        with self._database.read() as connection:
            return _find(connection, user)

    def active(self, user: str) -> ConstitutionVersion:
        """Return the user's active version. Raises `NotFound`."""
        return _found(self.find_active(user))

    def version(self, user: str, version: int) -> ConstitutionVersion:
        """Return one version. Raises `NotFound`."""
        with self._database.read() as connection:
            return _found(_find(connection, user, version), version)

    def versions(
        self, user: str, *, limit: int = 20, before: int | None = None
    ) -> tuple[tuple[ConstitutionVersion, ...], bool]:
        """Return up to `limit` versions, the newest first, and whether there are older ones.

        `before`: only versions with a smaller number. Raises `NotFound` if there is no constitution.
        """
        query = _VERSIONS.where(constitutions.c.user == user).order_by(constitution_versions.c.version.desc())
        if before is not None:
            query = query.where(constitution_versions.c.version < before)
        with self._database.read() as connection:
            _found(_find(connection, user))
            rows = connection.execute(query.limit(limit + 1)).all()
        return tuple(_version(row) for row in rows[:limit]), len(rows) > limit

    # Default policies

    def put_policy(
        self, user: str, content: str, *, if_match: str | None = None, if_none_match: str | None = None
    ) -> tuple[UserPolicy, bool]:
        """Make `content` the user's default policy; return it, and whether that is a change.

        `content` is what `server.policy.to_content` gives; it is not looked into. Raises as `put` does.
        """
        check_user(user, "user")
        with self._write() as write:
            before = policy_rows.find(write.connection, user)
            policy_rows.check(before, if_match, if_none_match)
            if before is not None and before.content == content:
                return before, False
            if before is None:
                policy_id, version = write.unused_id(user_policies.c.id, self._random_bytes, "pol_", 16), 1
            else:
                policy_id, version = before.id, before.version + 1
            policy = UserPolicy(policy_id, version, user, content, updated_at=self._now())
            policy_rows.save(write.connection, policy)
            write.note("policy", user)
        return policy, True

    def delete_policy(self, user: str, *, if_match: str | None = None) -> None:
        """Remove the user's default policy. Raises `NotFound`, `PreconditionFailed`."""
        with self._write() as write:
            before = policy_rows.find(write.connection, user)
            policy_rows.check(before, if_match)
            policy_rows.remove(write.connection, policy_rows.found(before).user)
            write.note("policy", user)

    def find_policy(self, user: str) -> UserPolicy | None:
        """Return the user's default policy, None if there is none."""
        with self._database.read() as connection:
            return policy_rows.find(connection, user)

    def policy(self, user: str) -> UserPolicy:
        """Return the user's default policy. Raises `NotFound`."""
        return policy_rows.found(self.find_policy(user))

    def policies(self) -> tuple[UserPolicy, ...]:
        """Return the default policies of all users."""
        with self._database.read() as connection:
            return policy_rows.every(connection)

    # Changes

    def changes_since(self, number: int) -> Changes:
        """Return what changed after change `number`; -1 asks for everything."""
        with self._database.read() as connection:
            latest = self._database.latest_change(connection)
            oldest = connection.execute(sa.select(sa.func.min(changes.c.seq))).scalar()
            if number < 0 or (oldest is not None and oldest > number + 1):
                return Changes(upto=max(latest, number), everything=True)
            rows = connection.execute(sa.select(changes.c.kind, changes.c.subject).where(changes.c.seq > number)).all()
        subjects: dict[str, set[str]] = {kind: set() for kind in ("key", "constitution", "policy", "everything")}
        for kind, subject in rows:
            subjects[kind].add(subject)
        return Changes(
            upto=max(latest, number),
            keys=frozenset(subjects["key"]),
            users=frozenset(subjects["constitution"]),
            policies=frozenset(subjects["policy"]),
            everything=bool(subjects["everything"]),
        )

    def _now(self) -> int:
        return int(self._clock())

    @contextmanager
    def _write(self) -> Iterator[_Write]:
        """Give a write transaction; when the context ends, it is durable and all workers know."""
        with self._database.write() as connection:
            write = _Write(connection)
            yield write
        if write.latest is not None:
            self.signal.raise_to(write.latest)


class _Write:
    """A write transaction that notes what it changes."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.latest: int | None = None

    def note(self, kind: Literal["key", "constitution", "policy"], subject: str) -> None:
        """Add to the list of changes, and drop its oldest part now and then."""
        result = self.connection.execute(sa.insert(changes).values(kind=kind, subject=subject).returning(changes.c.seq))
        self.latest = seq = int(result.scalar_one())
        if seq % _PRUNE_EVERY == 0:
            self.connection.execute(sa.delete(changes).where(changes.c.seq <= seq - _CHANGES_KEPT))

    def unused_id(self, column: sa.Column[str], random_bytes: RandomBytes, prefix: str, length: int) -> str:
        """Return a random id that the table does not hold yet."""
        while True:
            candidate = prefix + new_id(random_bytes, length)
            if self.connection.execute(sa.select(column).where(column == candidate)).first() is None:
                return candidate


_VERSIONS: Final = sa.select(constitutions, constitution_versions).join(
    constitution_versions, constitution_versions.c.constitution_id == constitutions.c.id
)


def _find(connection: sa.Connection, user: str, version: int | None = None) -> ConstitutionVersion | None:
    """Return a version of the user's constitution, without a number the active one."""
    if version is not None and not 0 < version <= MAX_VERSION:
        return None  # databases refuse to compare with a number that they could not store
    wanted: Any = constitutions.c.active_version if version is None else version
    query = _VERSIONS.where(constitutions.c.user == user, constitution_versions.c.version == wanted)
    row = connection.execute(query).first()
    return None if row is None else _version(row)


def _version(row: sa.Row[Any]) -> ConstitutionVersion:
    values = row._mapping  # noqa: SLF001 - SQLAlchemy's public way to read a row by column, in spite of the name
    constitution_id, number = values[constitutions.c.id], values[constitution_versions.c.version]
    try:
        constitution = from_plain(orjson.loads(values[constitution_versions.c.content]))
    except (orjson.JSONDecodeError, ConstitutionError) as error:
        raise StoreUnavailable(
            f"The stored constitution {constitution_id}@{number} is damaged. Restore the store from a backup, or "
            "activate another version."
        ) from error
    return ConstitutionVersion(
        id=constitution_id,
        version=number,
        user=values[constitutions.c.user],
        constitution=constitution,
        active=number == values[constitutions.c.active_version],
        created_at=values[constitution_versions.c.created_at],
    )


def _found(found: ConstitutionVersion | None, version: int | None = None) -> ConstitutionVersion:
    if found is None and version is None:
        raise NotFound("This user has no constitution. PUT one first.", code="constitution_not_found")
    if found is None:
        raise NotFound(
            f"There is no version {version} of this constitution. GET .../versions lists those there are.",
            param="version",
            code="version_not_found",
        )
    return found


def _check_if_match(if_match: str | None, active: ConstitutionVersion | None) -> None:
    if if_match is None or matches_etag(if_match, _tag(active)):
        return
    there = "there is none" if active is None else f"the active version is {active.tag}"
    raise PreconditionFailed(
        f"If-Match does not name the active version of the constitution: {there}. "
        "GET it again, repeat your change on what you get, and send its ETag.",
        param="if-match",
    )


def _tag(version: ConstitutionVersion | None) -> str | None:
    return None if version is None else version.tag


def _newest_version(connection: sa.Connection, constitution_id: str) -> int:
    query = sa.select(sa.func.max(constitution_versions.c.version))
    return int(connection.execute(query.where(constitution_versions.c.constitution_id == constitution_id)).scalar_one())


def _set_active(connection: sa.Connection, constitution_id: str, version: int) -> None:
    connection.execute(
        sa.update(constitutions).where(constitutions.c.id == constitution_id).values(active_version=version)
    )


def _find_key(connection: sa.Connection, key_id: str) -> ApiKey | None:
    row = connection.execute(sa.select(api_keys).where(api_keys.c.id == key_id)).first()
    return None if row is None else _key(row)


def _key(row: sa.Row[Any]) -> ApiKey:
    return ApiKey(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public way to read a row by column
