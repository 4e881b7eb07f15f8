"""A constitution as YAML: plain values in and out, nothing that YAML could do beyond them.

Refused, each with its line: anchors and aliases (a few lines of them can stand for gigabytes), tags, keys that are not
strings or that come twice, several documents, deep nesting.
"""

from __future__ import annotations

from typing import Protocol

import yaml

from constitutions.constitution import Constitution, ConstitutionError, Limits
from constitutions.plain import shown, to_plain

_MOST_DEPTH = 8
_MOST_EVENTS_PER_PRINCIPLE = 16
"""A principle with all its keys takes ten parser events."""
_STRING_TAG = "tag:yaml.org,2002:str"

# libyaml, where PyYAML has it, is ten times as fast; both are the safe loader.
_Loader: type[yaml.SafeLoader | yaml.CSafeLoader] = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class _Mark(Protocol):
    """A place in a document, of either loader."""

    line: int


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as literal blocks."""


def _represent_str(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(_STRING_TAG, value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _represent_str)


def render_yaml(constitution: Constitution) -> str:
    """Return the constitution as YAML that `read_yaml` reads back to the same plain values."""
    written: str = yaml.dump(to_plain(constitution), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return written


def read_yaml(text: str, limits: Limits) -> object:
    """Return the plain values that a YAML document holds, for `from_plain`.

    Raises `ConstitutionError` naming the line, or as soon as there is more than `limits` could allow.
    """
    try:
        _refuse_events(text, _MOST_EVENTS_PER_PRINCIPLE * (limits.max_principles + 1))
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _refuse_keys(node)
            value: object = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f" at line {_line(mark)}, column {mark.column + 1}"
        raise ConstitutionError("", f"is not valid YAML{place}: {error.problem}. Correct it there") from None
    except yaml.YAMLError as error:
        raise ConstitutionError("", f"is not valid YAML: {shown(error)}. Remove what YAML cannot hold") from None
    except ConstitutionError:
        raise
    except ValueError as error:
        # An unquoted scalar that looks like a date or a number and is none, such as 2024-13-45.
        raise ConstitutionError("", f"has a value that YAML cannot read: {error}. Put it in quotes") from None
    return value


def _line(mark: _Mark | None) -> int:
    """Return the line of a mark, counting from 1; both loaders set one on everything that they give."""
    return 0 if mark is None else mark.line + 1


def _refuse_events(text: str, most_events: int) -> None:
    """Look at the document before anything is built from it."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if count > most_events:
            raise ConstitutionError("principles", "has more entries than a constitution may have: remove some")
        line = _line(event.start_mark)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConstitutionError("", f"has on line {line} a YAML anchor or alias (& or *): write the value out")
        if getattr(event, "tag", None):
            raise ConstitutionError("", f"has on line {line} a YAML tag (!): remove it, and put texts in quotes")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MOST_DEPTH:
                raise ConstitutionError("", f"is nested too deeply on line {line}: give one list of principles")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _refuse_keys(node: yaml.Node) -> None:
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _refuse_keys(entry)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            line = _line(key.start_mark)
            if key.tag != _STRING_TAG:
                raise ConstitutionError(
                    "", f"has on line {line} a key that is not a string: use text, weight and so on"
                )
            if key.value in seen:
                raise ConstitutionError(
                    "", f"has on line {line} the key {shown(key.value)} again: remove one of the two"
                )
            seen.add(key.value)
            _refuse_keys(value)
