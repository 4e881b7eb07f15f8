"""A policy file: the server's default policy as `serve` loads it, found by measurement or written by hand.

JSON: the fields of the `preamble` object of a request, and in `about`, which no decision reads, how they were found:

    {"mode": "adaptive", "n_max": 8, "threshold": 0.62, "checkpoints": [], "about": {"expected": {...}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from adaptive.errors import PolicyError
from adaptive.policy import Policy
from server.errors import BadRequest
from server.policy import PolicyFields, build, read_fields

ABOUT: Final = "about"
_MAX_BYTES: Final = 1 << 20
# What was replayed, all of it said: a default that changes later must not change what was measured.
_WRITTEN: Final = ("mode", "n_max", "threshold", "batch_growth", "annealing", "checkpoints", "scorer", "selector")


class PolicyFileError(ValueError):
    """A file that cannot be followed. The message names file, field and remedy."""


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy file that was read. fields: those that it gives. about: how they were found; may be empty."""

    path: Path
    fields: PolicyFields
    about: Mapping[str, Any]


def read_policy_file(path: Path) -> PolicyFile:
    """Return what is in a policy file. Raises `PolicyFileError`."""
    try:
        with path.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise PolicyFileError(f"{path} cannot be read ({error.strerror}); give an existing file") from error
    if len(content) > _MAX_BYTES:
        raise PolicyFileError(f"{path} is larger than {_MAX_BYTES} bytes, and no policy file; give another")
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise PolicyFileError(f"{path} is not JSON ({error}); correct it there") from error
    if not isinstance(value, dict):
        raise PolicyFileError(f'{path} must be a JSON object such as {{"mode": "adaptive", "n_max": 8}}')
    about = value.pop(ABOUT, {})
    if not isinstance(about, dict):
        raise PolicyFileError(f"{path}: '{ABOUT}' must be a JSON object, or be left out")
    try:
        fields = read_fields(value, "")
        build(fields.said())
    except BadRequest as error:
        raise PolicyFileError(f"{path}: {error.message.removesuffix('.')}; correct it there") from error
    except PolicyError as error:
        raise PolicyFileError(f"{path}: '{error.field}' {error.problem}") from error
    return PolicyFile(path, fields, about)


def policy_fields(policy: Policy) -> dict[str, Any]:
    """Return the fields of a policy that a file gives: all that a replay depends on, as JSON values."""
    said = asdict(policy)
    return {name: said[name] for name in _WRITTEN}


def write_policy_file(path: Path, policy: Policy, about: Mapping[str, Any]) -> None:
    """Write a policy. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**policy_fields(policy), ABOUT: about}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
