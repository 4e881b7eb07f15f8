"""How users are named: `root`, or `root:sub` for a sub-user. The tenant is the root."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from server.errors import BadRequest

_USER: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}(?::[A-Za-z0-9._@-]{1,64})?")
_RULE: Final = (
    "Use 1 to 64 letters, digits, '.', '_', '@' or '-'; a sub-user is two such names with a colon between them."
)


def is_user(name: str) -> bool:
    """Return whether `name` is a user's name."""
    return _USER.fullmatch(name) is not None


def check_user(name: str, param: str) -> str:
    """Return `name`; raise `BadRequest` naming `param` if it is no user's name."""
    if not is_user(name):
        raise BadRequest(f"'{param}' is not a user's name. {_RULE}", param=param, code="invalid_user")
    return name


def tenant_of(user: str) -> str:
    """Return the part before the colon: who owns the user's keys, and whose cached prefixes it may share."""
    return user.partition(":")[0]


def user_from(value: str) -> str:
    """Return `value` if it is a user's name, else a name made from its digest: always the same for the same value.

    OpenAI clients put anything into the body's `user` field; no request should fail for that.
    """
    if is_user(value):
        return value
    return "u-" + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:32]
