"""The *Compute savings* board: every panel once, as data.

`deploy/grafana/build.py` turns it into Grafana's JSON, `preamble report savings` draws it without Grafana. The queries
are over raw series, not over recorded ones: they work in any Prometheus that scrapes the proxy, with our rules or
without. Explorations are rare, so what they measured is taken over the hour before each point.
"""

from __future__ import annotations

from typing import Final

from server.panels import Board, Kind, Level, Panel, Query, Row, Threshold, Unit, Variable
from server.promql import (
    ENGINES,
    HOUR,
    PROXIES,
    RANGE,
    RATE,
    grown,
    mean,
    or_zero,
    per_minute,
    quantile,
    rate,
    share,
    unspent_share,
)

_SAVED_SHARE: Final = (Threshold(None, Level.BAD), Threshold(0.0, Level.DOUBTFUL), Threshold(0.2, Level.GOOD))
_ABOVE_ZERO: Final = (Threshold(None, Level.BAD), Threshold(0.0, Level.GOOD))
_REGRET: Final = (Threshold(None, Level.GOOD), Threshold(0.05, Level.DOUBTFUL), Threshold(0.1, Level.BAD))
_SCORING_SHARE: Final = (Threshold(None, Level.GOOD), Threshold(0.3, Level.DOUBTFUL), Threshold(0.5, Level.BAD))
_FULLNESS: Final = (Threshold(None, Level.GOOD), Threshold(0.8, Level.DOUBTFUL), Threshold(0.95, Level.BAD))

_FULL: Final = "preamble_best_of_n_tokens_total"
_SPENT: Final = "preamble_spent_tokens_total"
_FULL_SECONDS: Final = "preamble_best_of_n_engine_seconds_total"
_SPENT_SECONDS: Final = "preamble_spent_engine_seconds_total"
_EXPLORED_FULL: Final = "preamble_exploration_full_tokens_total"
_EXPLORED_SPENT: Final = "preamble_exploration_spent_tokens_total"
_EXPLORED_FULL_SECONDS: Final = "preamble_exploration_full_engine_seconds_total"
_EXPLORED_SPENT_SECONDS: Final = "preamble_exploration_spent_engine_seconds_total"
_EXPLORED: Final = f'{PROXIES}, result="done"'


def _quantiles(histogram: str, *shares: float) -> tuple[Query, ...]:
    return tuple(Query(quantile(each, histogram), f"p{each * 100:g}") for each in shares)


_AT_A_GLANCE: Final = Row(
    "At a glance: the whole time range",
    (
        Panel(
            "Saved share, estimated",
            "Tokens not spent, as a share of what full best-of-N would have taken for all sampled requests; scoring "
            "is deducted. An estimate: a candidate that was not run counts as long as those that were. Bad: below 0, "
            "where sampling costs more than plain best-of-N.",
            Kind.FIGURE,
            Unit.SHARE,
            (Query(unspent_share(grown(_SPENT), grown(_FULL)), "of tokens"),),
            _SAVED_SHARE,
        ),
        Panel(
            "Saved share, measured",
            "The same on explored requests, where full best-of-N was really run afterwards, and how many those were. "
            "Bad: below 0, or far from the estimate. Fewer than some 30 samples prove little; no data: "
            "exploration_share is 0, or nothing was explored.",
            Kind.FIGURE,
            Unit.SHARE,
            (
                Query(unspent_share(grown(_EXPLORED_SPENT), grown(_EXPLORED_FULL)), "of tokens"),
                Query(
                    f"round({grown('preamble_explorations_total', where=_EXPLORED)})",
                    "explored requests",
                    Unit.SAMPLES,
                ),
            ),
            _SAVED_SHARE,
        ),
        Panel(
            "Saved tokens",
            "Tokens per second that full best-of-N would have taken and that were not spent, scoring deducted. Grows "
            "with traffic. Bad: below 0.",
            Kind.FIGURE,
            Unit.TOKENS_PER_S,
            (Query(f"{rate(_FULL, window=RANGE)} - {rate(_SPENT, window=RANGE)}", "estimated"),),
            _ABOVE_ZERO,
        ),
        Panel(
            "Candidates per request",
            "Mean number of candidates drawn for a sampled request. 1: nothing is sampled again. Bad: close to n_max "
            "in adaptive mode, where the threshold is then seldom reached.",
            Kind.FIGURE,
            Unit.CANDIDATES,
            (Query(mean("preamble_candidates_per_request", window=RANGE), "mean"),),
        ),
        Panel(
            "Regret, measured",
            "By how much the best of full best-of-N scores above the reply that was returned, on explored requests: "
            "what the saving cost in quality, 0 to 1, by the model's own judgement. Bad: above 0.1. Judge it by its "
            "number of samples.",
            Kind.FIGURE,
            Unit.SCORE,
            (
                Query(mean("preamble_regret", window=RANGE), "mean"),
                Query(f"round({grown('preamble_regret_count')})", "samples", Unit.SAMPLES),
            ),
            _REGRET,
        ),
        Panel(
            "Added latency",
            "From the end of the first candidate, the reply without us, to the end of the run: what a client waits "
            "longer for a better answer. Bad: more than your users accept; deadline_ms bounds it.",
            Kind.FIGURE,
            Unit.SECONDS,
            (
                Query(quantile(0.5, "preamble_added_latency_seconds", window=RANGE), "p50"),
                Query(quantile(0.95, "preamble_added_latency_seconds", window=RANGE), "p95"),
            ),
        ),
    ),
)

