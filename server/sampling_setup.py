"""Puts adaptive best-of-N together from the settings, for one worker."""

from __future__ import annotations

from adaptive.clock import LoopClock
from adaptive.limits import Ceiling, LoadShedding
from server.adaptive_chat import ChatSampling, Services
from server.load_watch import LoadWatch
from server.metrics import Metrics
from server.self_evaluation_tokens import SelfEvaluationTokens
from server.settings import Settings
from server.traces import TraceFiles, TraceWriter
from server.upstream import UpstreamClient
from server.upstream_state import UpstreamWatch


def trace_files(settings: Settings) -> TraceFiles:
    """Return where the traces are kept."""
    return TraceFiles(settings.data_dir / "traces", ttl_s=settings.trace_ttl_s, most=settings.max_traces)


def load_watch(settings: Settings, upstream: UpstreamClient, metrics: Metrics) -> LoadWatch:
    """Return the watch over the upstream's queue; it has to be run."""
    publish = metrics.sampling.waiting.set
    return LoadWatch(upstream, LoopClock(), period_s=settings.load_poll_s, publish=publish)


def chat_sampling(
    settings: Settings, upstream: UpstreamClient, watch: UpstreamWatch, load: LoadWatch, metrics: Metrics
) -> ChatSampling:
    """Return the sampling of chat completions. The ceilings are shared out among the workers, so that they hold."""
    services = Services(
        upstream=upstream,
        profile=lambda: watch.profile,
        suspect=watch.suspect,
        tokens=SelfEvaluationTokens(upstream, upstream_now=lambda: watch.profile),
        ceiling=Ceiling(
            settings.max_candidates // settings.workers, settings.max_candidates_per_user // settings.workers
        ),
        shedding=LoadShedding(settings.load_low, settings.load_high),
        load=load,
        traces=TraceWriter(trace_files(settings)),
        metrics=metrics.sampling,
        keep_alive_s=settings.keep_alive_s,
    )
    return ChatSampling(services, settings.policy)
