"""Limits that hold over all runs of a process: a ceiling on concurrent candidates, and restraint under load."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass
from typing import Protocol


class Slots(Protocol):
    """Permission to run candidates, one slot each."""

    async def take_first(self) -> None:
        """Take the one slot without which a request cannot be served at all; wait for it in turn."""
        ...

    def take(self, wanted: int) -> int:
        """Take up to that many slots, at once; return how many were taken."""
        ...

    def give_back(self) -> None:
        """Return one slot."""
        ...


class Unlimited:
    """Slots without end."""

    async def take_first(self) -> None:
        """Take a slot."""

    def take(self, wanted: int) -> int:
        """Return `wanted`."""
        return wanted

    def give_back(self) -> None:
        """Return a slot."""


class Ceiling:
    """At most `total` concurrent candidates in this process, and `per_holder` for any one holder (a user, say).

    First candidates wait in turn; further ones are only given what nobody waits for, so one request's eighth candidate
    never delays another's first. Single-threaded like the event loop that it serves. Raises `ValueError` for a limit
    below 1.
    """

    def __init__(self, total: int, per_holder: int) -> None:
        if total < 1 or per_holder < 1:
            raise ValueError(f"ceilings are {total} and {per_holder}; give at least 1 for each")
        self._total = total
        self._per_holder = per_holder
        self._held: Counter[str] = Counter()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    @property
    def in_use(self) -> int:
        """Slots taken now."""
        return self._held.total()

    def slots(self, holder: str) -> Slots:
        """Return this ceiling as one holder sees it."""
        return _Share(self, holder)

    def room(self, holder: str) -> int:
        """Return how many slots that holder could take now."""
        return max(0, min(self._total - self.in_use, self._per_holder - self._held[holder]))

    def take(self, holder: str, wanted: int) -> int:
        """Take up to `wanted` slots, at once; return how many. Whoever waits has been served before."""
        taken = min(wanted, self.room(holder))
        self._held[holder] += taken
        return taken

    async def take_first(self, holder: str) -> None:
        """Take one slot, after all who came before."""
        if self.take(holder, 1):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((holder, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(holder)  # the slot came in the same moment as the cancellation
            else:
                self._serve()  # forgets who no longer waits
            raise

    def give_back(self, holder: str) -> None:
        """Return one slot; whoever has waited longest and may have it gets it."""
        self._held[holder] -= 1
        if self._held[holder] <= 0:
            del self._held[holder]
        self._serve()

    def _serve(self) -> None:
        still_waiting: deque[tuple[str, asyncio.Future[None]]] = deque()
        for holder, turn in self._waiting:
            if not turn.done() and self.room(holder):
                self._held[holder] += 1
                turn.set_result(None)
            elif not turn.done():
                still_waiting.append((holder, turn))
        self._waiting = still_waiting


@dataclass(frozen=True, slots=True)
class _Share:
    ceiling: Ceiling
    holder: str

    async def take_first(self) -> None:
        await self.ceiling.take_first(self.holder)

    def take(self, wanted: int) -> int:
        return self.ceiling.take(self.holder, wanted)

    def give_back(self) -> None:
        self.ceiling.give_back(self.holder)


@dataclass(frozen=True, slots=True)
class LoadShedding:
    """From the depth of the engine's queue to how much of `n_max` is used.

    Up to `low` waiting requests all of it, from `high` on a single candidate, in between a straight line. Raises
    `ValueError` unless 0 <= low < high.
    """

    low: int = 2
    high: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; give 0 <= low < high")

    def allowed(self, n_max: int, waiting: float | None) -> int:
        """Return the most candidates, 1 to `n_max`, while that many requests wait; all if the depth is not known."""
        if waiting is None or waiting <= self.low:
            return n_max
        if waiting >= self.high:
            return 1
        return 1 + int((n_max - 1) * (self.high - waiting) / (self.high - self.low))
