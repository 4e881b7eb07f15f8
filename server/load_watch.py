"""How deep the upstream's queue is, asked in the background while somebody samples, so that no request has to wait."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from adaptive.clock import Clock
from server.errors import UpstreamError
from server.probe import ProbeClient

_WAITING: Final = re.compile(rb"^vllm:num_requests_waiting(?:\{[^}]*\})? ([0-9.eE+-]+)$", re.MULTILINE)
_STALE_PERIODS: Final = 5


class LoadWatch:
    """Asks every `period_s` seconds while a run is going on. A depth that is old is not known."""

    def __init__(
        self, upstream: ProbeClient, clock: Clock, *, period_s: float, publish: Callable[[float], None]
    ) -> None:
        self._upstream = upstream
        self._clock = clock
        self._period_s = period_s
        self._publish = publish
        self._runs = 0
        self._sampling = asyncio.Event()
        self._waiting: float | None = None
        self._asked_s = 0.0

    def waiting(self) -> float | None:
        """Return how many requests wait upstream, None if that is not known now."""
        if self._waiting is None or self._clock.now() - self._asked_s > _STALE_PERIODS * self._period_s:
            return None
        return self._waiting

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Keep the depth current for as long as the context lasts."""
        self._runs += 1
        self._sampling.set()
        try:
            yield
        finally:
            self._runs -= 1
            if not self._runs:
                self._sampling.clear()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask in the background for as long as the context lasts."""
        task = asyncio.create_task(self._keep_current())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _keep_current(self) -> None:
        while True:
            await self._sampling.wait()
            await self._ask()
            await self._clock.sleep(self._period_s)

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(_STALE_PERIODS * self._period_s):
                text = await (await self._upstream.request("GET", "/metrics")).read()
        except (UpstreamError, TimeoutError):
            return
        found = [float(value) for value in _WAITING.findall(text)]
        if found:
            self._waiting = sum(found)
            self._asked_s = self._clock.now()
            self._publish(self._waiting)
