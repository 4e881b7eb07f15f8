"""Time as the sampling loop sees it: passed in, so that a test decides how fast it runs."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Clock(Protocol):
    """Seconds since some fixed moment, and waiting."""

    def now(self) -> float:
        """Return the time in seconds; it never runs backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after that many seconds."""
        ...


class LoopClock:
    """The running event loop's own clock: monotonic, and virtual where the loop is (`adaptive/virtual_time.py`)."""

    def now(self) -> float:
        """Return the loop's time in seconds."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Return after that many seconds of the loop's time."""
        await asyncio.sleep(seconds)
