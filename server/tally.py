"""Counts requests at next to no cost, and tells prometheus-client of them later, many at a time.

A counter of prometheus-client takes a lock, and a request moves nine of them: a quarter of all the CPU that a proxied
request costs (`python -m loadtests.overhead`). So a finished request only appends what it knows to a list.
"""

from __future__ import annotations

import asyncio
from typing import Final

from prometheus_client import Counter

from server.metrics import Metrics

_FLUSH_INTERVAL_S: Final = 0.25


class RouteTally:
    """What has happened on one route. `in_flight`: requests being answered now."""

    def __init__(self, tally: Tally, route: str) -> None:
        self._tally = tally
        self._route = route
        self._metrics = metrics = tally.metrics
        self._by_status: dict[int, Counter] = {}
        self._duration = metrics.duration.labels(route)
        self._first_token = metrics.first_token.labels(route)
        self._overhead = metrics.overhead.labels(route)
        self._in_flight = metrics.in_flight.labels(route)
        self._finished: list[tuple[int, float, float, float | None]] = []
        self.in_flight = 0

    def begin(self) -> None:
        """Count a request that is being answered from now on."""
        self.in_flight += 1
        self._tally.schedule()

    def finish(self, status: int, duration_s: float, overhead_s: float, first_token_s: float | None) -> None:
        """Count a request that has been answered, by the status that the client got (499: it hung up)."""
        self.in_flight -= 1
        self._finished.append((status, duration_s, overhead_s, first_token_s))
        self._tally.schedule()

    def flush(self) -> None:
        """Tell prometheus-client."""
        self._in_flight.set(self.in_flight)
        finished, self._finished = self._finished, []
        by_status: dict[int, int] = {}
        for status, duration_s, overhead_s, first_token_s in finished:
            by_status[status] = by_status.get(status, 0) + 1
            self._duration.observe(duration_s)
            self._overhead.observe(overhead_s)
            if first_token_s is not None:
                self._first_token.observe(first_token_s)
        for status, count in by_status.items():
            counter = self._by_status.get(status)
            if counter is None:
                counter = self._by_status[status] = self._metrics.requests.labels(self._route, str(status))
            counter.inc(count)


class Tally:
    """The counts of one worker's event loop: plain integers until the next flush, a quarter of a second at most."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.hits = 0
        self.misses = 0
        self.applied = 0
        self.opted_out = 0
        self.without = 0
        self._counters = (
            ("hits", metrics.constitution_lookups.labels("hit")),
            ("misses", metrics.constitution_lookups.labels("miss")),
            ("applied", metrics.constitution_use.labels("applied")),
            ("opted_out", metrics.constitution_use.labels("opted_out")),
            ("without", metrics.constitution_use.labels("none")),
        )
        self._routes: dict[str, RouteTally] = {}
        self._timer: asyncio.TimerHandle | None = None

    def route(self, route: str) -> RouteTally:
        """Return the counts of `route`, a name from the fixed set of route names."""
        found = self._routes.get(route)
        if found is None:
            found = self._routes[route] = RouteTally(self, route)
        return found

    def schedule(self) -> None:
        """See to it that there is a flush soon."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_INTERVAL_S, self.flush)

    def flush(self) -> None:
        """Tell prometheus-client what has been counted; in the event loop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for name, counter in self._counters:
            count = getattr(self, name)
            if count:
                setattr(self, name, 0)
                counter.inc(count)
        for route in self._routes.values():
            route.flush()
