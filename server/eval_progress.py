"""The progress of sampling, on a terminal and in a log file."""

from __future__ import annotations

import time
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from server.terminal import say

# Where there is no terminal to keep a line current on.
_LOG_EVERY_S: Final = 60.0


class Shown:
    """A bar with the time that is left, or a line a minute where there is no terminal.

    unit: what is counted, in the plural. total, done: how many there will be, and how many there are already.
    """

    def __init__(self, console: Console, unit: str, total: int, done: int) -> None:
        self._console = console
        self._unit = unit
        self._total, self._done, self._before = total, done, done
        self._tokens = 0
        self._started = self._told = time.monotonic()
        self._progress = Progress(
            TextColumn(unit),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            # The default window of 30 s holds no candidate at all of a slow model.
            speed_estimate_period=300,
        )
        self._task = self._progress.add_task("", total=total, completed=done, rate="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def kept(self, tokens: int) -> None:
        """One more is there, of so many generated tokens."""
        self._done += 1
        self._tokens += tokens
        now = time.monotonic()
        elapsed_s = now - self._started
        rate = f"{self._tokens / elapsed_s:.0f} tokens/s"
        self._progress.update(self._task, advance=1, rate=rate)
        if not self._console.is_terminal and now - self._told >= _LOG_EVERY_S:
            self._told = now
            left_s = elapsed_s / (self._done - self._before) * (self._total - self._done)
            say(
                self._console,
                f"{self._done} of {self._total} {self._unit}, {rate}, about {left_s / 60:.0f} minutes left",
            )

    def lost(self, why: str) -> None:
        """One could not be had."""
        say(self._console, f"Lost: {why}", style="yellow")
