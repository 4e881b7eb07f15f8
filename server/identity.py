"""Who is calling: API key to user, sub-users, and the salt that keeps tenants' cached prefixes apart."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

from server.errors import Forbidden, StoreUnavailable, Unauthenticated
from server.names import check_user, tenant_of, user_from
from server.records import ApiKey
from server.tokens import PREFIX, digest_of, key_id_of

USER_HEADER: Final = "x-preamble-user"
DEFAULT_USER: Final = "default"
ADMIN_USER: Final = "admin"

_REMEMBERED: Final = 10_000
SECRET_FILE: Final = "secret"  # noqa: S105 -- a file name
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller of one request.

    `user` is who they act as, `tenant` the part of it before the colon. `key_id` is None without a key from the store.
    `assumed`: nobody said who the user is, so the body's `user` field may.
    """

    user: str
    tenant: str
    admin: bool
    key_id: str | None = None
    may_name_sub_users: bool = False
    assumed: bool = False

    def may_act_for(self, user: str) -> bool:
        """Return whether the caller may see and change what belongs to `user`."""
        return self.admin or user == self.user or (self.may_name_sub_users and user.startswith(self.tenant + ":"))


class KeySource(Protocol):
    """Where keys are looked up; `server.directory.Directory` is one."""

    def key(self, key_id: str) -> ApiKey | None:
        """Return a live key."""


class Identifier:
    """Tells who is calling from the headers of a request. Does no I/O.

    `auth_required`: a request without a valid key is refused. Without it, keys of ours are still checked, and whoever
    sends none is the operator of this machine: an admin who may name any user. `admin_key`: an admin key that is in
    the settings and not in the store.
    """

    def __init__(self, keys: KeySource, *, auth_required: bool, admin_key: str | None = None) -> None:
        self._keys = keys
        self._auth_required = auth_required
        self._admin_digest = None if admin_key is None else digest_of(admin_key.encode())
        self._admin = Identity(user=ADMIN_USER, tenant=ADMIN_USER, admin=True)
        self._default = Identity(user=DEFAULT_USER, tenant=DEFAULT_USER, admin=True, assumed=True)
        # What a key and a user header make, for as long as the key is the very same object: building it anew would
        # cost more than all the rest of `identify`.
        self._known: dict[tuple[str, bytes | None], tuple[ApiKey, Identity]] = {}

    def identify(self, authorization: bytes | None, api_key: bytes | None, user: bytes | None) -> Identity:
        """Return the caller, from the values of Authorization, x-api-key and x-preamble-user.

        Raises `Unauthenticated`, `Forbidden` if the key may not act as that user, `BadRequest` for what is no name.
        """
        token = _token(authorization, api_key)
        if token is not None:
            # One hash of a fixed length, then comparisons in constant time: how long it takes tells nothing of a key.
            digest = digest_of(token)
            key_id = key_id_of(token)
            if key_id is not None:
                key = self._keys.key(key_id)
                if key is not None and hmac.compare_digest(digest, key.digest):
                    known = self._known.get((key_id, user))
                    return known[1] if known is not None and known[0] is key else self._of_key(key, user)
            if self._admin_digest is not None and hmac.compare_digest(digest, self._admin_digest):
                return self._admin if user is None else _as(self._admin, user)
        if self._auth_required or (token is not None and token.startswith(PREFIX)):
            raise Unauthenticated(
                "No API key was sent. Send one as 'Authorization: Bearer pre_...' or 'x-api-key: pre_...'."
                if token is None
                else "The API key is not valid: it is unknown or has been revoked. Ask an admin for a new one, or make "
                "one with `preamble keys create`."
            )
        return self._default if user is None else _operator_as(user)

    def _of_key(self, key: ApiKey, user: bytes | None) -> Identity:
        identity = Identity(key.user, tenant_of(key.user), key.admin, key.id, key.may_name_sub_users)
        if user is not None:
            identity = _as(identity, user)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key.id, user] = (key, identity)
        return identity

    def with_body_user(self, identity: Identity, value: object) -> Identity:
        """Return who the body's `user` field names, if neither key nor header has said who is calling.

        Text that is no user's name stands for a made-up name, always the same one; anything but text is ignored here:
        whether the field is valid is for the upstream to say.
        """
        if not identity.assumed or not isinstance(value, str) or not value:
            return identity
        user = user_from(value)
        return Identity(user=user, tenant=tenant_of(user), admin=identity.admin)