_SAVINGS: Final = Row(
    "Savings against full best-of-N (estimated, scoring deducted)",
    (
        Panel(
            "Tokens",
            "What full best-of-N would have taken, what was spent, scoring included, and the difference. Bad: spent "
            "above full.",
            Kind.LINES,
            Unit.TOKENS_PER_S,
            (
                Query(rate(_FULL), "full best-of-N"),
                Query(rate(_SPENT), "spent"),
                Query(f"{rate(_FULL)} - {rate(_SPENT)}", "saved"),
            ),
        ),
        Panel(
            "Engine-seconds",
            "The same in seconds that candidates and scoring calls were in the engine. What a second costs depends on "
            "how many share it, so compare times of like load only. Bad: spent above full.",
            Kind.LINES,
            Unit.ENGINE_SECONDS_PER_S,
            (
                Query(rate(_FULL_SECONDS), "full best-of-N"),
                Query(rate(_SPENT_SECONDS), "spent"),
                Query(f"{rate(_FULL_SECONDS)} - {rate(_SPENT_SECONDS)}", "saved"),
            ),
        ),
        Panel(
            "Share saved",
            "Saved as a share of full best-of-N, in tokens and in engine-seconds. Bad: below 0. A gap is a time "
            "without sampled requests.",
            Kind.LINES,
            Unit.SHARE,
            (
                Query(unspent_share(rate(_SPENT), rate(_FULL)), "of tokens"),
                Query(unspent_share(rate(_SPENT_SECONDS), rate(_FULL_SECONDS)), "of engine-seconds"),
            ),
            _SAVED_SHARE,
        ),
    ),
)

_MEASURED: Final = Row(
    "Measured on explored requests: the hour before each point",
    (
        Panel(
            "Share saved, measured",
            "Saved on requests for which full best-of-N was really run afterwards. Bad: below 0, or lastingly below "
            "the estimate, which is then too kind. No data: nothing was explored in that hour.",
            Kind.LINES,
            Unit.SHARE,
            (
                Query(
                    unspent_share(grown(_EXPLORED_SPENT, window=HOUR), grown(_EXPLORED_FULL, window=HOUR)),
                    "of tokens",
                ),
                Query(
                    unspent_share(
                        grown(_EXPLORED_SPENT_SECONDS, window=HOUR), grown(_EXPLORED_FULL_SECONDS, window=HOUR)
                    ),
                    "of engine-seconds",
                ),
            ),
            _SAVED_SHARE,
        ),
        Panel(
            "Regret",
            "By how much the best of full best-of-N scores above the returned reply. Bad: a mean above 0.1; then "
            "lower the savings: a higher threshold, a larger keep, later checkpoints.",
            Kind.LINES,
            Unit.SCORE,
            (
                Query(mean("preamble_regret", window=HOUR), "mean"),
                Query(quantile(0.9, "preamble_regret", window=HOUR), "p90"),
            ),
            _REGRET,
        ),
        Panel(
            "Samples behind it",
            "Explorations in the hour before each point, by result: done (these are the samples), busy (no room), "
            "failed, cancelled. Bad: few done, or more busy than done: raise max_explorations or lower "
            "exploration_share.",
            Kind.STACKED,
            Unit.SAMPLES,
            (
                Query(
                    or_zero(f"round({grown('preamble_explorations_total', 'result', window=HOUR)})", "result"),
                    "{{result}}",
                ),
            ),
        ),
    ),
)

