"""Recorded candidates, made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from adaptive.evaluation.recording import RecordedScore, Recording, Setup, seed_of
from adaptive.evaluation.strategies import SCORERS
from adaptive.evaluation.study import Prompt
from adaptive.evaluation.verifiers import Verdict
from adaptive.policy import ScorerName

SETUP = Setup("tiny", None, None, "question", 0.8, 16)
CHECKPOINTS = (4, 8)
OTHERS = (ScorerName.READ_OUT, ScorerName.MEAN_LOG_PROBABILITY, ScorerName.GROUP_CONFIDENCE)


@dataclass(frozen=True, slots=True)
class Made:
    """A candidate in short. at: self-evaluation at checkpoints, its final score where not given. read_out: at any."""

    score: float
    reward: float = 0.0
    tokens: int = 10
    at: Mapping[int, float] = field(default_factory=dict)
    label_mass: float = 0.5
    read_out: float = 0.5


def recording(task: str, index: int, made: Made) -> Recording:
    """Return a candidate whose self-evaluation costs 9 computed tokens; the free scorers say 0.5 of everything."""
    seed = seed_of(0, task, index)
    scores = []
    for tokens in [*(each for each in CHECKPOINTS if each < made.tokens), made.tokens]:
        final = tokens == made.tokens
        value = made.score if final else made.at.get(tokens, made.score)
        own = RecordedScore(ScorerName.SELF_EVALUATION.value, tokens, final, value, made.label_mass, 9, 0.1)
        values = {name: made.read_out if name is ScorerName.READ_OUT else 0.5 for name in OTHERS}
        scores.append(own)
        scores += [RecordedScore(name.value, tokens, final, value, None, 0, 0.0) for name, value in values.items()]
    return Recording(
        key=SETUP.key(task, seed),
        task=task,
        prompt=task,
        index=index,
        seed=seed,
        setup=SETUP,
        checkpoints=CHECKPOINTS,
        scorers=tuple(name.value for name in SCORERS),
        text=f"reply {index}\u2028of {task}",
        prompt_ids=(1, 2, 3, 4, 5),
        token_ids=tuple(range(10, 10 + made.tokens)),
        logprobs=(-0.25,) * made.tokens,
        finish_reason="stop" if made.tokens < SETUP.max_tokens else "length",
        scores=tuple(scores),
        failures=(),
        first_token_s=0.1,
        took_s=1.0,
        sampled_at=float(index),
        scored_at=float(index),
    )


def prompt(task: str, candidates: Sequence[Made]) -> Prompt:
    """Return a prompt; a candidate passes with a reward of 1."""
    return Prompt(
        task,
        tuple(recording(task, index, made) for index, made in enumerate(candidates)),
        tuple(Verdict(made.reward, passed=made.reward == 1.0) for made in candidates),
    )


shares = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
mades = st.builds(
    Made,
    score=shares,
    reward=shares,
    tokens=st.integers(min_value=1, max_value=16),
    at=st.fixed_dictionaries(dict.fromkeys(CHECKPOINTS, shares)),
    read_out=shares,
)


@st.composite
def prompts(draw: st.DrawFn, n: int = 5) -> list[Prompt]:
    """One to three prompts with n candidates each."""
    count = draw(st.integers(min_value=1, max_value=3))
    return [prompt(f"p{place}", draw(st.lists(mades, min_size=n, max_size=n))) for place in range(count)]
