"""A constitution as plain values (dicts, lists, strings, numbers), the shape that JSON and YAML share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from constitutions.constitution import Constitution, ConstitutionError, Dimension, Limits, Principle

ATTRIBUTES = ("dimension", "weight", "note")
"""What a principle may have beside its text."""

_SHOWN_CHARS = 60


def to_plain(constitution: Constitution) -> dict[str, object]:
    """Return `{"principles": [...]}`, each principle as `principle_to_plain` gives it."""
    return {"principles": [principle_to_plain(principle) for principle in constitution.principles]}


def principle_to_plain(principle: Principle) -> dict[str, object]:
    """Return `text`, and those of `dimension`, `weight` and `note` that differ from their defaults (none, 1, none)."""
    plain: dict[str, object] = {"text": principle.text}
    if principle.dimension is not None:
        plain["dimension"] = principle.dimension.value
    if principle.weight != 1:
        plain["weight"] = principle.weight
    if principle.note is not None:
        plain["note"] = principle.note
    return plain


def from_plain(value: object, limits: Limits | None = None) -> Constitution:
    """Return the constitution that plain values describe.

    `value` is `{"principles": [...]}` or the list alone; a principle is a mapping or just its text. Without `limits`
    any size is taken: what is stored stays readable after a limit has been lowered. Raises `ConstitutionError`.
    """
    rows = _principles_of(value)
    if limits is not None:
        limits.check_count(len(rows))
    constitution = Constitution(tuple(_principle(f"principles[{index}]", row) for index, row in enumerate(rows)))
    return constitution if limits is None else constitution.within(limits)


def _principles_of(value: object) -> list[object]:
    if isinstance(value, dict):
        _only_known_keys("", value, ("principles",))
        if "principles" not in value:
            raise ConstitutionError("principles", "is missing: give a list of principles")
        value = value["principles"]
        path = "principles"
    else:
        path = ""
    if not isinstance(value, list):
        expected = "a list of principles" if path else 'an object such as {"principles": ["Answer briefly."]}'
        raise ConstitutionError(path, f"is {_kind(value)}: give {expected}")
    return value


def _principle(path: str, row: object) -> Principle:
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise ConstitutionError(
            path, f'is {_kind(row)}: give the text as a string, in quotes if need be, or an object with "text"'
        )
    _only_known_keys(path, row, ("text", *ATTRIBUTES))
    if "text" not in row:
        raise ConstitutionError(f"{path}.text", "is missing: write what the principle says")
    try:
        return Principle(
            text=_text("text", row["text"]),
            dimension=_dimension(row.get("dimension")),
            weight=_weight(row.get("weight", 1.0)),
            note=None if row.get("note") is None else _text("note", row["note"]),
        )
    except ConstitutionError as error:
        raise error.inside(path) from None


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConstitutionError(field, f"is {_kind(value)}: give a string, in quotes if need be")
    return value


def _dimension(value: object) -> Dimension | None:
    if value is None:
        return None
    names = [dimension.value for dimension in Dimension]
    if isinstance(value, str) and value in names:
        return Dimension(value)
    wrong = shown(value) if isinstance(value, str) else _kind(value)
    raise ConstitutionError("dimension", f"is {wrong}: {_suggestion(value, names)}give one of {', '.join(names)}")


def _weight(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConstitutionError("weight", f"is {_kind(value)}: give a number that is 0 or more")
    try:
        return float(value)
    except OverflowError:
        raise ConstitutionError("weight", "is too large for a number: give a smaller one") from None


def _only_known_keys(path: str, value: dict[object, object], known: tuple[str, ...]) -> None:
    for key in value:
        if key not in known:
            raise ConstitutionError(
                path,
                f"has the unknown key {shown(key)}: {_suggestion(key, known)}"
                f"remove it, or use one of these: {', '.join(known)}",
            )


def _suggestion(given: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given.lower(), known, n=1) if isinstance(given, str) else []
    return f"did you mean {close[0]!r}? " if close else ""


def shown(value: object) -> str:
    """Return a value as an error message quotes it: printable, and cut where it is long."""
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