_TOKENS: Final = Row(
    "Where the compute goes",
    (
        Panel(
            "Tokens by fate",
            "Generated tokens by what became of their candidate; those that scoring took; and exploration, the price "
            "of measuring. Only returned ones reach a client. Bad: much finished (not chosen: prune earlier or draw "
            "less), aborted or failed.",
            Kind.STACKED,
            Unit.TOKENS_PER_S,
            (Query(rate("preamble_candidate_tokens_total", "fate"), "{{fate}}"),),
        ),
        Panel(
            "Scoring's share of spend",
            "Scoring (prompt tokens computed and labels read) as a share of all tokens spent. Bad: above 0.3: the "
            "prefix cache misses, or there are more checkpoints than the replies are long.",
            Kind.LINES,
            Unit.SHARE,
            (
                Query(
                    share(rate("preamble_candidate_tokens_total", where=f'{PROXIES}, fate="scoring"'), rate(_SPENT)),
                    "of tokens",
                ),
            ),
            _SCORING_SHARE,
        ),
        Panel(
            "Candidates per request, by mode",
            "Mean number of candidates drawn for a sampled request. Bad: adaptive close to n_max.",
            Kind.LINES,
            Unit.CANDIDATES,
            (Query(mean("preamble_candidates_per_request", "mode", window=RATE), "{{mode}}"),),
        ),
    ),
)

_DECISIONS: Final = Row(
    "Decisions",
    (
        Panel(
            "Pruned, by checkpoint",
            "Candidates stopped at a checkpoint, by its number of tokens. Zero where no checkpoint is reached, and "
            "with one candidate at a time. Bad: nothing pruned in best_of_n mode.",
            Kind.STACKED,
            Unit.PER_MINUTE,
            (
                Query(
                    per_minute("preamble_prune_decisions_total", "checkpoint", where=f'{PROXIES}, decision="pruned"'),
                    "at {{checkpoint}}",
                ),
            ),
        ),
        Panel(
            "Resampling decisions, by reason",
            "Another batch was drawn (drew), or why no more: threshold and n_max are the policy at work. Bad: much "
            "unscored, engine_busy, engine_failed, load or ceiling, where something else decided.",
            Kind.STACKED,
            Unit.PER_MINUTE,
            (Query(per_minute("preamble_resampling_decisions_total", "reason"), "{{reason}}"),),
        ),
        Panel(
            "Passed through, by reason",
            "Chat requests that the upstream answered alone. off is what nobody asked sampling for. Bad: many of a "
            "reason that your clients do not expect, such as greedy.",
            Kind.STACKED,
            Unit.PER_MINUTE,
            (Query(per_minute("preamble_sampling_passed_through_total", "reason"), "{{reason}}"),),
        ),
    ),
)

_JUDGEMENT: Final = Row(
    "The model's own judgement: P(win or tie) of the returned reply",
    (
        Panel(
            "Win-or-tie probability, distribution",
            "How many returned replies have which probability that a fresh sample would not be better. Bad: all in "
            "one place, where scores tell candidates apart no more, or most below the threshold.",
            Kind.HEATMAP,
            Unit.SCORE,
            (
                Query(
                    grown("preamble_win_or_tie_probability_bucket", "le", window=RATE),
                    "{{le}}",
                ),
            ),
        ),
        Panel(
            "Win-or-tie probability, quantiles",
            "The same as lines. Bad: p50 far below the policy's threshold.",
            Kind.LINES,
            Unit.SCORE,
            _quantiles("preamble_win_or_tie_probability", 0.1, 0.5, 0.9),
        ),
    ),
)

_LATENCY: Final = Row(
    "Latency",
    (
        Panel(
            "Added latency, over time",
            "From the end of the first candidate to the end of the run. Bad: more than your users accept; deadline_ms "
            "bounds it, commit_at bounds the wait of streams.",
            Kind.LINES,
            Unit.SECONDS,
            _quantiles("preamble_added_latency_seconds", 0.5, 0.95),
        ),
        Panel(
            "Time to first token, of sampled streams",
            "From the first draw to the first token, beside what plain best-of-N would have needed for the same "
            "streams, which is estimated, rather too low; and vLLM's own, of every request. Bad: above plain "
            "best-of-N; commit_at bounds it.",
            Kind.LINES,
            Unit.SECONDS,
            (
                Query(quantile(0.5, "preamble_sampled_time_to_first_token_seconds"), "sampled, p50"),
                Query(quantile(0.95, "preamble_sampled_time_to_first_token_seconds"), "sampled, p95"),
                Query(quantile(0.5, "preamble_best_of_n_time_to_first_token_seconds"), "plain best-of-N, p50"),
                Query(quantile(0.95, "preamble_best_of_n_time_to_first_token_seconds"), "plain best-of-N, p95"),
                Query(quantile(0.5, "vllm:time_to_first_token_seconds", where=ENGINES), "vLLM, p50"),
            ),
        ),
        Panel(
            "Scoring latency",
            "Duration of a scoring call. No candidate waits for it, but pruning does. Bad: longer than the engine "
            "takes from one checkpoint to the next.",
            Kind.LINES,
            Unit.SECONDS,
            _quantiles("preamble_scoring_duration_seconds", 0.5, 0.95),
        ),
    ),
)

