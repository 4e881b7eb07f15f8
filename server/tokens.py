"""The text of an API key: `pre_<id, 8 characters>_<secret, 43 characters>`, and what is kept of it.

Only the SHA-256 of the whole token is kept. A slow hash (bcrypt, scrypt) protects passwords because people choose them
from a small set; a secret of 256 random bits cannot be found by trying, and hashing it fast keeps requests fast.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Final

RandomBytes = Callable[[int], bytes]

PREFIX: Final = b"pre_"
_ID: Final = slice(4, 12)
_LENGTH: Final = 4 + 8 + 1 + 43


def new_id(random_bytes: RandomBytes, length: int) -> str:
    """Return `length` random characters of a-z and 2-7, five bits each; `length` is a multiple of 8."""
    return base64.b32encode(random_bytes(length * 5 // 8)).decode().lower()


def new_token(key_id: str, random_bytes: RandomBytes) -> str:
    """Return a token for the key `key_id` with a new secret of 256 bits."""
    secret = base64.urlsafe_b64encode(random_bytes(32)).decode().rstrip("=")
    return f"pre_{key_id}_{secret}"


def key_id_of(token: bytes) -> str | None:
    """Return the id inside a token, None if it does not have the form of one. Says nothing of its being valid."""
    if len(token) != _LENGTH or not token.startswith(PREFIX):
        return None
    return token[_ID].decode("latin-1")


def digest_of(token: bytes) -> bytes:
    """Return what is kept of a token: its SHA-256, 32 bytes."""
    return hashlib.sha256(token).digest()
