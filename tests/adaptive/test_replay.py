"""A replay decides as the loop does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adaptive.annealing import CONSTANT
from adaptive.candidate import Fate
from adaptive.policy import Mode, Policy
from adaptive.replay import ReplayCandidate, Replayed, ReplayScore, replay
from tests.adaptive.runs import Played, ScoreOf, checkpoints, make_engine, play, probabilities, script

policies = st.builds(
    Policy,
    mode=st.sampled_from([Mode.ADAPTIVE, Mode.BEST_OF_N]),
    n_max=st.integers(min_value=1, max_value=8),
    threshold=probabilities,
    batch_growth=st.floats(min_value=1.1, max_value=4.0),
    annealing=st.just(CONSTANT),
    checkpoints=checkpoints(),
)


def recorded(lengths: list[int], score: ScoreOf, at: tuple[int, ...]) -> list[ReplayCandidate]:
    """Candidates of those lengths; a score costs one token computed and one read, as the scripted engine has it."""
    return [
        ReplayCandidate(
            length,
            ReplayScore(score(place, length), 2),
            {tokens: ReplayScore(score(place, tokens), 2) for tokens in at if tokens < length},
        )
        for place, length in enumerate(lengths)
    ]


def summary(played: Played) -> Replayed:
    """What the loop did, in the words of a replay."""
    spend, records = played.outcome.spend, played.outcome.trace.candidates
    return Replayed(
        returned=played.returned,
        drawn=spend.drawn,
        reason=played.outcome.reason,
        generated=tuple(record.tokens for record in records),
        pruned=tuple(record.index for record in records if record.fate is Fate.PRUNED),
        scores=spend.scores,
        scoring_tokens=spend.scoring_tokens,
    )


@given(
    policies,
    st.lists(st.integers(min_value=1, max_value=16), min_size=8, max_size=8),
    st.lists(
        st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.5, 0.8, 1.0]), min_size=17, max_size=17), min_size=8, max_size=8
    ),
)
def test_a_replay_decides_and_spends_as_the_loop_did(
    policy: Policy, lengths: list[int], scores: list[list[float]]
) -> None:
    def score(candidate: int, tokens: int) -> float:
        return scores[candidate][tokens]

    played = play(make_engine([script(place, length) for place, length in enumerate(lengths)], score), policy)
    at = tuple(checkpoint.tokens for checkpoint in policy.checkpoints)
    assert replay(policy, recorded(lengths, score, at)) == summary(played)
