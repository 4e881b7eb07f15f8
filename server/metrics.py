"""Every metric of the proxy: names, units, labels. All label values come from closed sets.

No user ids, no raw paths, no model names that a client chose: a label value that a stranger can invent is a memory
leak. With several workers, prometheus-client keeps the values in files under `PROMETHEUS_MULTIPROC_DIR`, which
`preamble serve` sets before this module is imported, and `render` adds them up.
"""

from __future__ import annotations

import os
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from server.sampling_metrics import SamplingMetrics

# From a cache-hit answer of a tiny model to the longest generation that a timer lets live.
_LATENCY_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
# The proxy's own share: tens of microseconds when all is well.
_OVERHEAD_BUCKETS: Final = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Metrics:
    """The proxy's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._multiprocess = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self.requests = Counter(
            "preamble_requests",
            "Requests by route and status; 499 is a client that hung up.",
            ("route", "status"),
            registry=registry,
        )
        self.duration = Histogram(
            "preamble_request_duration_seconds",
            "From the request's head to the last byte of the answer.",
            ("route",),
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self.first_token = Histogram(
            "preamble_time_to_first_token_seconds",
            "Streamed answers: from the request's head to the first byte of the answer's body.",
            ("route",),
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self.overhead = Histogram(
            "preamble_overhead_seconds",
            "The proxy's own part of the duration: all but the time between sending to the upstream and its last byte.",
            ("route",),
            buckets=_OVERHEAD_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "preamble_requests_in_flight",
            "Requests being answered now.",
            ("route",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.upstream_errors = Counter(
            "preamble_upstream_errors",
            "Failures to use the upstream, by error code. Its own error answers count as requests by status.",
            ("code",),
            registry=registry,
        )
        self.disconnects = Counter(
            "preamble_client_disconnects",
            "Clients that hung up, by what the proxy was doing: reading, waiting (no byte yet), streaming.",
            ("phase",),
            registry=registry,
        )
        self.constitution_lookups = Counter(
            "preamble_constitution_lookups",
            "Look-ups of the caller's constitution: hit (in memory) or miss (read from the store).",
            ("result",),
            registry=registry,
        )
        self.constitution_use = Counter(
            "preamble_constitution_requests",
            "Requests on routes that take a constitution: applied, opted_out, none (the user has none).",
            ("use",),
            registry=registry,
        )
        self.store_degraded = Counter(
            "preamble_store_degraded",
            "Times the store could not be read and what is in memory was served instead.",
            registry=registry,
        )
        self.sampling = SamplingMetrics(registry)

    def render(self) -> bytes:
        """Return all series in the text format, of all workers where there are several."""
        if not self._multiprocess:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def forget_process(self) -> None:
        """Take this worker's gauges out of the sums; for the end of a worker."""
        if self._multiprocess:
            mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]
