"""A constitution as Markdown: a list that people write by hand, and that comes back exactly as it was.

    # Constitution

    1. Answer in British English.
    2. Keep it short
       unless I ask for more.
       - dimension: style
       - weight: 2
       - note: "long answers tire me"

Reading: each entry of the top-level list (`-`, `*`, `+`, `1.` or `1)`) is a principle; its number does not count.
Headings are skipped. Lines that are indented below an entry continue its text, as does a line that follows it
directly. A nested entry `- dimension:`, `- weight:` or `- note:` is an attribute of the principle; attributes come
after its text, each on one line; a value in double quotes is read as a JSON string. Everything else is literal: no
other Markdown is interpreted. A line of text that looks like an attribute is written with a backslash before its dash,
and one such backslash is taken off when it is read.

Knows the syntax only; what a principle may be is decided in `plain.py`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from constitutions.constitution import Constitution, ConstitutionError, Limits, Principle
from constitutions.plain import shown

_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
_ENTRY = re.compile(r"(?P<indent> *)(?:[-*+]|[0-9]{1,9}[.)])(?:(?P<gap>[ \t]+)(?P<text>.*))?", re.DOTALL)
_ATTRIBUTE = re.compile(
    r"[ \t]*[-*+][ \t]+(?P<name>dimension|weight|note)[ \t]*:(?P<value>.*)", re.DOTALL | re.IGNORECASE
)
_ESCAPABLE = re.compile(r"(?P<indent>[ \t]*)\\*[-*+][ \t]+(?:dimension|weight|note)[ \t]*:", re.IGNORECASE)
_ESCAPED = re.compile(r"(?P<indent>[ \t]*)\\(?=\\*[-*+][ \t]+(?:dimension|weight|note)[ \t]*:)", re.IGNORECASE)

_MOST_INDENT = 3
"""Spaces that an entry of the top-level list may have before it (CommonMark 0.31, section 5.2)."""
_MOST_GAP = 4
"""Spaces after the marker above which the text begins one space after it (the same section)."""


def render_markdown(constitution: Constitution) -> str:
    """Return the constitution as Markdown that `read_markdown` reads back to the same principles."""
    entries = (_render_entry(f"{number}. ", principle) for number, principle in enumerate(constitution.principles, 1))
    return "# Constitution\n\n" + "\n".join(entries) + "\n"


def _render_entry(marker: str, principle: Principle) -> str:
    first, *rest = principle.text.split("\n")
    rest = [_escape(line) for line in rest]
    if principle.dimension is not None:
        rest.append(f"- dimension: {principle.dimension.value}")
    if principle.weight != 1:
        rest.append(f"- weight: {repr(principle.weight).removesuffix('.0')}")
    if principle.note is not None:
        plain = "\n" not in principle.note and not principle.note.startswith('"')
        rest.append(f"- note: {principle.note if plain else json.dumps(principle.note, ensure_ascii=False)}")
    indent = " " * len(marker)
    return "\n".join([marker + first, *(indent + line if line else "" for line in rest)])


def _escape(line: str) -> str:
    match = _ESCAPABLE.match(line)
    return line if match is None else f"{match['indent']}\\{line[match.end('indent') :]}"


@dataclass(slots=True)
class _Entry:
    """One entry of the top-level list while it is read; `column` is where its text begins."""

    indent: int
    column: int
    lines: list[str]
    attributes: dict[str, object] = field(default_factory=dict)

    def plain(self) -> dict[str, object]:
        return {"text": "\n".join(self.lines), **self.attributes}


def read_markdown(text: str, limits: Limits) -> list[dict[str, object]]:
    """Return the principles as plain values, for `from_plain`.

    Raises `ConstitutionError` naming the line, or as soon as there are more principles than `limits` allow.
    """
    entries: list[_Entry] = []
    after_blank = False
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        blank = not line.strip(" \t")
        if not blank and (entry := _begin(line, entries[0].indent if entries else _MOST_INDENT)) is not None:
            entries.append(entry)
            limits.check_count(len(entries))
        elif blank or line[0] in " \t":
            if entries:
                _continue(entries[-1], line, number)
            elif not blank and not _HEADING.match(line):
                raise _misplaced(number, line)
        elif not _HEADING.match(line):
            # CommonMark calls this a lazy continuation line: part of the paragraph though not indented.
            if not entries or after_blank:
                raise _misplaced(number, line)
            _continue(entries[-1], line, number)
        after_blank = blank
    return [entry.plain() for entry in entries]


def _begin(line: str, most_indent: int) -> _Entry | None:
    """Return the entry that `line` begins, if it does: entries are indented no more than the first one."""
    match = _ENTRY.fullmatch(line)
    if match is None or len(match["indent"]) > most_indent:
        return None
    if match["text"] is None:
        return _Entry(len(match["indent"]), len(line) + 1, [""])
    gap = len(match["gap"]) if len(match["gap"]) <= _MOST_GAP else 1
    return _Entry(len(match["indent"]), match.start("gap") + gap, [match["text"]])


def _continue(entry: _Entry, line: str, number: int) -> None:
    line = _dedent(line, entry.column)
    attribute = _ATTRIBUTE.fullmatch(line)
    if attribute is not None:
        name = attribute["name"].lower()
        if name in entry.attributes:
            raise ConstitutionError(
                "", f"has on line {number} a second {name} for one principle: remove one of the two"
            )
        entry.attributes[name] = _value(name, attribute["value"].strip())
    elif not entry.attributes:
        entry.lines.append(_ESCAPED.sub(r"\g<indent>", line, count=1) if _ESCAPED.match(line) else line)
    elif line.strip():
        raise ConstitutionError(
            "",
            f"has on line {number} {shown(line.strip())} after the attributes of a principle, which are dimension, "
            "weight and note, each on one line: move it above them",
        )


def _dedent(line: str, column: int) -> str:
    """Return `line` without the indentation of the entry, which may be less than due or one tab."""
    spaces = min(len(line) - len(line.lstrip(" ")), column)
    return line[spaces + 1 :] if spaces < column and line[spaces : spaces + 1] == "\t" else line[spaces:]


def _value(name: str, written: str) -> object:
    if written.startswith('"'):
        try:
            return json.loads(written)
        except ValueError:
            return written
    if name == "weight":
        try:
            return float(written)
        except ValueError:
            return written
    return written


def _misplaced(number: int, line: str) -> ConstitutionError:
    return ConstitutionError(
        "",
        f"has on line {number} {shown(line.strip())}, which belongs to no principle: begin a principle with '1. ' or "
        "'- ', indent a line that continues one, and remove the rest",
    )
