"""The metrics of adaptive best-of-N: names, units, labels. All label values come from closed sets."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from adaptive.candidate import Fate
from adaptive.exploring import Explored
from adaptive.first_token import plain_first_token
from adaptive.policy import Mode
from adaptive.restraint import RESTRAINTS, restraints
from adaptive.run import Outcome
from adaptive.savings import estimated
from adaptive.spend import tally
from adaptive.stopping import StopReason
from adaptive.trace import Decision, Degraded, Drew, Pruned, Stopped, Trace
from server.sampling_plan import PassThrough

_CANDIDATES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
_SHARES: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# Where a client may set checkpoints at will, labels are the next of these.
_CHECKPOINTS: Final = (32, 64, 128, 256, 512, 1024, 4096)
_REGRETS: Final = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


class ExplorationResult(StrEnum):
    """What became of an exploration."""

    DONE = "done"
    BUSY = "busy"
    """Load, the ceiling or `max_explorations` left no room for it."""
    FAILED = "failed"
    CANCELLED = "cancelled"


class SamplingMetrics:
    """The series of sampled requests, in the given registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.candidates = Histogram(
            "preamble_candidates_per_request",
            "Candidates drawn for a sampled request, by the policy's mode.",
            ("mode",),
            buckets=_CANDIDATES,
            registry=registry,
        )
        self.tokens = Counter(
            "preamble_candidate_tokens",
            "Tokens by fate: returned, finished (and not chosen), pruned, failed, aborted, scoring (prompt tokens "
            "computed and label tokens read for scores), and exploration (all that explorations took).",
            ("fate",),
            registry=registry,
        )
        self.win_or_tie = Histogram(
            "preamble_win_or_tie_probability",
            "P(win or tie) of the returned reply by self-evaluation.",
            buckets=_SHARES,
            registry=registry,
        )
        self.resampling = Counter(
            "preamble_resampling_decisions",
            "Decisions about another batch: drew, or the reason to draw no more.",
            ("reason",),
            registry=registry,
        )
        self.pruning = Counter(
            "preamble_prune_decisions",
            "Candidates compared at a checkpoint, by its tokens (rounded up to a fixed list) and what became of them.",
            ("checkpoint", "decision"),
            registry=registry,
        )
        self.full_tokens = Counter(
            "preamble_best_of_n_tokens",
            "Tokens that full best-of-N would have generated for the sampled requests, estimated.",
            registry=registry,
        )
        self.spent_tokens = Counter(
            "preamble_spent_tokens",
            "Tokens generated for the sampled requests, and the cost of scoring in the same unit.",
            registry=registry,
        )
        self.full_engine_seconds = Counter(
            "preamble_best_of_n_engine_seconds",
            "Engine-seconds that full best-of-N would have taken for the sampled requests, estimated.",
            registry=registry,
        )
        self.spent_engine_seconds = Counter(
            "preamble_spent_engine_seconds",
            "Engine-seconds of the sampled requests' candidates and scoring calls: how long they were in the engine.",
            registry=registry,
        )
        self.first_token = Histogram(
            "preamble_sampled_time_to_first_token_seconds",
            "From the first draw to the first token that a streaming client was given.",
            ("mode",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.plain_first_token = Histogram(
            "preamble_best_of_n_time_to_first_token_seconds",
            "The same for plain best-of-N on the same streams, estimated where the run was not plain best-of-N itself.",
            ("mode",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.added_latency = Histogram(
            "preamble_added_latency_seconds",
            "From the end of the first candidate, the reply without us, to the end of the run.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.scoring_duration = Histogram(
            "preamble_scoring_duration_seconds",
            "Duration of a scoring call.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.degradations = Counter(
            "preamble_sampling_degradations",
            "Times a part (scorer, selector) failed, by what took its place.",
            ("part", "instead"),
            registry=registry,
        )
        self.restrained = Counter(
            "preamble_sampling_restrained",
            "Sampled requests that got fewer candidates than their policy allows, by what kept them from it.",
            ("by",),
            registry=registry,
        )
        self.passed_through = Counter(
            "preamble_sampling_passed_through",
            "Requests that asked for sampling, or would have by default, and could not gain from it, by reason.",
            ("reason",),
            registry=registry,
        )
        self.waiting = Gauge(
            "preamble_upstream_waiting_requests",
            "Depth of the upstream's queue when it was last asked.",
            registry=registry,
            multiprocess_mode="max",
        )

        self.explorations = Counter(
            "preamble_explorations",
            "Full best-of-N runs beside answered requests, by result: done, busy (load, the ceiling or "
            "max_explorations left no room), failed, cancelled.",
            ("result",),
            registry=registry,
        )
        self.exploration_full_tokens = Counter(
            "preamble_exploration_full_tokens",
            "Tokens that full best-of-N generated for the explored requests.",
            registry=registry,
        )
        self.exploration_spent_tokens = Counter(
            "preamble_exploration_spent_tokens",
            "Tokens that these requests spent themselves, scoring included.",
            registry=registry,
        )
        self.exploration_full_engine_seconds = Counter(
            "preamble_exploration_full_engine_seconds",
            "Engine-seconds that full best-of-N took for the explored requests.",
            registry=registry,
        )
        self.exploration_spent_engine_seconds = Counter(
            "preamble_exploration_spent_engine_seconds",
            "Engine-seconds that these requests took themselves, scoring included.",
            registry=registry,
        )
        self.regret = Histogram(
            "preamble_regret",
            "By how much the best score of full best-of-N is above that of the returned reply; one sample per "
            "exploration that was done.",
            buckets=_REGRETS,
            registry=registry,
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Give labels that are known beforehand their sample: Prometheus sees no growth from nothing to 1."""
        for mode in (Mode.ADAPTIVE, Mode.BEST_OF_N):
            for histogram in (self.candidates, self.first_token, self.plain_first_token):
                histogram.labels(mode.value)
        for fate in (*(fate.value for fate in Fate if fate is not Fate.RUNNING), "scoring", "exploration"):
            self.tokens.labels(fate)
        for reason in ("drew", *StopReason):
            self.resampling.labels(str(reason))
        for checkpoint in (*map(str, _CHECKPOINTS), "+Inf"):
            self.pruning.labels(checkpoint, "pruned")
            self.pruning.labels(checkpoint, "kept")
        for restraint in RESTRAINTS:
            self.restrained.labels(restraint.value)
        for reason in PassThrough:
            self.passed_through.labels(reason.value)
        for result in ExplorationResult:
            self.explorations.labels(result.value)

    def count(self, trace: Trace, outcome: Outcome | None, first_token_s: float | None = None) -> None:
        """Count a run that is over; without an outcome it was cancelled or failed.

        first_token_s: a streaming client's first token, seconds into the run.
        """
        if not trace.candidates:
            return  # the client left while its first candidate waited for a place
        spend = tally(trace.candidates, trace.scoring)
        self.candidates.labels(trace.policy.mode.value).observe(spend.drawn)
        for fate in Fate:
            if fate is not Fate.RUNNING:
                self.tokens.labels(fate.value).inc(spend.tokens[fate])
        self.tokens.labels("scoring").inc(spend.scoring_tokens)
        savings = estimated(trace.candidates, spend, trace.policy.n_max) if outcome is None else outcome.savings
        self.full_tokens.inc(savings.full_tokens)
        self.spent_tokens.inc(savings.spent_tokens + savings.scoring_cost)
        self.full_engine_seconds.inc(savings.full_engine_s)
        self.spent_engine_seconds.inc(savings.spent_engine_s)
        for decision in trace.decisions:
            self._count_decision(decision)
        for reason in restraints(trace):
            self.restrained.labels(reason.value).inc()
        for call in trace.scoring:
            if call.error is None and call.computed_tokens:  # others were free, and no call
                self.scoring_duration.observe(call.answered_s - call.asked_s)
        if outcome is not None:
            self._count_reply(trace, outcome)
            self._count_first_token(trace, first_token_s)

    def count_exploration(self, result: ExplorationResult, tokens: int = 0, explored: Explored | None = None) -> None:
        """Count an exploration. tokens: what it took, scoring included. explored: what it found, if it was done."""
        self.explorations.labels(result.value).inc()
        self.tokens.labels("exploration").inc(tokens)
        if explored is not None:
            savings = explored.savings
            self.exploration_full_tokens.inc(savings.full_tokens)
            self.exploration_spent_tokens.inc(savings.spent_tokens + savings.scoring_cost)
            self.exploration_full_engine_seconds.inc(savings.full_engine_s)
            self.exploration_spent_engine_seconds.inc(savings.spent_engine_s)
            self.regret.observe(explored.regret)

    def _count_decision(self, decision: Decision) -> None:
        match decision:
            case Drew():
                self.resampling.labels("drew").inc()
            case Stopped(reason):
                self.resampling.labels(reason.value).inc()
            case Pruned():
                self._count_pruning(decision)
            case Degraded():
                self.degradations.labels(decision.part, decision.instead).inc()
            case _:
                pass  # a pick or a commitment decides nothing about spending

    def _count_reply(self, trace: Trace, outcome: Outcome) -> None:
        score = outcome.choices[0].score
        if score is not None and score.label_mass is not None:
            self.win_or_tie.observe(score.value)
        first = trace.candidates[0]
        if first.complete and first.ended_s is not None:
            self.added_latency.observe(max(0.0, trace.took_s - first.ended_s))

    def _count_first_token(self, trace: Trace, first_token_s: float | None) -> None:
        plain = plain_first_token(trace)
        if first_token_s is not None and plain is not None:
            self.first_token.labels(trace.policy.mode.value).observe(first_token_s)
            self.plain_first_token.labels(trace.policy.mode.value).observe(plain.after_s)

    def _count_pruning(self, decision: Pruned) -> None:
        checkpoint = next((str(each) for each in _CHECKPOINTS if decision.checkpoint <= each), "+Inf")
        self.pruning.labels(checkpoint, "pruned").inc(len(decision.pruned))
        self.pruning.labels(checkpoint, "kept").inc(len(decision.compared) - len(decision.pruned))
