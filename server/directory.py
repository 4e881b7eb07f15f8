"""What a worker process holds in memory: all live API keys and default policies, recent users' constitutions.

The request path reads it without waiting. `fresh` says whether the store has changed since; then `refresh` reads what
has changed and drops just that. As every writer raises the signal before it acknowledges, a request that begins after
an acknowledged write sees it, in every worker.

When the store cannot be read, what is in memory is served on: `degraded` is True, each failed attempt (at most one a
second) is reported, and a user who is not in memory gets `StoreUnavailable`. This is safe for as long as nothing has
changed, and then it has no limit. Once something has changed that cannot be read it may be the revocation of a key, so
the limit is `max_stale_s`: after that all requests get `StoreUnavailable` until the store can be read again.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, Protocol

from constitutions.compose import render_block
from server.errors import BadRequest, NotFound, StoreUnavailable
from server.generation import ChangeSignal
from server.policy import PolicyFields, from_content
from server.records import ApiKey, Changes, ConstitutionVersion, UserPolicy

_RETRY_S: Final = 1.0
_TAG: Final = re.compile(r"[a-z0-9_]{1,20}@[0-9]{1,9}")


class Miss(Enum):
    """The type of `MISS`, so that it can be told from None by type checkers."""

    MISS = "miss"


MISS: Final = Miss.MISS
"""Not in memory: it has to be loaded. None, in contrast, says that the user has no constitution."""


@dataclass(frozen=True, slots=True)
class ActiveConstitution:
    """A constitution, ready to be sent. `block`: what the model reads. `tag`: `<id>@<version>`; `header`: its bytes."""

    tag: str
    header: bytes
    block: str

    @classmethod
    def of(cls, version: ConstitutionVersion) -> ActiveConstitution:
        """Return a version, rendered."""
        return cls(tag=version.tag, header=version.tag.encode(), block=render_block(version.constitution))


class DirectorySource(Protocol):
    """What the directory reads; `server.store.Store` is one. All methods block and may raise `StoreUnavailable`."""

    @property
    def signal(self) -> ChangeSignal:
        """Says when there is something new."""

    def changes_since(self, number: int) -> Changes:
        """Return what changed after change `number`; -1 asks for everything."""

    def key(self, key_id: str) -> ApiKey | None:
        """Return a key, revoked or not."""

    def keys(self, *, live_only: bool = False) -> tuple[ApiKey, ...]:
        """Return all keys."""

    def find_policy(self, user: str) -> UserPolicy | None:
        """Return the user's default policy."""

    def policies(self) -> tuple[UserPolicy, ...]:
        """Return all users' default policies."""

    def find_active(self, user: str) -> ConstitutionVersion | None:
        """Return the user's active version."""

    def version(self, user: str, version: int) -> ConstitutionVersion:
        """Return a version; raise `NotFound`."""


@dataclass(frozen=True, slots=True)
class _News:
    """What has been read: changes, and what they are about as it is now. None: it is not there any more."""

    changes: Changes
    keys: Mapping[str, ApiKey | None]
    policies: Mapping[str, PolicyFields | _Damaged | None]


@dataclass(frozen=True, slots=True)
class _Damaged:
    """A stored policy that cannot be read: a matter of its user's requests, not of everybody's."""

    tag: str