_TROUBLE: Final = Row(
    "When it is not as it should be",
    (
        Panel(
            "Degradations, by what took over",
            "A scorer or selector failed and a lesser one took its place: the answers are sound, and chosen less "
            "well. Bad: anything but 0. `preamble doctor` says whether scoring works.",
            Kind.STACKED,
            Unit.PER_MINUTE,
            (Query(per_minute("preamble_sampling_degradations_total", "instead"), "{{instead}}"),),
        ),
        Panel(
            "Load shedding",
            "Requests that got fewer candidates than their policy allows: load (the upstream's queue is deep), "
            "ceiling (max_candidates), engine_busy (it refused more). Bad: lasting; the engine is too small for the "
            "policy.",
            Kind.STACKED,
            Unit.PER_MINUTE,
            (Query(per_minute("preamble_sampling_restrained_total", "by"), "{{by}}"),),
        ),
        Panel(
            "Upstream errors, by code",
            "Failures to use the upstream. Bad: anything but 0; server/README.md has the codes.",
            Kind.STACKED,
            Unit.PER_MINUTE,
            (Query(per_minute("preamble_upstream_errors_total", "code"), "{{code}}"),),
        ),
    ),
)

_ENGINE: Final = Row(
    "The engine: vLLM's own figures",
    (
        Panel(
            "Queue",
            "Requests that vLLM works on and those that wait; and the depth that the proxy saw when it last asked, "
            "while sampling. Bad: waiting above load_low, from where the proxy draws fewer candidates.",
            Kind.LINES,
            Unit.REQUESTS,
            (
                Query(f"sum(vllm:num_requests_running{{{ENGINES}}})", "running"),
                Query(f"sum(vllm:num_requests_waiting{{{ENGINES}}})", "waiting"),
                Query(f"max(preamble_upstream_waiting_requests{{{PROXIES}}})", "waiting, seen by the proxy"),
            ),
        ),
        Panel(
            "KV cache in use",
            "Share of the KV cache that live requests hold, of the fullest engine. Bad: near 1; requests are "
            "preempted and computed again.",
            Kind.LINES,
            Unit.SHARE,
            (Query(f"max(vllm:kv_cache_usage_perc{{{ENGINES}}})", "in use"),),
            _FULLNESS,
        ),
        Panel(
            "Prefix-cache hit rate",
            "Share of prompt tokens that came from the cache. Candidates and scores of one request share their "
            "prompt, so sampling raises it. Bad: near 0 while sampling; scoring is then paid in full.",
            Kind.LINES,
            Unit.SHARE,
            (
                Query(
                    share(
                        rate("vllm:prefix_cache_hits_total", where=ENGINES),
                        rate("vllm:prefix_cache_queries_total", where=ENGINES),
                    ),
                    "hits",
                ),
            ),
        ),
        Panel(
            "vLLM's tokens",
            "Prompt tokens, cached ones included, and generated tokens, of all requests whoever sent them. Bad: "
            "generation falling while requests wait.",
            Kind.LINES,
            Unit.TOKENS_PER_S,
            (
                Query(rate("vllm:prompt_tokens_total", where=ENGINES), "prompt"),
                Query(rate("vllm:prompt_tokens_cached_total", where=ENGINES), "prompt, from the cache"),
                Query(rate("vllm:generation_tokens_total", where=ENGINES), "generation"),
            ),
        ),
    ),
)

BOARD: Final = Board(
    uid="preamble-savings",
    title="Preamble: compute savings",
    description="What adaptive best-of-N saves against full best-of-N, what it costs in quality and time, and how the "
    "engine behind it is doing.",
    variables=(
        Variable("proxy", "Proxy", "preamble_spent_tokens_total", "instance"),
        Variable("engine", "vLLM", "vllm:num_requests_running", "instance"),
    ),
    rows=(
        _AT_A_GLANCE,
        _SAVINGS,
        _MEASURED,
        _TOKENS,
        _DECISIONS,
        _JUDGEMENT,
        _LATENCY,
        _TROUBLE,
        _ENGINE,
    ),
)
