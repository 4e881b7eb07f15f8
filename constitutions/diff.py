"""What differs between two versions of a constitution, as a person would tell it: added, removed, moved, changed.

Principles with the same text are the same principle; of the others, those whose texts are most alike are taken for
edits of one another if they are alike enough. Of the principles that both versions have, as few as possible count as
moved: the rest keeps its order (a longest increasing subsequence). Indexes count from 0, as in error paths.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import assert_never

from constitutions.constitution import Constitution, Principle
from constitutions.plain import principle_to_plain
from constitutions.similarity import similarity, trigrams

EDIT_SIMILARITY = 0.45
"""Least similarity, from 0 to 1, at which two texts are one principle edited. Unrelated English stays under 0.43."""


@dataclass(frozen=True, slots=True)
class Added:
    """A principle that only the new version has."""

    new_index: int
    principle: Principle


@dataclass(frozen=True, slots=True)
class Removed:
    """A principle that only the old version has."""

    old_index: int
    principle: Principle


@dataclass(frozen=True, slots=True)
class Moved:
    """A principle whose importance changed relative to those that stayed; `principle` is as in the new version."""

    old_index: int
    new_index: int
    principle: Principle


@dataclass(frozen=True, slots=True)
class Changed:
    """A principle of which something else than its place changed; `changed_fields` are fields of `Principle`."""

    old_index: int
    new_index: int
    before: Principle
    after: Principle
    changed_fields: tuple[str, ...]


Change = Added | Removed | Moved | Changed


def diff(a: Constitution, b: Constitution) -> tuple[Change, ...]:
    """Return what leads from `a` to `b`; empty if they are equal.

    First the removed principles in the order of `a`; then what was added, changed or moved in the order of `b`. One
    principle can be both changed and moved, and is then listed as changed first.
    """
    old_of = _match(a.principles, b.principles)
    removed = sorted(set(range(len(a.principles))) - set(old_of.values()))
    changes: list[Change] = [Removed(old, a.principles[old]) for old in removed]
    staying = _longest_increasing(old_of[new] for new in sorted(old_of))
    for new, after in enumerate(b.principles):
        if new not in old_of:
            changes.append(Added(new, after))
            continue
        old = old_of[new]
        before = a.principles[old]
        changed = tuple(
            name.name for name in fields(Principle) if getattr(before, name.name) != getattr(after, name.name)
        )
        if changed:
            changes.append(Changed(old, new, before, after, changed))
        if old not in staying:
            changes.append(Moved(old, new, after))
    return tuple(changes)


def changes_to_plain(changes: Iterable[Change]) -> list[dict[str, object]]:
    """Return changes as plain values; `change` is added, removed, moved or changed."""
    return [_change_to_plain(change) for change in changes]


def _change_to_plain(change: Change) -> dict[str, object]:
    match change:
        case Added(new_index, principle):
            return {"change": "added", "new_index": new_index, "principle": principle_to_plain(principle)}
        case Removed(old_index, principle):
            return {"change": "removed", "old_index": old_index, "principle": principle_to_plain(principle)}
        case Moved(old_index, new_index, principle):
            return {
                "change": "moved",
                "old_index": old_index,
                "new_index": new_index,
                "principle": principle_to_plain(principle),
            }
        case Changed(old_index, new_index, before, after, changed_fields):
            return {
                "change": "changed",
                "old_index": old_index,
                "new_index": new_index,
                "fields": list(changed_fields),
                "before": principle_to_plain(before),
                "after": principle_to_plain(after),
            }
    assert_never(change)


def _match(old: Sequence[Principle], new: Sequence[Principle]) -> dict[int, int]:
    """Return for each index of `new` that has a counterpart its index in `old`."""
    old_index = {principle.folded: index for index, principle in enumerate(old)}
    old_of = {at: old_index[principle.folded] for at, principle in enumerate(new) if principle.folded in old_index}
    matched = set(old_of.values())
    old_left = [(at, trigrams(principle.text)) for at, principle in enumerate(old) if at not in matched]
    new_left = [(at, trigrams(principle.text)) for at, principle in enumerate(new) if at not in old_of]
    pairs = [(-similarity(before, after), at_old, at_new) for at_old, before in old_left for at_new, after in new_left]
    # The most alike first; between equals the earlier ones, so that the result is always the same.
    for unlike, at_old, at_new in sorted(pairs):
        if -unlike >= EDIT_SIMILARITY and at_old not in matched and at_new not in old_of:
            matched.add(at_old)
            old_of[at_new] = at_old
    return old_of


def _longest_increasing(values: Iterable[int]) -> frozenset[int]:
    """Return a longest increasing subsequence of distinct values (patience sorting), as a set."""
    ends: list[int] = []  # ends[k] is the smallest value that ends an increasing subsequence of k + 1 values
    previous: dict[int, int | None] = {}
    for value in values:
        length = bisect_left(ends, value)
        previous[value] = ends[length - 1] if length else None
        ends[length : length + 1] = [value]
    chosen = set()
    at = ends[-1] if ends else None
    while at is not None:
        chosen.add(at)
        at = previous[at]
    return frozenset(chosen)
