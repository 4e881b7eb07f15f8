"""What is shared between policies is what each would have come to alone."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive.annealing import CONSTANT
from adaptive.evaluation.shared_replay import SharedReplay
from adaptive.policy import Checkpoint, Mode, Policy
from adaptive.replay import ReplayCandidate, ReplayScore, replay

N = 6
shares = st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
scores = st.builds(ReplayScore, st.one_of(st.none(), shares), st.just(9))


@st.composite
def candidates(draw: st.DrawFn) -> ReplayCandidate:
    tokens = draw(st.integers(1, 12))
    return ReplayCandidate(tokens, draw(scores), {at: draw(scores) for at in (4, 8) if at < tokens})


def policies() -> list[Policy]:
    sets = [(), *((Checkpoint(4, keep),) for keep in (0.25, 0.5)), (Checkpoint(4, 0.5), Checkpoint(8, 0.5))]
    return [
        Policy(mode=mode, n_max=n_max, threshold=threshold, annealing=CONSTANT, checkpoints=checkpoints)
        for mode in (Mode.ADAPTIVE, Mode.BEST_OF_N)
        for n_max in (2, 3, 4, 6)
        for checkpoints in sets
        for threshold in (0.0, 0.3, 0.4, 0.5, 0.9, 1.0)
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(candidates(), min_size=N, max_size=N), st.randoms(use_true_random=False), st.permutations(range(N)))
def test_every_policy_comes_to_the_same_as_alone(
    given_candidates: list[ReplayCandidate], source: random.Random, order: list[int]
) -> None:
    tried = policies()
    source.shuffle(tried)
    shared = SharedReplay(given_candidates)
    for policy in tried:
        for each in (tuple(order), tuple(order[::-1])):
            assert shared.replay(policy, each) == replay(policy, [given_candidates[place] for place in each])


def test_equal_runs_are_made_once() -> None:
    found = [ReplayCandidate(10, ReplayScore(score, 9)) for score in (0.5, 0.2, 0.9, 0.1, 0.3, 0.4)]
    shared, order = SharedReplay(found), tuple(range(N))
    policy = Policy(n_max=6, annealing=CONSTANT, checkpoints=())
    stopped_at_once = {
        id(shared.replay(Policy(n_max=n_max, threshold=threshold, annealing=CONSTANT, checkpoints=checkpoints), order))
        for n_max, threshold, checkpoints in itertools.product(
            (2, 4, 6), (0.1, 0.3, 0.5), ((), (Checkpoint(10, 0.5),), (Checkpoint(64, 0.5),))
        )
    }
    assert len(stopped_at_once) == 1
    assert shared.replay(policy, order) is not shared.replay(policy, order[::-1])
