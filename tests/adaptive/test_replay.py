"""A replay decides as the loop does, which plays the same candidates in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.annealing import CONSTANT
from adaptive.candidate import Fate
from adaptive.policy import Checkpoint, Mode, Policy
from adaptive.replay import ReplayCandidate, Replayed, ReplayScore, replay
from adaptive.stopping import StopReason

from .runs import Played, ScoreOf, checkpoints, constant, make_engine, play, probabilities, script

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
        scoring_s=0.0,  # scores of the script take no time
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


def test_a_candidate_that_reaches_the_threshold_stops_its_siblings_where_they_are() -> None:
    given_ = recorded([3, 4, 9], constant(0.1, 0.95, 0.99), ())
    replayed = replay(Policy(n_max=3, batch_growth=3, checkpoints=()), given_)
    assert (replayed.returned, replayed.reason) == (1, StopReason.THRESHOLD)
    assert replayed.generated == (3, 4, 4)


def test_the_only_one_left_is_not_judged_at_its_end() -> None:
    given_ = recorded([9, 9], constant(0.1, 0.2), (4,))
    replayed = replay(Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=(Checkpoint(4, 0.5),)), given_)
    assert (replayed.returned, replayed.pruned, replayed.scores) == (1, (0,), 2)


def test_a_score_that_could_not_be_had_neither_wins_nor_stops() -> None:
    given_ = [ReplayCandidate(3, ReplayScore(None, 0)), ReplayCandidate(3, ReplayScore(0.1, 2))]
    replayed = replay(Policy(n_max=2, threshold=0.0, checkpoints=()), given_)
    assert (replayed.returned, replayed.drawn, replayed.scores) == (1, 2, 1)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (Policy(n_max=3), "2 candidates are too few for a policy of 3"),
        (Policy(n_max=2, token_budget=5), "depend on time"),
        (Policy(n_max=2, deadline_ms=5), "depend on time"),
        (Policy(n_max=2, commit_at=5), "depend on time"),
    ],
)
def test_what_cannot_be_replayed_is_refused(policy: Policy, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replay(policy, recorded([1, 1], constant(0.1, 0.2), ()))
