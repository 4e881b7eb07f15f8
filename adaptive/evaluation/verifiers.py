"""Verifiers: from the text of a reply to how good it is, by a rule that anybody can check. Pure and deterministic.

A verifier is described by an object with a `kind` and the kind's own fields; `build` checks it and returns a function.
The kinds are those of `KINDS`, the one registry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from adaptive.answers import AnswerError, by_regex
from adaptive.evaluation.ifeval import InstructionError, follows, read_instruction


@dataclass(frozen=True, slots=True)
class Verdict:
    """passed: the reply is right. reward: how nearly, 0 to 1; 1 exactly where it passed."""

    reward: float
    passed: bool


Verifier = Callable[[str], Verdict]


class VerifierError(ValueError):
    """A description that is no verifier. field: the wrong one, such as `verifier.pattern`. problem: with its remedy."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


def build(described: object) -> Verifier:
    """Return the verifier that the object describes. Raises `VerifierError` naming the wrong field."""
    if not isinstance(described, Mapping):
        raise VerifierError("verifier", 'is no object; write one such as {"kind": "exact", "answer": "42"}')
    kind = described.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise VerifierError("verifier.kind", f"is {kind!r}; the kinds are {', '.join(sorted(KINDS))}")
    fields = {name: value for name, value in described.items() if name != "kind"}
    takes, make = KINDS[kind]
    for name in fields:
        if name not in takes:
            raise VerifierError(f"verifier.{name}", f"is unknown; {kind} takes {', '.join(sorted(takes)) or 'none'}")
    return make(fields)


def last_number(text: str) -> Decimal | None:
    """Return the number after the last `####`, or else the last number of the text; None where there is none.

    Thousands separators, currency signs and a trailing point or per cent sign are taken off, so that "$1,200." is 1200.
    """
    marked = text.rpartition("####")[2] if "####" in text else text
    found = _NUMBER.findall(marked) or _NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:  # a number of a million digits
        return None


def _exact(fields: Mapping[str, Any]) -> Verifier:
    answers = _texts(fields, "answer")
    fold = _flag(fields, "ignore_case")
    wanted = {_plain(answer, fold=fold) for answer in answers}
    return lambda reply: _all_or_nothing(_plain(reply, fold=fold) in wanted)


def _regex(fields: Mapping[str, Any]) -> Verifier:
    pattern = _text(fields, "pattern")
    try:
        found = by_regex(pattern)
    except AnswerError as error:
        raise VerifierError("verifier.pattern", str(error)) from error
    if "answer" not in fields:
        return lambda reply: _all_or_nothing(found(reply) is not None)
    wanted = {answer.strip() for answer in _texts(fields, "answer")}
    return lambda reply: _all_or_nothing(found(reply) in wanted)


def _json(fields: Mapping[str, Any]) -> Verifier:
    keys = fields.get("keys", [])
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise VerifierError("verifier.keys", "is no list of texts")

    def verify(reply: str) -> Verdict:
        try:
            value = json.loads(_unfenced(reply))
        except (ValueError, RecursionError):
            return Verdict(0.0, passed=False)
        there = sum(isinstance(value, dict) and key in value for key in keys)
        share = (1 + there) / (1 + len(keys))  # that it parses counts as one
        return Verdict(share, passed=there == len(keys))

    return verify


def _number(fields: Mapping[str, Any]) -> Verifier:
    answer, tolerance = _decimal(fields, "answer"), _decimal(fields, "tolerance", Decimal(0))
    if tolerance < 0:
        raise VerifierError("verifier.tolerance", f"is {tolerance}; give 0 or more")

    def verify(reply: str) -> Verdict:
        number = last_number(reply)
        return _all_or_nothing(number is not None and abs(number - answer) <= tolerance)

    return verify


def _ifeval(fields: Mapping[str, Any]) -> Verifier:
    described = fields.get("instructions")
    if not isinstance(described, list) or not described:
        raise VerifierError("verifier.instructions", 'is no list of objects such as {"id": "punctuation:no_comma"}')
    instructions = []
    for place, each in enumerate(described):
        try:
            instructions.append(read_instruction(each))
        except InstructionError as error:
            raise VerifierError(f"verifier.instructions[{place}]{error.field}", error.problem) from error

    def verify(reply: str) -> Verdict:
        followed = sum(follows(reply, instruction) for instruction in instructions)
        return Verdict(followed / len(instructions), passed=followed == len(instructions))

    return verify


def _no_repetition(fields: Mapping[str, Any]) -> Verifier:
    size = fields.get("words", 4)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise VerifierError("verifier.words", f"is {size!r}; give a whole number, 1 or more")

    def verify(reply: str) -> Verdict:
        said = [word.casefold() for word in _WORD.findall(reply)]
        runs = [tuple(said[start : start + size]) for start in range(len(said) - size + 1)]
        return _all_or_nothing(bool(said) and len(set(runs)) == len(runs))

    return verify


KINDS: Final[Mapping[str, tuple[frozenset[str], Callable[[Mapping[str, Any]], Verifier]]]] = {
    "exact": (frozenset({"answer", "ignore_case"}), _exact),
    "regex": (frozenset({"pattern", "answer"}), _regex),
    "json": (frozenset({"keys"}), _json),
    "number": (frozenset({"answer", "tolerance"}), _number),
    "ifeval": (frozenset({"instructions"}), _ifeval),
    "no_repetition": (frozenset({"words"}), _no_repetition),
}
"""Kind to the fields that it takes and what makes a verifier of them."""

_NUMBER: Final = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_WORD: Final = re.compile(r"\w+")
_FENCED: Final = re.compile(r"\A```\w*\n?(.*?)\n?```\Z", re.DOTALL)


def _all_or_nothing(passed: bool) -> Verdict:
    return Verdict(float(passed), passed=passed)


def _plain(text: str, *, fold: bool) -> str:
    text = " ".join(text.split())
    return text.casefold() if fold else text


def _unfenced(reply: str) -> str:
    stripped = reply.strip()
    fenced = _FENCED.match(stripped)
    return fenced[1] if fenced else stripped


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise VerifierError(f"verifier.{name}", "is missing; it is a text" if value is None else "is no text")
    return value


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return one text, or a list of which any will do."""
    value = fields.get(name)
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return tuple(value)
    return (_text(fields, name),)


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise VerifierError(f"verifier.{name}", "is neither true nor false")
    return value


def _decimal(fields: Mapping[str, Any], name: str, default: Decimal | None = None) -> Decimal:
    value = fields.get(name, default)
    if value is None or isinstance(value, bool):
        raise VerifierError(f"verifier.{name}", "is missing; it is a number" if value is None else "is no number")
    try:
        number = Decimal(str(value).replace(",", ""))
    except InvalidOperation as error:
        raise VerifierError(f"verifier.{name}", f"is {value!r}, which is no number") from error
    if not number.is_finite():
        raise VerifierError(f"verifier.{name}", f"is {value!r}; give a finite number")
    return number
