"""Runs in virtual time on the scripted engine, for the tests of the loop.

Token `1000 * (c + 1) + i` is the i-th token of candidate c, so a scored sequence says whose it is and how long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from adaptive.annealing import Annealing
from adaptive.best_of_n import BestOfN, everything
from adaptive.clock import LoopClock
from adaptive.engine import EngineBusy, EngineError, EngineFailed, EngineRejected, TokenIds
from adaptive.events import Event
from adaptive.limits import Slots
from adaptive.policy import AtDeadline, Checkpoint, Mode, Policy
from adaptive.run import Outcome, Request
from adaptive.scoring import Labels, MeanLogProbabilityScorer, Scorer, SelfEvaluationScorer
from adaptive.scripted import Script, ScriptedEngine, reply
from adaptive.selection import Selector
from adaptive.virtual_time import run_virtually

PROMPT: TokenIds = (1, 2, 3)
QUESTION: TokenIds = (4, 5)
LABELS = Labels(win_or_tie=(8,), loss=(9,))

ScoreOf = Callable[[int, int], float]
"""From a candidate's index and a number of its tokens to its P(win or tie)."""


def tokens_of(candidate: int, count: int) -> TokenIds:
    return tuple(1000 * (candidate + 1) + i for i in range(count))


def script(
    candidate: int, count: int, *, every_s: float = 1.0, per_step: int = 1, failure: EngineError | None = None
) -> Script:
    return reply(tokens_of(candidate, count), every_s=every_s, per_step=per_step, failure=failure, logprob=-0.5)


def judge_of(score: ScoreOf) -> Callable[[TokenIds], float]:
    def judge(sequence: TokenIds) -> float:
        partial = sequence[len(PROMPT) : -len(QUESTION)]
        return score(partial[0] // 1000 - 1, len(partial)) if partial else 0.0

    return judge


def constant(*scores: float) -> ScoreOf:
    """Each candidate's score, the same at every length."""
    return lambda candidate, _: scores[candidate]


@dataclass
class Played:
    outcome: Outcome
    engine: ScriptedEngine
    events: list[tuple[float, Event]]
    took_s: float

    @property
    def returned(self) -> int:
        return self.outcome.choices[0].index


def make_engine(
    scripts: Sequence[Script],
    score: ScoreOf = lambda *_: 0.5,
    *,
    score_s: float = 0.0,
    label_mass: float = 1.0,
    scoring_failures: Sequence[EngineError | None] = (),
) -> ScriptedEngine:
    return ScriptedEngine(
        scripts,
        LoopClock(),
        judge=judge_of(score),
        score_s=score_s,
        label_mass=label_mass,
        scoring_failures=scoring_failures,
    )


def make_run(
    engine: ScriptedEngine,
    policy: Policy,
    *,
    stream: bool = False,
    choices: int = 1,
    max_tokens: int = 1000,
    seed: int = 42,
    scorers: Sequence[Scorer] | None = None,
    selector: Selector | None = None,
    slots: Slots | None = None,
    allowed: Callable[[int], int] = everything,
) -> BestOfN:
    request = Request(PROMPT, max_tokens, temperature=1.0, seed=seed, choices=choices, stream=stream)
    self_evaluation = SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS)
    return BestOfN(
        request,
        policy,
        engine=engine,
        scorers=(self_evaluation, MeanLogProbabilityScorer()) if scorers is None else scorers,
        clock=LoopClock(),
        selector=selector,
        slots=slots,
        allowed=allowed,
    )


def play(
    engine: ScriptedEngine,
    policy: Policy,
    *,
    stream: bool = False,
    choices: int = 1,
    max_tokens: int = 1000,
    seed: int = 42,
    scorers: Sequence[Scorer] | None = None,
    selector: Selector | None = None,
    slots: Slots | None = None,
    allowed: Callable[[int], int] = everything,
) -> Played:
    """Run to the end in virtual time. Raises what the run raises."""
    clock = LoopClock()
    events: list[tuple[float, Event]] = []
    run = make_run(
        engine,
        policy,
        stream=stream,
        choices=choices,
        max_tokens=max_tokens,
        seed=seed,
        scorers=scorers,
        selector=selector,
        slots=slots,
        allowed=allowed,
    )

    async def main() -> Played:
        outcome = await run.run(lambda event: events.append((clock.now(), event)))
        return Played(outcome, engine, events, clock.now())

    return run_virtually(main())


# Strategies.

shares = st.floats(min_value=0.05, max_value=1.0)
probabilities = st.floats(min_value=0.0, max_value=1.0)
annealings = st.builds(
    Annealing,
    start=st.floats(min_value=0.0, max_value=2.0),
    end=st.floats(min_value=0.0, max_value=2.0),
    rate=st.floats(min_value=0.0, max_value=1.0),
)


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[Checkpoint, ...]:
    places = sorted(draw(st.sets(st.integers(min_value=1, max_value=12), max_size=3)))
    return tuple(Checkpoint(place, draw(shares)) for place in places)


policies = st.builds(
    Policy,
    mode=st.sampled_from(Mode),
    n_max=st.integers(min_value=1, max_value=8),
    threshold=probabilities,
    batch_growth=st.floats(min_value=1.1, max_value=4.0),
    annealing=annealings,
    checkpoints=checkpoints(),
    token_budget=st.none() | st.integers(min_value=1, max_value=60),
    deadline_ms=st.none() | st.integers(min_value=1, max_value=40_000),
    at_deadline=st.sampled_from(AtDeadline),
    commit_at=st.none() | st.integers(min_value=1, max_value=12),
)


@st.composite
def scripted_runs(
    draw: st.DrawFn,
) -> tuple[tuple[Script, ...], tuple[float, ...], float, tuple[EngineError | None, ...]]:
    """Scripts, scores, the time a score takes, and failures of the scoring calls."""
    failures = st.none() | st.one_of(
        st.builds(EngineFailed, st.just("lost")),
        st.builds(EngineBusy, st.just("full")),
        st.builds(EngineRejected, st.just("wrong")),
    )
    scripts = tuple(
        script(
            candidate,
            draw(st.integers(min_value=0, max_value=16)),
            every_s=draw(st.sampled_from([0.25, 0.5, 1.0, 2.0])),
            per_step=draw(st.integers(min_value=1, max_value=4)),
            failure=draw(failures),
        )
        for candidate in range(12)
    )
    scores = tuple(draw(probabilities) for _ in range(12))
    scoring = tuple(draw(st.lists(failures, max_size=2)))
    return scripts, scores, draw(st.sampled_from([0.0, 0.3, 3.0])), scoring
