"""A run as a stream: its events as they come, its outcome last, and no run without somebody who listens."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from adaptive.best_of_n import BestOfN
from adaptive.events import Event, Quiet
from adaptive.inbox import Inbox
from adaptive.run import Outcome


class RunStream:
    """An asynchronous iterator over a run's events; the last value is its `Outcome`.

    Waiting for the next value may be cancelled without losing one. Raises what the run raises, after the events that
    came before.
    """

    def __init__(self, events: Inbox[Event | Quiet | None], run: asyncio.Task[Outcome]) -> None:
        self._events = events
        self._taken: deque[Event | Quiet | None] = deque()
        self._run = run
        self._over = False

    def __aiter__(self) -> RunStream:
        return self

    async def __anext__(self) -> Event | Quiet | Outcome:
        if self._over:
            raise StopAsyncIteration
        if not self._taken:
            self._taken.extend(await self._events.take())
        event = self._taken.popleft()
        if event is not None:
            return event
        self._over = True
        return self._run.result()


@asynccontextmanager
async def streamed(run: BestOfN, *, quiet_s: float | None = None) -> AsyncIterator[RunStream]:
    """Start the run; leaving the context before its end aborts every candidate, and waits until that is done.

    quiet_s: seconds without an event after which `Quiet` is one; None for never.
    """
    inbox: Inbox[Event | Quiet | None] = Inbox()
    silence = _Silence(inbox, quiet_s)
    task = asyncio.create_task(run.run(silence.hear))
    task.add_done_callback(lambda _: inbox.put(None))
    try:
        yield RunStream(inbox, task)
    finally:
        silence.close()
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen by whoever iterated, or not wanted: asyncio need not report it again


class _Silence:
    """Passes events on, and puts a `Quiet` among them where none comes. One timer for all of them, not one for each."""

    def __init__(self, inbox: Inbox[Event | Quiet | None], quiet_s: float | None) -> None:
        self._inbox = inbox
        self._quiet_s = quiet_s
        self._loop = asyncio.get_running_loop()
        self._heard_s = self._loop.time()
        self._timer = None if quiet_s is None else self._loop.call_later(quiet_s, self._look)

    def hear(self, event: Event) -> None:
        self._heard_s = self._loop.time()
        self._inbox.put(event)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        quiet_s = self._quiet_s or 0.0
        now = self._loop.time()
        if now - self._heard_s >= quiet_s:
            self._heard_s = now
            if not self._inbox:  # otherwise the listener is behind, and has something to do
                self._inbox.put(Quiet())
        self._timer = self._loop.call_at(self._heard_s + quiet_s, self._look)
