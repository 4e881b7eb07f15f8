"""What the request path needs to know of callers, their constitutions and policies, kept fresh by the directory."""

from __future__ import annotations

from server.directory import MISS, ActiveConstitution, Directory
from server.errors import NotFound
from server.identity import Identifier, Identity
from server.policy import PolicyFields
from server.tally import Tally


class Callers:
    """Answers from memory; reads the store only when it has changed, or for a user not seen before."""

    def __init__(self, directory: Directory, identifier: Identifier, tally: Tally) -> None:
        self._directory = directory
        self._identifier = identifier
        self._tally = tally

    async def identify(self, authorization: bytes | None, api_key: bytes | None, user: bytes | None) -> Identity:
        """Return the caller named by these headers.

        Raises `Unauthenticated`, `Forbidden`, `BadRequest`, and `StoreUnavailable` when it cannot be known any more.
        """
        if not self._directory.fresh:
            await self._directory.refresh()
        return self._identifier.identify(authorization, api_key, user)

    def with_body_user(self, identity: Identity, value: object) -> Identity:
        """Return the identity when the body's `user` field may name it."""
        return self._identifier.with_body_user(identity, value)

    async def active(self, user: str) -> ActiveConstitution | None:
        """Return the user's active constitution. Raises `StoreUnavailable`."""
        found = self._directory.lookup(user)
        if found is MISS:
            self._tally.misses += 1
            return await self._directory.load(user)
        self._tally.hits += 1
        return found

    def policy(self, user: str) -> PolicyFields | None:
        """Return the user's default policy, None if they have none. Never waits. Raises `StoreUnavailable`."""
        return self._directory.policy(user)

    async def pinned(self, user: str, tag: str) -> ActiveConstitution:
        """Return the version named `<id>@<version>`. Raises `NotFound`, `BadRequest`, `StoreUnavailable`."""
        try:
            return await self._directory.load_version(user, tag)
        except NotFound as error:
            # The store names a field of the REST routes; here it was a header that named the version.
            raise NotFound(error.message, param="x-preamble-constitution", code=error.code) from error
