"""What interleaved measurements share: a load in a process of its own, the order of a round, progress, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import orjson
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loadtests.generator import GRACE_S, Result
from loadtests.targets import Target, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

MISSED, UNABLE, INTERRUPTED = 1, 2, 130
TABLE_WIDTH = 120  # a file or a pipe has no width of its own

T = TypeVar("T")


def load_on(target: Target, url: str, options: Sequence[str], *, limit_s: float) -> Result:
    """Put a load on a target, with `loadtests.load`'s options, and return what came back.

    Raises `TargetError` when the generator could not run.
    """
    command = [sys.executable, "-m", "loadtests.load", f"--url={url}", f"--pid={target.pid}", *options]
    command += [f"--header={name}: {value}" for name, value in target.headers]
    # A session of its own: Ctrl-C reaches this process only, which ends the generator.
    done = subprocess.run(
        command,
        capture_output=True,
        cwd=Path(__file__).parent.parent,
        timeout=limit_s + 2 * GRACE_S,
        start_new_session=True,
        check=False,
    )
    if not done.stdout:
        raise TargetError(f"the load on {target.name} could not be made: {done.stderr.decode(errors='replace')}")
    return Result(**orjson.loads(done.stdout))


def rotated(what: Sequence[T], number: int) -> list[T]:
    """Return it in the order of round `number`: each takes every place equally often."""
    start = number % len(what)
    return [*what[start:], *what[:start]]


def interrupt(_signal: int, _frame: object) -> None:
    """Take SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt


def with_progress(steps: Iterator[T], total: int, console: Console, doing: Callable[[T], str]) -> list[T]:
    """Return all steps, with a bar on a terminal while they are taken; `doing` describes the latest."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    taken = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("measuring", total=total)
        for step in steps:
            taken.append(step)
            progress.update(task, advance=1, description=doing(step))
    return taken
