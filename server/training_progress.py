"""The progress of training, on a terminal and in a log file."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from server.terminal import say


class Training:
    """A bar for what is being done; where there is no terminal, a line whenever there is something else to say."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = ""
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("reading")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, what: str, done: int, total: int) -> None:
        """Show what is being done, how far it is, and how far it goes."""
        self._progress.update(self._task, description=what, completed=done, total=total)
        if not self._console.is_terminal and what != self._told:
            self._told = what
            say(self._console, f"{what} ({done} of {total})" if done else what)
