"""A run as a stream: its events as they come, its outcome last, and no run without somebody who listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from adaptive.best_of_n import BestOfN
from adaptive.events import Event
from adaptive.run import Outcome


class RunStream:
    """An asynchronous iterator over a run's events; the last value is its `Outcome`.

    Waiting for the next value may be cancelled (`asyncio.wait_for`, to send a keep-alive) without losing one. Raises
    what the run raises, after the events that came before.
    """

    def __init__(self, events: asyncio.Queue[Event | None], run: asyncio.Task[Outcome]) -> None:
        self._events = events
        self._run = run
        self._over = False

    def __aiter__(self) -> RunStream:
        return self

    async def __anext__(self) -> Event | Outcome:
        if self._over:
            raise StopAsyncIteration
        event = await self._events.get()
        if event is not None:
            return event
        self._over = True
        return self._run.result()


@asynccontextmanager
async def streamed(run: BestOfN) -> AsyncIterator[RunStream]:
    """Start the run; leaving the context before its end aborts every candidate, and waits until that is done."""
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    task = asyncio.create_task(run.run(events.put_nowait))
    task.add_done_callback(lambda _: events.put_nowait(None))
    try:
        yield RunStream(events, task)
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen by whoever iterated, or not wanted: asyncio need not report it again