class Directory:
    """The view of one worker. All methods belong to its event loop; it starts empty and not fresh.

    `max_users` and `max_chars` bound the constitutions in memory, whichever is reached first; the least recently used
    go. `on_failure` is called for every failed attempt to read changes. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        source: DirectorySource,
        *,
        max_users: int = 10_000,
        max_chars: int = 64 * 1024 * 1024,
        max_stale_s: float = 60.0,
        on_failure: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._latest = source.signal.current
        self._max_users = max_users
        self._max_chars = max_chars
        self._max_stale_s = max_stale_s
        self._on_failure = on_failure
        self._clock = clock
        self._read_upto = -1
        self._keys: dict[str, ApiKey] = {}
        self._policies: dict[str, PolicyFields | _Damaged] = {}
        self._users: OrderedDict[str, ActiveConstitution | None] = OrderedDict()
        self._chars = 0
        self._loading: dict[str, asyncio.Task[ActiveConstitution | None]] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._stale_since: float | None = None
        self._retry_at = 0.0

    @property
    def fresh(self) -> bool:
        """True when nothing has changed since the latest `refresh`. No I/O, about 0.1 microseconds."""
        return self._latest() <= self._read_upto

    @property
    def degraded(self) -> bool:
        """True while there are changes that could not be read."""
        return self._stale_since is not None

    def key(self, key_id: str) -> ApiKey | None:
        """Return a live key; None if there is none with this id, or it is revoked."""
        return self._keys.get(key_id)

    def policy(self, user: str) -> PolicyFields | None:
        """Return the user's default policy, None if they have none. Raises `StoreUnavailable` if it is damaged.

        All are in memory, so that a request of somebody who has none, which is most, never waits to learn it.
        """
        found = self._policies.get(user)
        if isinstance(found, _Damaged):
            raise StoreUnavailable(
                f"The stored policy {found.tag} is damaged. PUT /v1/policy replaces it, DELETE removes it."
            )
        return found

    def lookup(self, user: str) -> ActiveConstitution | Literal[Miss.MISS] | None:
        """Return the user's active constitution, None if they have none, or `MISS`: then `load` it."""
        found = self._users.get(user, MISS)
        if found is not MISS:
            self._users.move_to_end(user)
        return found

    async def refresh(self) -> None:
        """Read what has changed. Raises `StoreUnavailable` if that has not been possible for longer than allowed."""
        if self._refreshing is None:
            if self._clock() < self._retry_at:
                self._check_staleness()
                return
            self._refreshing = asyncio.create_task(self._refresh())
        # Shielded: the request that happened to start it may be cancelled, others wait for it too.
        await asyncio.shield(self._refreshing)
        self._check_staleness()

    async def load(self, user: str) -> ActiveConstitution | None:
        """Return the user's active constitution from the store. Raises `StoreUnavailable`.

        Requests for the same user at the same time share one reading.
        """
        task = self._loading.get(user)
        if task is None:
            task = self._loading[user] = asyncio.create_task(self._load(user))
            task.add_done_callback(_retrieve)
        return await asyncio.shield(task)

    async def load_version(self, user: str, tag: str) -> ActiveConstitution:
        """Return the version of the user's own constitution that `tag` (`<id>@<version>`) names.

        The active one comes from memory if it is there, others from the store. Raises `BadRequest` for what is no tag,
        `NotFound`, also if it is another user's, and `StoreUnavailable`.
        """
        active = self._users.get(user)
        if active is not None and active.tag == tag:
            return active
        if _TAG.fullmatch(tag) is None:
            raise BadRequest(
                "'x-preamble-constitution' names no version. Send <id>@<version>, or 'none' to leave the constitution "
                "out, or leave the header out to use the active version.",
                param="x-preamble-constitution",
            )
        constitution_id, _, number = tag.partition("@")
        version = await asyncio.to_thread(self._source.version, user, int(number))
        if version.id != constitution_id:
            raise NotFound(
                f"You have no constitution {constitution_id}. GET /v1/constitution tells yours.",
                param="x-preamble-constitution",
                code="constitution_not_found",
            )
        return ActiveConstitution.of(version)

    async def _refresh(self) -> None:
        try:
            news = await asyncio.to_thread(self._read_news, self._read_upto)
        except StoreUnavailable:
            now = self._clock()
            self._retry_at = now + _RETRY_S
            if self._stale_since is None:
                self._stale_since = now
            self._on_failure()
        else:
            self._apply(news)
            self._stale_since = None
            self._retry_at = 0.0
        finally:
            self._refreshing = None

    def _read_news(self, upto: int) -> _News:
        """Return the changes and what they are about; called in a thread."""
        source = self._source
        changes = source.changes_since(upto)
        if changes.everything:
            keys = {key.id: key for key in source.keys(live_only=True)}
            return _News(changes, keys, {policy.user: _fields(policy) for policy in source.policies()})
        return _News(
            changes,
            {key_id: source.key(key_id) for key_id in changes.keys},
            {user: _fields(source.find_policy(user)) for user in changes.policies},
        )

    def _apply(self, news: _News) -> None:
        changes = news.changes
        if changes.everything:
            self._keys.clear()
            self._policies.clear()
            self._users.clear()
            self._chars = 0
            # Whoever loads now may have read what was before the change: nobody may join them, nothing is kept.
            self._loading.clear()
        for user in changes.users:
            self._loading.pop(user, None)
            self._forget(user)
        for key_id, key in news.keys.items():
            if key is None or key.revoked_at is not None:
                self._keys.pop(key_id, None)
            else:
                self._keys[key_id] = key
        for user, policy in news.policies.items():
            if policy is None:
                self._policies.pop(user, None)
            else:
                self._policies[user] = policy
        self._read_upto = changes.upto

    def _check_staleness(self) -> None:
        if self._read_upto < 0:
            raise StoreUnavailable("The store cannot be read, and nothing has been read from it yet. Try again.")
        if self._stale_since is not None and self._clock() - self._stale_since > self._max_stale_s:
            raise StoreUnavailable(
                "The store has changed and cannot be read, so it is not known who may still do what. Try again; "
                "`preamble doctor` says what is wrong with the store."
            )

    async def _load(self, user: str) -> ActiveConstitution | None:
        task = asyncio.current_task()
        try:
            active = await asyncio.to_thread(self._read_active, user)
            if self._loading.get(user) is task:
                self._remember(user, active)
        finally:
            if self._loading.get(user) is task:
                del self._loading[user]
        return active

    def _read_active(self, user: str) -> ActiveConstitution | None:
        version = self._source.find_active(user)
        return None if version is None else ActiveConstitution.of(version)

    def _remember(self, user: str, active: ActiveConstitution | None) -> None:
        self._forget(user)
        self._users[user] = active
        self._chars += _chars(active)
        while len(self._users) > self._max_users or self._chars > self._max_chars:
            self._chars -= _chars(self._users.popitem(last=False)[1])

    def _forget(self, user: str) -> None:
        self._chars -= _chars(self._users.pop(user, None))


def _fields(policy: UserPolicy | None) -> PolicyFields | _Damaged | None:
    if policy is None:
        return None
    try:
        return from_content(policy.content)
    except ValueError:
        return _Damaged(policy.tag)


def _chars(active: ActiveConstitution | None) -> int:
    return 0 if active is None else len(active.block)


def _retrieve(task: asyncio.Task[ActiveConstitution | None]) -> None:
    """Take the exception of a task for which all have stopped waiting; else asyncio would complain of it."""
    if not task.cancelled():
        task.exception()
