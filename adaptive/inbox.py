"""What several tasks report to one: put in one by one, taken out all at once."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """What was put in and has not been taken, in order. One task takes; whoever puts never waits.

    asyncio.Queue can do more (bounds, several takers), which costs three times as much, for every token of every run.
    """

    def __init__(self) -> None:
        self._contents: list[T] = []
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._contents)

    def put(self, news: T) -> None:
        """Put it in, and wake the task that waits."""
        self._contents.append(news)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[T]:
        """Return everything, at least one; wait until there is. Cancelling the wait loses nothing."""
        while not self._contents:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        contents, self._contents = self._contents, []
        return contents
