"""What `loadtests.controller` sends, and what follows from it: loads that differ in one thing, and the differences.

It knows nothing of processes or HTTP. Every figure is a difference or a ratio inside a round, so that what is common to
both loads (the client's request, its answer) and what disturbs the machine for long cancel out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadtests.answers import CHUNKS
from loadtests.comparison import Interval, bootstrap_median

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from loadtests.generator import Result

LONG = CHUNKS - 1  # tokens: the first chunk has the role and no token
SHORT = 15
FEW, MANY = 2, 8
_CHECKPOINTS = (12, 24, 36, 48)
_LIVE_FROM = 8
_BUSY, _PIECES = 0.8, 0.95  # shares of a core, and of the chunks that were sent
# Never reached; but with a deadline the best so far may be asked for, so checkpoints are scored that prune nobody.
_DEADLINE_MS = 600_000


@dataclass(frozen=True, slots=True)
class Load:
    """A kind of request. `policy` is its `preamble` object, None: no sampling is asked for.

    tokens: generated for each candidate. candidates, calls, scores: what a request costs the upstream.
    """

    name: str
    what: str
    tokens: int
    candidates: int
    policy: Mapping[str, Any] | None = None
    stream: bool = False
    calls: int = 0
    scores: int = 0

    def fields(self) -> dict[str, object]:
        """Return what the request has beside the common body."""
        return {"max_tokens": self.tokens} | ({} if self.policy is None else {"preamble": self.policy})


def _best_of(candidates: int, tokens: int) -> Load:
    name = f"best of {candidates}, {tokens} tokens"
    return Load(name, name, tokens, candidates, _policy(candidates))


def _policy(candidates: int, checkpoints: Sequence[int] = ()) -> dict[str, Any]:
    return {
        "mode": "best_of_n",
        "n_max": candidates,
        "selector": "first",
        "deadline_ms": _DEADLINE_MS,
        "checkpoints": [{"tokens": tokens, "keep": 1.0} for tokens in checkpoints],
    }


_ONE_LIVE = {"mode": "adaptive", "n_max": 2, "threshold": 0.0, "checkpoints": [{"tokens": _LIVE_FROM, "keep": 0.5}]}

PASSED = Load("passed through", "streamed, passed through", LONG, 1, stream=True)
FEW_SHORT, FEW_LONG = _best_of(FEW, SHORT), _best_of(FEW, LONG)
MANY_SHORT, MANY_LONG = _best_of(MANY, SHORT), _best_of(MANY, LONG)
SCORED = Load(
    "scored",
    f"the same, all scored at {len(_CHECKPOINTS)} checkpoints",
    LONG,
    MANY,
    _policy(MANY, _CHECKPOINTS),
    calls=len(_CHECKPOINTS),
    scores=MANY * len(_CHECKPOINTS),
)
LIVE = Load(
    "live",
    f"streamed, adaptive, one candidate, live from token {_LIVE_FROM}",
    LONG,
    1,
    _ONE_LIVE,
    stream=True,
    calls=1,
    scores=1,
)
LOADS = (PASSED, FEW_SHORT, FEW_LONG, MANY_SHORT, MANY_LONG, SCORED, LIVE)


@dataclass(frozen=True, slots=True)
class Taken:
    """One load on one proxy in one round (from 0). `wrong`: how the upstream's work differed from the load's."""

    round: int
    target: str
    load: str
    result: Result
    wrong: str = ""

    @property
    def failed(self) -> bool:
        """An answer was wrong, or work was missing. Scores that came too late make the figure doubtful, no more."""
        return bool(self.result.errors) or (bool(self.wrong) and self.load != SCORED.name)


def candidate_ms(ms: Mapping[str, float], few: Load = FEW_LONG, many: Load = MANY_LONG) -> float:
    """Return the CPU milliseconds of one candidate more, from those of the loads."""
    return (ms[many.name] - ms[few.name]) / (many.candidates - few.candidates)


def token_us(ms: Mapping[str, float]) -> float:
    """Return the CPU microseconds of one token more of a candidate: what its length adds, its start left out."""
    return (candidate_ms(ms) - candidate_ms(ms, FEW_SHORT, MANY_SHORT)) / (LONG - SHORT) * 1e3


def score_ms(ms: Mapping[str, float]) -> float:
    """Return the CPU milliseconds of one score, in calls that score `MANY`."""
    return (ms[SCORED.name] - ms[MANY_LONG.name]) / SCORED.scores


@dataclass(frozen=True, slots=True)
class Figure:
    """What follows from the CPU milliseconds per request of the loads in one round. unit: none for a ratio."""

    name: str
    unit: str
    of: Callable[[Mapping[str, float]], float]


RATIO = Figure(
    f"one candidate more, of {LONG} tokens / a stream passed through", "", lambda ms: candidate_ms(ms) / ms[PASSED.name]
)
FIGURES = (
    Figure(f"one candidate more, of {LONG} tokens", "ms", candidate_ms),
    Figure("a generated token, in a chunk of its own", "µs", token_us),
    Figure(f"a score, in calls of {MANY}", "ms", score_ms),
    RATIO,
    Figure(
        "an adaptive stream of one candidate / a stream passed through", "", lambda ms: ms["live"] / ms[PASSED.name]
    ),
)


def cpu_by_round(taken: Sequence[Taken], target: str) -> list[dict[str, float]]:
    """Return, for each round, the CPU milliseconds per request by load. Raises `ValueError` where one is not known."""
    rounds: dict[int, dict[str, float]] = {}
    for each in taken:
        if each.target == target:
            if not each.result.cpu_ms:
                raise ValueError(f"round {each.round + 1} has no CPU time of {target} for {each.load}")
            rounds.setdefault(each.round, {})[each.load] = each.result.cpu_ms
    return [rounds[number] for number in sorted(rounds)]


def figures(taken: Sequence[Taken], target: str) -> dict[str, Interval]:
    """Return every figure's median over rounds with its interval."""
    rounds = cpu_by_round(taken, target)
    return {figure.name: bootstrap_median([figure.of(ms) for ms in rounds]) for figure in FIGURES}


