"""Puts adaptive best-of-N together from the settings, for one worker."""

from __future__ import annotations

from collections.abc import Callable

from adaptive.clock import LoopClock
from adaptive.limits import Ceiling, LoadShedding
from server.adaptive_chat import ChatSampling, Services
from server.exploration import Explorations
from server.load_watch import LoadWatch
from server.metrics import Metrics
from server.policy import PolicyFields
from server.reward import RewardUpstream
from server.self_evaluation_config import SelfEvaluationConfigs, read_config
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


def chat_explorations(
    settings: Settings, load: LoadWatch, metrics: Metrics, *, chance: Callable[[], float]
) -> Explorations:
    """Return the explorations, which have to be run. chance: numbers from 0 to 1, by which requests are chosen."""
    most = max(1, settings.exploration_candidates)  # without a share none is ever begun
    shedding = LoadShedding(settings.load_low, settings.load_high)
    return Explorations(
        share=settings.exploration_share,
        most=settings.max_explorations,
        chance=chance,
        ceiling=Ceiling(most, most),
        calm=lambda candidates: shedding.allowed(candidates, load.waiting()) == candidates,
        clock=LoopClock(),
        traces=TraceWriter(trace_files(settings)),
        metrics=metrics.sampling,
    )


def self_evaluation_configs(settings: Settings, watch: UpstreamWatch) -> SelfEvaluationConfigs:
    """Return what each model is asked by. Raises `SelfEvaluationConfigError` for a file that the setting names."""
    file = settings.self_evaluation
    explicit = None if file is None else read_config(file)
    return SelfEvaluationConfigs(lambda: watch.profile, explicit=explicit, own=settings.model)


def chat_sampling(  # noqa: PLR0917 -- one line of the application's wiring
    settings: Settings,
    upstream: UpstreamClient,
    watch: UpstreamWatch,
    configs: SelfEvaluationConfigs,
    load: LoadWatch,
    metrics: Metrics,
    policy_of: Callable[[str], PolicyFields | None],
    explorations: Explorations,
    reward: RewardUpstream | None,
) -> ChatSampling:
    """Return the sampling of chat completions; `policy_of` gives a user's default policy, from memory.

    The ceilings are shared out among the workers, so that they hold.
    """
    ceiling = Ceiling(
        settings.worker_candidates - settings.exploration_candidates,
        settings.max_candidates_per_user // settings.workers,
    )
    services = Services(
        upstream=upstream,
        profile=lambda: watch.profile,
        suspect=watch.suspect,
        tokens=SelfEvaluationTokens(upstream, upstream_now=lambda: watch.profile, config_of=configs.of),
        lacks_read_out=configs.lacks_read_out,
        ceiling=ceiling,
        shedding=LoadShedding(settings.load_low, settings.load_high),
        load=load,
        traces=TraceWriter(trace_files(settings)),
        metrics=metrics.sampling,
        keep_alive_s=settings.keep_alive_s,
        explorations=explorations,
        reward=reward,
    )
    return ChatSampling(services, settings.policy, policy_of)
