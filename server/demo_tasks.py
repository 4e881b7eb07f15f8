"""The demo's short tasks, each with a verifier: what one sample gets right of them, and what adaptive sampling does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from adaptive.evaluation.tasks import Task, load

_AT_ONCE: Final = 4

Asked = tuple[str, Any, Any]
"""The text of an answer, its `preamble` object, and its trace."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of a task.

    first, returned: whether the candidate drawn first passes, which is what one sample would have been, and whether
    the answer does. drawn: candidates. spent: tokens, those of scoring included. saved: of what all candidates to their
    end would have been.
    """

    family: str
    first: bool
    returned: bool
    drawn: int
    spent: int
    saved: float


def short_tasks() -> tuple[Task, ...]:
    """Return a task of each family in which there is something to gain; nothing was trained or fitted on them."""
    found: dict[str, Task] = {}
    for task in load("synthetic:test").tasks:
        found.setdefault(task.family, task)
    return tuple(found.values())


def tried(tasks: Sequence[Task], ask: Callable[[Task], Asked]) -> list[Tried]:
    """Ask for every task, a few at a time. ask: raises what it likes."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return [_tried(*each) for each in zip(tasks, threads.map(ask, tasks), strict=True)]


def _tried(task: Task, asked: Asked) -> Tried:
    text, told, trace = asked
    first = min(trace["candidates"], key=lambda each: each["index"])
    tokens = told["tokens"]
    return Tried(
        family=task.family,
        first=task.verify(first["text"]).passed,
        returned=task.verify(text).passed,
        drawn=told["candidates"]["drawn"],
        spent=tokens["generated"] + tokens["scored"],
        saved=tokens["saved"],
    )
