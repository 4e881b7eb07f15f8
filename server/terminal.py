"""What the command line shows while somebody waits, on a terminal and in a log file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from server.checkpoint import Progress


def report_console(width: int = 140) -> Console:
    """Return standard output for a report. In a file or a pipe there is no width to keep to: there it is `width`."""
    return Console(width=None if sys.stdout.isatty() else width)


@contextlib.contextmanager
def shown_progress(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Give a listener that shows the phase and the seconds since the wait began, each in its place.

    On a terminal one line that is kept current and goes away at the end; elsewhere one line per phase.
    """
    if console.is_terminal:
        with console.status("starting") as status:
            yield lambda progress: status.update(f"{progress.phase} [dim]{progress.elapsed_s:.0f} s[/dim]")
        return
    latest = ""

    def listen(progress: Progress) -> None:
        nonlocal latest
        if progress.phase != latest:
            latest = progress.phase
            say(console, progress.phase)

    yield listen


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is: neither wrapped, so that it can be copied, nor read as markup, as paths could be."""
    console.print(text, style=style, soft_wrap=True, markup=False, highlight=False)