def _token(authorization: bytes | None, api_key: bytes | None) -> bytes | None:
    """Return the credential. x-api-key (Anthropic's header) counts if there is no bearer token, or only it is ours."""
    token = authorization[7:].strip() if authorization is not None and authorization[:7].lower() == b"bearer " else b""
    if api_key is not None and not token.startswith(PREFIX) and (not token or api_key.startswith(PREFIX)):
        token = api_key.strip()
    return token or None


def _as(identity: Identity, user: bytes) -> Identity:
    """Return the identity as the user named by the header, if its key may name them."""
    name = check_user(user.decode("latin-1"), USER_HEADER)
    if name == identity.user:
        return identity
    if not identity.may_name_sub_users:
        raise Forbidden(
            f"This key acts as {identity.user!r} only. Leave out {USER_HEADER}, or use a key that may name sub-users.",
            param=USER_HEADER,
        )
    root = identity.tenant
    if ":" in name and not name.startswith(root + ":"):
        raise Forbidden(
            f"This key may name sub-users of {root!r} only. Send the name alone, or '{root}:<name>'.", param=USER_HEADER
        )
    full = name if ":" in name else f"{root}:{name}"
    return Identity(user=full, tenant=root, admin=identity.admin, key_id=identity.key_id, may_name_sub_users=True)


def _operator_as(user: bytes) -> Identity:
    name = check_user(user.decode("latin-1"), USER_HEADER)
    return Identity(user=name, tenant=tenant_of(name), admin=True)


class Salt:
    """Makes vLLM's `cache_salt` of a tenant: requests with different salts share no cached prefix."""

    def __init__(self, secret: bytes, *, remembered: int = 10_000) -> None:
        """Use `secret`; the salts of the `remembered` most recent tenants are kept in memory."""

        def salt(tenant: str) -> str:
            return hmac.new(secret, b"preamble cache_salt\0" + tenant.encode(), "sha256").hexdigest()

        self._salt: Callable[[str], str] = lru_cache(maxsize=remembered)(salt)

    def cache_salt(self, tenant: str) -> str:
        """Return the hex HMAC-SHA256 of the tenant, 64 characters: nobody without the secret can guess it."""
        return self._salt(tenant)


def load_or_create_secret(data_dir: Path) -> bytes:
    """Return the secret of this installation, made on the first call; only the owner can read its file.

    Processes that start at the same time get the same one. Raises `StoreUnavailable` with the remedy if the file cannot
    be made, is damaged, or others may read it.
    """
    path = data_dir / SECRET_FILE
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _create_secret(path)
        if path.stat().st_mode & 0o007:
            raise StoreUnavailable(f"Others can read the secret behind cache salts. Run: chmod 600 {path}")
        secret = path.read_bytes().strip()
    except OSError as error:
        raise StoreUnavailable(
            f"The secret behind cache salts cannot be used ({error.strerror}: {error.filename}). Give the proxy's user "
            "access to data_dir, or set `secret`."
        ) from error
    if len(secret) != 2 * _SECRET_BYTES:
        raise StoreUnavailable(f"The secret behind cache salts is damaged. Delete {path} to have a new one made.")
    return secret


def _create_secret(path: Path) -> None:
    """Put a complete file in place in one step; whoever comes second leaves the first one's."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_hex(_SECRET_BYTES).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename, it fails if the name is taken
        except FileExistsError:
            return
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        temporary.unlink()