def ratios(taken: Sequence[Taken], target: str, baseline: str) -> dict[str, Interval]:
    """Return, for each load and for each figure in a unit, `target` over `baseline` inside a round."""
    pairs = list(zip(cpu_by_round(taken, target), cpu_by_round(taken, baseline), strict=True))
    by_load = {load.name: [mine[load.name] / theirs[load.name] for mine, theirs in pairs] for load in LOADS}
    by_figure = {
        each.name: [each.of(mine) / each.of(theirs) for mine, theirs in pairs] for each in FIGURES if each.unit
    }
    return {name: bootstrap_median(values) for name, values in (by_load | by_figure).items()}


def wrong_work(load: Load, requests: int, did: Mapping[str, int]) -> str:
    """Return how the upstream's counts differ from what that many requests must cost it; nothing if they do not."""
    due = {
        "chats": requests * load.candidates,
        "scorings": requests * load.calls,
        "scored": requests * load.scores,
        "abandoned": 0,
    }
    return ", ".join(f"{did[name]} {name} instead of {count}" for name, count in due.items() if did[name] != count)


def doubts(taken: Sequence[Taken]) -> list[str]:
    """Return what makes the figures doubtful, a sentence for each; nothing when they may be believed."""
    found = []
    for each in taken:
        where = f"round {each.round + 1}, {each.target}, {each.load}"
        if each.result.errors:
            found.append(f"{where}: {', '.join(f'{count} x {what}' for what, count in each.result.errors.items())}")
        if each.wrong:
            # A checkpoint waits for the scores of the one before; where those are late, candidates end without it.
            found.append(f"{where}: {each.wrong}; raise --gap-ms, or lower --connections")
        if not each.result.cpu_agrees:
            found.append(f"{where}: the kernel's two accounts of CPU time differ")
        busy = (each.result.cpu_ms or 0.0) * each.result.requests_per_s / 1e3
        if busy > _BUSY:
            found.append(f"{where}: the proxy's core was busy for {busy:.0%}, so chunks met in its buffers")
        if each.load == PASSED.name and each.result.pieces < _PIECES * CHUNKS:
            found.append(f"{where}: {each.result.pieces:.1f} pieces for {CHUNKS} chunks, so chunks met in a buffer")
    return found
