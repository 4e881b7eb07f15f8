"""What a constitution is: an ordered list of principles, valid once built. Knows nothing of formats or of messages."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

MAX_NOTE_CHARS = 2000
"""Longest note of a principle, in characters."""

_BYTES_PER_CHAR = 12
"""The most that one character takes in a body: JSON may write one outside the BMP as two \\uXXXX escapes."""

_OTHER_BYTES_PER_PRINCIPLE = 1024
"""Generous room for keys, attributes and indentation around one principle."""

# C0 without tab and line feed, DEL, C1, and surrogates, which no UTF-8 text can hold.
_REFUSED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class ConstitutionError(ValueError):
    """What was given is no constitution, or breaks a limit.

    `path` names the place as a client would, counting from 0 (`principles[3].text`), and is empty when it is the whole
    body. `message` is a whole sentence: what is wrong there, and what to do about it. `problem` is that sentence
    without its subject.
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        self.message = f"{path or 'the constitution'} {problem}"
        super().__init__(self.message)

    def inside(self, outer: str) -> ConstitutionError:
        """Return the same error with `outer` put before the path."""
        return ConstitutionError(f"{outer}.{self.path}" if self.path else outer, self.problem)


class Dimension(StrEnum):
    """What a principle is about: the four dimensions along which Janus describes a user's preferences."""

    STYLE = "style"
    BACKGROUND_KNOWLEDGE = "background_knowledge"
    INFORMATIVENESS = "informativeness"
    HARMLESSNESS = "harmlessness"


@dataclass(frozen=True, slots=True)
class Principle:
    r"""One rule in natural language.

    `text` is what the model reads. `weight` is finite and at least 0; 0 keeps the principle and leaves it out of what
    the model reads, any other value is for later steps and changes neither order nor words. `note` (at most
    `MAX_NOTE_CHARS` characters) is for people and is never sent to the model. Text and note are canonical once built:
    no surrounding whitespace, line breaks as `\n`, an empty note is None. Raises `ConstitutionError`.
    """

    text: str
    dimension: Dimension | None = None
    weight: float = 1.0
    note: str | None = None

    def __post_init__(self) -> None:
        text = _canonical("text", self.text)
        if not any(is_visible(char) for char in text):
            raise ConstitutionError("text", "is empty: write the principle, or remove it from the list")
        note = _canonical("note", self.note) if self.note is not None else ""
        if len(note) > MAX_NOTE_CHARS:
            raise ConstitutionError(
                "note", f"has {len(note)} characters, and a note has at most {MAX_NOTE_CHARS}: shorten it"
            )
        if not math.isfinite(self.weight) or self.weight < 0:
            raise ConstitutionError(
                "weight", f"is {self.weight}: give a number that is 0 or more; 0 keeps the principle without sending it"
            )
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "note", note or None)
        object.__setattr__(self, "weight", abs(float(self.weight)))  # abs: there is no weight of -0.0

    @property
    def folded(self) -> str:
        """The text with each run of whitespace as one space: what makes two principles the same."""
        return " ".join(self.text.split())


@dataclass(frozen=True, slots=True)
class Constitution:
    """Principles in order of importance, the most important first; at least one, no two the same.

    Raises `ConstitutionError`.
    """

    principles: tuple[Principle, ...]

    def __post_init__(self) -> None:
        if not self.principles:
            raise ConstitutionError(
                "principles", "is empty: give at least one principle; to remove a constitution, use DELETE"
            )
        first: dict[str, int] = {}
        for index, principle in enumerate(self.principles):
            earlier = first.setdefault(principle.folded, index)
            if earlier != index:
                raise ConstitutionError(
                    f"principles[{index}].text", f"is the same as principles[{earlier}].text: remove one of the two"
                )

    @property
    def chars(self) -> int:
        """Characters of all principle texts together."""
        return sum(len(principle.text) for principle in self.principles)

    def within(self, limits: Limits) -> Self:
        """Return this constitution; raise `ConstitutionError` if it is over one of the limits."""
        limits.check_count(len(self.principles))
        for index, principle in enumerate(self.principles):
            if len(principle.text) > limits.max_principle_chars:
                raise ConstitutionError(
                    f"principles[{index}].text",
                    f"has {len(principle.text)} characters, and a principle has at most {limits.max_principle_chars}: "
                    "shorten it, or make several principles of it",
                )
        if self.chars > limits.max_chars:
            raise ConstitutionError(
                "principles",
                f"has {self.chars} characters in all, and a constitution has at most {limits.max_chars}: "
                "shorten or remove principles",
            )
        return self


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a constitution may be. The counts of characters are of principle texts, notes not included."""

    max_principles: int = 64
    max_principle_chars: int = 2000
    max_chars: int = 16_000

    @property
    def max_body_bytes(self) -> int:
        """Bytes that hold any constitution within the limits in any format; a larger body is refused unparsed."""
        chars = self.max_chars + self.max_principles * MAX_NOTE_CHARS
        return _BYTES_PER_CHAR * chars + _OTHER_BYTES_PER_PRINCIPLE * (self.max_principles + 1)

    def check_count(self, count: int) -> None:
        """Raise `ConstitutionError` if `count` principles are too many."""
        if count > self.max_principles:
            raise ConstitutionError(
                "principles",
                f"has more than {self.max_principles} entries, the most that a constitution may have: "
                "remove or merge the least important",
            )


def is_visible(char: str) -> bool:
    """Return whether a character shows: it is neither whitespace nor a format character such as a zero-width space."""
    return not char.isspace() and unicodedata.category(char) != "Cf"


def _canonical(field: str, value: str) -> str:
    value = value.replace("\r\n", "\n")
    if found := _REFUSED.search(value):
        raise ConstitutionError(
            field,
            f"contains the control character U+{ord(found[0]):04X} at position {found.start()}: remove it; "
            "line breaks and tabs are the only ones allowed",
        )
    return value.strip()
