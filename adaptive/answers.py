"""Taking the answer out of a reply, so that replies which say the same in other words can be counted together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final

import regex  # type: ignore[import-untyped]  # it ships no types

MAX_PATTERN_CHARS: Final = 500
REGEX_TIMEOUT_S: Final = 0.05
_STEP: Final = re.compile(r"\.([A-Za-z_][\w-]*)|\[(\d+)\]")


class AnswerError(ValueError):
    """A pattern or a path that cannot be read; the message says why, and the remedy."""


def by_regex(pattern: str, *, timeout_s: float = REGEX_TIMEOUT_S) -> Callable[[str], str | None]:
    """Return a function from a reply to its answer: group 1 (else all) of the last match, stripped; None without one.

    A pattern comes from a user, and some take exponential time. A search that takes longer than `timeout_s` finds
    nothing; the standard library's `re` cannot be stopped, hence the `regex` package. Raises `AnswerError`.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise AnswerError(f"has {len(pattern)} characters; shorten it to {MAX_PATTERN_CHARS}")
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise AnswerError(f"is no regular expression: {error}") from error
    group = 1 if compiled.groups else 0

    def answer(reply: str) -> str | None:
        last: str | None = None
        try:
            for match in compiled.finditer(reply, timeout=timeout_s):
                last = match.group(group)
        except TimeoutError:
            return None
        return last.strip() if last is not None else None

    return answer


def by_json_path(path: str) -> Callable[[str], str | None]:
    """Return a function from a reply, itself JSON, to the value at a path such as `$.result[0].total`.

    The value is given as canonical JSON, so that 1 and 1.0 differ but the order of keys does not matter. None for a
    reply that is no JSON or has nothing there. Raises `AnswerError` for a path of anything but names and indices.
    """
    steps: list[str | int] = []
    rest = path.removeprefix("$")
    rest = rest if rest.startswith(("[", ".")) or not rest else f".{rest}"
    while rest:
        step = _STEP.match(rest)
        if step is None:
            raise AnswerError(f"cannot be read at {rest!r}; write names and indices, such as $.result[0].total")
        steps.append(step[1] if step[1] is not None else int(step[2]))
        rest = rest[step.end() :]

    def answer(reply: str) -> str | None:
        try:
            value = json.loads(reply)
            for step in steps:
                value = value[step]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            return None
        return json.dumps(value, sort_keys=True, ensure_ascii=False)

    return answer
